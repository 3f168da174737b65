"""The values of a conversation: frozen, comparable, with the defaults that stored rows rely on."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from modules.messages import ChatMessage, Conversation, Message, ReplyStats


def test_values_cannot_be_changed_in_place() -> None:
    values: list[Any] = [
        ChatMessage("user", "x"),
        Message("m", "c", None, 1, "user", "x", 0.0),
        Conversation("c", "", "t", "chat", "", None, 0.0, 0.0),
        ReplyStats(1, 0, 2, 0.0, 0.0, 0.0, 0.0, "stop", "tiny"),
    ]
    for value in values:
        name = dataclasses.fields(value)[0].name
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, name, "changed")
        assert value == dataclasses.replace(value)


def test_a_message_is_complete_and_alone_unless_it_says_otherwise() -> None:
    message = Message("m", "c", None, 1, "user", "x", 0.0)
    assert (message.status, message.stats, message.error, message.siblings) == ("complete", None, "", ())
