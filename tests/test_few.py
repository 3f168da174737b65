"""What a request may hold of what is wrong: a few errors are made of it, not one for each of its parts."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

import modules.api
import modules.ui
from modules.characters.character import Character, LoreEntry
from modules.chat.foreign import MOST_MESSAGES
from modules.chat.importing import MOST_LINES, MOST_OBJECTS, MOST_VALUES, _Conversation, read_file
from modules.errors import BadValue
from modules.ui.widgets import Pick, read_body

PARTS = 3000
WRONG: dict[str, Any] = {
    "list": [{}] * PARTS,
    "dict": {str(number): {} for number in range(PARTS)},
    "list in a list": [[{}] * PARTS],
    "parts of a message": [{"role": "user", "content": [{}] * PARTS}],
    "numbers": [0.5] * PARTS,
}


def models() -> Iterator[type[BaseModel]]:
    """All that requests are read as."""
    yield from (Character, LoreEntry, _Conversation)
    for package in (modules.api, modules.ui):
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            module = importlib.import_module(found.name)
            for _, value in inspect.getmembers(module, inspect.isclass):
                if issubclass(value, BaseModel) and value.__module__ == found.name:
                    yield value


def errors(model: type[BaseModel], body: dict[str, Any]) -> int:
    try:
        model.model_validate(body)
    except ValidationError as error:
        return error.error_count()
    except Exception:  # a refusal of Snug's own
        return 1
    return 0


@pytest.mark.parametrize("model", tuple(models()), ids=lambda model: f"{model.__module__}.{model.__name__}")
def test_thousands_of_wrong_parts_make_few_errors(model: type[BaseModel]) -> None:
    found = {
        (field, kind): errors(model, {field: wrong}) for field in model.model_fields for kind, wrong in WRONG.items()
    }
    found["unknown", "fields"] = errors(model, {str(number): 1 for number in range(PARTS)})
    assert {place: count for place, count in found.items() if count > PARTS // 2} == {}


def test_a_page_hears_that_its_body_has_too_many_fields() -> None:
    with pytest.raises(BadValue, match=r"^The body: it has more than 256 fields\.$"):
        read_body(Pick, dict.fromkeys(map(str, range(PARTS)), 1))


@pytest.mark.parametrize(
    "text",
    [
        '{"messages": [' + "[]," * MOST_OBJECTS + "0]}",
        '{"messages": [' + "0," * (MOST_VALUES + 1) + "0]}",
        '{"snug": 1, "conversations": [{"messages": [' + "0," * 1_000_000 + "0]}]}",
        "a\n" * (MOST_LINES + 1),
        "{}\r" * (MOST_LINES + 1),
        '{"character_name": "x"}\n' + ('{"mes": "a", "x": [' + "[]," * (MOST_OBJECTS // 2) + "0]}\n") * 2,
        '{"messages": [' + '{"role": "user", "content": "a"},' * (MOST_MESSAGES + 1) + "0]}",
        '{"character_name": "x"}\n{"mes": "a", "swipes": [' + '"b",' * MOST_MESSAGES + '"b"]}\n',
    ],
    ids=[
        "lists",
        "numbers",
        "messages that are none",
        "lines",
        "lines of objects",
        "lines of a chat",
        "messages",
        "versions",
    ],
)
def test_a_file_of_millions_of_parts_is_no_conversation(text: str) -> None:
    read = read_file(text)
    assert not read.trees
    assert len(read.skipped) == 1
