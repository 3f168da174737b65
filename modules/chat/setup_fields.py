"""A conversation's setup as strangers may send it, from the page or in a file: every field bounded."""

from __future__ import annotations

from pydantic import BaseModel, Field

from modules.messages import Manner, Setup


class SetupFields(BaseModel):
    """The fields of messages.Setup. What else may stand beside them is the subclass's to say."""

    manner: Manner = "instruct"
    character: str = Field(default="", max_length=200)
    persona: str = Field(default="", max_length=200)
    command: str = Field(default="", max_length=20_000)
    template: str = Field(default="", max_length=200_000)
    reply_start: str = Field(default="", max_length=20_000)
    thinking: str = Field(default="", max_length=20)

    def setup(self) -> Setup:
        """The same as a value of the store."""
        return Setup(**self.model_dump())
