"""The form of a reply as clients of vLLM, SGLang, llama-server and TGI ask for it → response_format or grammar."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from modules.api.whole import whole
from modules.errors import BadValue
from modules.forms.regex_grammar import grammar_of_choices, grammar_of_regex

MAX_FORM_CHOICES = 1000
_MOST_WRITTEN = 65_536  # what a grammar may have
_NAMES = {
    "json_schema": "json", "guided_json": "json", "guided_regex": "regex", "regex": "regex", "guided_choice": "choice",
    "guided_grammar": "grammar", "ebnf": "grammar", "grammar_string": "grammar",
}  # fmt: skip


def form_elsewhere(body: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of Snug's that say what `body` asks for in other words; none where it asks for no form, or for one in
    Snug's words too. Raises BadValue for what cannot be held, or makes no sense.
    """
    response_format = body.get("response_format")
    if isinstance(response_format, dict) and response_format.get("value") is not None:
        return _form_of_tgi(response_format)
    asked = body.get("structured_outputs")
    given = [("structured_outputs", kind, value) for kind, value in asked.items()] if isinstance(asked, dict) else []
    given += [(name, kind, body[name]) for name, kind in _NAMES.items() if name in body]
    for name, kind, value in given:
        if value is not None and value not in ("", False, [], {}):
            return _form(name, kind, value, body)
    return {}


def _form_of_tgi(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Text Generation Inference's `{"type", "value"}`, which huggingface_hub also makes of OpenAI's json_schema."""
    kind, value = asked.get("type"), asked["value"]
    if kind in ("json", "json_object") and asked.get("schema") is None:
        return {"response_format": {"type": "json_schema", "schema": _schema("response_format.value", value)}}
    if kind == "regex" and isinstance(value, str):
        return {"response_format": None, "grammar": grammar_of_regex(whole(value), "response_format.value")}
    return {}


def _form(name: str, kind: str, value: Any, body: Mapping[str, Any]) -> dict[str, Any]:
    if kind in ("json", "json_object"):
        if body.get("response_format") is not None:
            return {}
        if kind == "json_object":
            return {"response_format": {"type": "json_object"}}
        return {"response_format": {"type": "json_schema", "schema": _schema(name, value)}}
    if body.get("grammar"):
        return {}
    if kind == "choice":
        return {"grammar": grammar_of_choices(_choices(name, value))}
    if kind == "regex" and isinstance(value, str):
        return {"grammar": grammar_of_regex(whole(value), name)}
    if kind == "grammar":
        return {"grammar": value}
    if kind == "structural_tag" or kind in _NAMES.values():
        raise BadValue(f"{name}: {kind} cannot be held here.", remedy="Send a schema or a grammar.", param=name)
    return {}


def _schema(name: str, value: object) -> object:
    """A schema, which some clients write as text."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise BadValue(f"{name} is no JSON.", remedy="Send a JSON schema.", param=name) from error


def _choices(name: str, value: object) -> list[str]:
    texts = [whole(one) for one in value if isinstance(one, str)] if isinstance(value, list) else []
    if not isinstance(value, list) or len(texts) < len(value) or len(texts) > MAX_FORM_CHOICES:
        raise BadValue(
            f"{name} takes a list of up to {MAX_FORM_CHOICES:,} texts to choose from.", remedy="Send one.", param=name
        )
    if sum(map(len, texts)) > _MOST_WRITTEN:  # writing megabytes down for a refusal takes seconds of everybody's
        raise BadValue(
            f"{name}: the texts are longer than {_MOST_WRITTEN:,} characters.", remedy="Send shorter ones.", param=name
        )
    return texts
