"""How much is told of what is wrong with a request: pydantic makes an error of each wrong part, of millions gigabytes.

A list, a tuple or a dict with FIRST_FAULT ends at its first wrong item; a model that knows all of its fields refuses an
object with more of them than any has.
"""

from __future__ import annotations

from pydantic import BaseModel, Field, model_validator
from pydantic_core import PydanticCustomError

MOST_FIELDS = 256
FIRST_FAULT = Field(fail_fast=True)


class FewFields(BaseModel):
    """An object of a few fields, and so are those in it; each unknown one would be an error of its own."""

    @model_validator(mode="before")
    @classmethod
    def _few_fields(cls, value: object) -> object:
        objects = [value, *value.values()] if isinstance(value, dict) and len(value) <= MOST_FIELDS else [value]
        if any(isinstance(one, dict) and len(one) > MOST_FIELDS for one in objects):
            raise PydanticCustomError("too_many_fields", "it has more than {most} fields", {"most": MOST_FIELDS})
        return value
