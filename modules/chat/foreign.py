"""Other programs' conversations → trees: text-generation-webui, SillyTavern, ShareGPT, OpenAI's messages, ChatGPT.

Each reader takes parsed JSON that may say anything, and raises Unreadable with what is wrong. What Snug has no place
for (pictures, calls of tools) is left out and counted in a note.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from modules.chat.trees import Tree, TreeMessage
from modules.messages import Role

Json = dict[str, Any]
MOST_MESSAGES = 50_000  # of one conversation, versions too: it is stored in two seconds, in which nobody else writes
GREETED = "<|BEGIN-VISIBLE-CHAT|>"  # text-generation-webui's question before a greeting
ROLES: dict[str, Role] = {
    "human": "user", "user": "user", "prompter": "user",
    "gpt": "assistant", "assistant": "assistant", "model": "assistant", "bot": "assistant", "chatgpt": "assistant",
    "bing": "assistant", "bard": "assistant", "system": "system", "developer": "system",
}  # fmt: skip
TIMES = ("%b %d, %Y %H:%M", "%Y-%m-%dT%H:%M:%S.%fZ", "%Y-%m-%dT%H:%M:%SZ", "%B %d, %Y %I:%M%p", "%Y-%m-%d @%Hh %Mm %Ss")

_LONGEST_TIME = 60  # characters


class Unreadable(ValueError):
    """Why a conversation of a file cannot be read, as a sentence for people."""


@dataclass(frozen=True, slots=True)
class Draft:
    """A conversation that was read, and sentences about what was left out of it."""

    tree: Tree
    notes: tuple[str, ...] = ()


@dataclass(slots=True)
class _Growing:
    """A tree while it is read."""

    messages: list[TreeMessage] = field(default_factory=list)
    system: list[str] = field(default_factory=list)
    left_out: int = 0
    head: int | None = None

    def add(self, role: Role, content: str, created_at: float | None = None, *, below: int | None) -> int:
        """A message below another one, None at the root. Its place; it is the head."""
        if len(self.messages) >= MOST_MESSAGES:
            raise Unreadable(f"It has more than {MOST_MESSAGES:,} messages.")
        self.messages.append(TreeMessage(below, role, content, created_at))
        self.head = len(self.messages) - 1
        return self.head

    def say(self, role: str | None, content: str | None, created_at: float | None = None) -> None:
        """The next message of a conversation without versions; what the system says first is its prompt."""
        known = ROLES.get(role or "")
        if known is None or content is None or (known == "system" and self.messages):
            self.left_out += 1
        elif known == "system":
            self.system.append(content)
        else:
            self.add(known, content, created_at, below=self.head)

    def draft(self, *, title: object = "", created_at: float | None = None, updated_at: float | None = None) -> Draft:
        """The whole. Raises Unreadable without a message."""
        if not self.messages:
            raise Unreadable("There is no message in it.")
        times = [message.created_at for message in self.messages if message.created_at is not None]
        created_at = created_at if created_at is not None else min(times, default=None)
        updated_at = updated_at if updated_at is not None else max(times, default=None)
        named = title.strip()[:200] if isinstance(title, str) else ""
        tree = Tree(
            title=named, renamed=bool(named), messages=tuple(self.messages), head=self.head,
            system_prompt="\n\n".join(text for text in self.system if text.strip()),
            created_at=created_at, updated_at=updated_at,
        )  # fmt: skip
        plural = "s" if self.left_out > 1 else ""
        note = f"{self.left_out} part{plural} without text of a person or a model (tools, pictures) left out."
        return Draft(tree, (note,) if self.left_out else ())


def read(value: Any) -> Draft | None:
    """One conversation of any of the shapes, None if it has none of them."""
    if is_messages(value):
        return openai({"messages": value})
    if not isinstance(value, dict):
        return None
    for key, reader in (
        ("mapping", chatgpt), ("internal", webui), ("data", webui), ("conversations", sharegpt), ("messages", openai),
        ("conversation", sharegpt),
    ):  # fmt: skip
        if key in value:
            return reader(value)
    return None


def is_messages(value: Any) -> bool:
    """Whether this is a bare list of messages: OpenAI's or ShareGPT's."""
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict) and _role(value[0]) is not None


def webui(value: Json) -> Draft:
    """A history of text-generation-webui: pairs, and in newer ones times and versions beside them."""
    pairs = value["internal"] if "internal" in value else value["data"]
    if not isinstance(pairs, list):
        raise Unreadable("“internal” is no list of pairs.")
    metadata = value.get("metadata")
    growing = _Growing()
    for number, pair in enumerate(pairs):
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)):
            raise Unreadable(f"Pair {number + 1} of “internal” is not two texts.")
        question, answer = pair
        about = {role: _entry(metadata, f"{role}_{number}") for role in ("user", "assistant")}
        if question and question != GREETED:
            growing.add("user", question, _time(about["user"].get("timestamp")), below=growing.head)
        _versions(growing, answer, about["assistant"])
    return growing.draft()


def _versions(growing: _Growing, answer: str, about: Json) -> None:
    """A reply of text-generation-webui with its other versions; the one of the pair is on show."""
    below, shown = growing.head, answer
    versions = about.get("versions")
    others = [version for version in versions if isinstance(version, dict)] if isinstance(versions, list) else []
    texts = [(version.get("content"), _time(version.get("timestamp"))) for version in others]
    kept = [(text, at) for text, at in texts if isinstance(text, str) and text]
    if shown not in [text for text, _ in kept]:
        kept.append((shown, _time(about.get("timestamp"))))
    head = growing.head
    for text, at in kept:
        if text:
            place = growing.add("assistant", text, at, below=below)
            head = place if text == shown else head
    growing.head = head


def is_sillytavern(first: Any) -> bool:
    """Whether this is the first line of a chat of SillyTavern."""
    return isinstance(first, dict) and "mes" not in first and ("chat_metadata" in first or "character_name" in first)


def sillytavern(first: Json, lines: Iterable[Any]) -> Draft:
    """A chat of SillyTavern: `first` says who talks, then comes a message a line, its versions as swipes."""
    growing = _Growing()
    for line in lines:
        if not isinstance(line, dict) or not isinstance(line.get("mes"), str):
            raise Unreadable("A line holds no message.")
        if line.get("is_system"):
            growing.left_out += 1
            continue
        role: Role = "user" if line.get("is_user") else "assistant"
        at, below = _time(line.get("send_date")), growing.head
        swipes = line.get("swipes")
        others = [text for text in swipes if isinstance(text, str)] if isinstance(swipes, list) else []
        shown = None
        for text in others if line["mes"] in others else [*others, line["mes"]]:
            place = growing.add(role, text, at, below=below)
            shown = place if text == line["mes"] and shown is None else shown
        growing.head = shown
    name = first.get("character_name")
    return growing.draft(title=f"Chat with {name}" if isinstance(name, str) and name else "")


def sharegpt(value: Json) -> Draft:
    """ShareGPT: {"conversations": [{"from": "human", "value": "…"}]}."""
    turns = value["conversations"] if "conversations" in value else value["conversation"]
    if not isinstance(turns, list):
        raise Unreadable("“conversations” is no list of messages.")
    growing = _Growing()
    if isinstance(value.get("system"), str):
        growing.system.append(value["system"])
    for turn in _turns(turns):
        growing.say(_role(turn), _text(turn.get("value", turn.get("content"))))
    return growing.draft(title=value.get("title"))


def openai(value: Json) -> Draft:
    """Messages as OpenAI's API takes them: {"messages": [{"role": "user", "content": "…"}]}."""
    if not isinstance(value["messages"], list):
        raise Unreadable("“messages” is no list of messages.")
    growing = _Growing()
    for turn in _turns(value["messages"]):
        growing.say(_role(turn), _text(turn.get("content", turn.get("value"))), _time(turn.get("created_at")))
    return growing.draft(
        title=value.get("title"), created_at=_time(value.get("created_at")), updated_at=_time(value.get("updated_at"))
    )


def chatgpt(value: Json) -> Draft:
    """One entry of ChatGPT's conversations.json: a tree of nodes, of which some say nothing."""
    nodes = value["mapping"]
    if not isinstance(nodes, dict) or not all(isinstance(node, dict) for node in nodes.values()):
        raise Unreadable("“mapping” is no tree of messages.")
    growing = _Growing()
    places: dict[Any, int | None] = {}
    children: dict[Any, list[str]] = {}
    for ident, node in nodes.items():
        parent = node.get("parent")
        children.setdefault(parent if isinstance(parent, str) and parent in nodes else None, []).append(ident)
    waiting: list[tuple[str, int | None]] = [(ident, None) for ident in reversed(children.get(None, []))]
    while waiting:
        ident, below = waiting.pop()
        place = _node(growing, nodes[ident].get("message"), below)
        places[ident] = place
        waiting += [(child, place) for child in reversed(children.get(ident, []))]
    current = places.get(str(value.get("current_node")))
    growing.head = current if current is not None else growing.head
    if len(places) < len(nodes):
        raise Unreadable("Its messages answer each other in a circle.")
    return growing.draft(
        title=value.get("title"), created_at=_time(value.get("create_time")), updated_at=_time(value.get("update_time"))
    )


def _node(growing: _Growing, message: Any, below: int | None) -> int | None:
    """Add a node's message; the place that its children answer."""
    if not isinstance(message, dict):
        return below
    content, metadata = message.get("content"), message.get("metadata")
    hidden = isinstance(metadata, dict) and metadata.get("is_visually_hidden_from_conversation")
    role = ROLES.get(str(_entry(message, "author").get("role")))
    text = _text(content.get("parts", content.get("text"))) if isinstance(content, dict) else None
    if role == "system" or hidden:
        return below
    aside = isinstance(content, dict) and content.get("content_type") not in ("text", "multimodal_text")
    if role is None or not text or aside or message.get("recipient") not in (None, "all"):
        growing.left_out += bool(text or role is None)
        return below
    return growing.add(role, text, _time(message.get("create_time")), below=below)


def _turns(turns: list[Any]) -> Iterable[Json]:
    for number, turn in enumerate(turns, start=1):
        if not isinstance(turn, dict):
            raise Unreadable(f"Message {number} is no object.")
        if _role(turn) is None:
            raise Unreadable(f"Message {number} does not say who speaks.")
        yield turn


def _role(turn: Json) -> str | None:
    role = turn.get("role", turn.get("from"))
    return role.strip().lower() if isinstance(role, str) else None


def _text(content: Any) -> str | None:
    """The text of a message: itself, or the parts of a list that are text. None if there is none."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return None
    texts = [
        part if isinstance(part, str) else part.get("text") if isinstance(part, dict) else None for part in content
    ]
    found = [text for text in texts if isinstance(text, str) and text]
    return "\n\n".join(found) or None


def _entry(value: Any, key: str) -> Json:
    found = value.get(key) if isinstance(value, dict) else None
    return found if isinstance(found, dict) else {}


def _time(value: Any) -> float | None:
    """Seconds since 1970 of a number or of a date as these programs write it; None if it is neither."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        seconds = float(value) / (1000 if abs(value) > 1e11 else 1) if abs(value) < 1e14 else math.nan
        return seconds if math.isfinite(seconds) and seconds >= 0 else None
    if not isinstance(value, str) or len(value) > _LONGEST_TIME:
        return None
    for form in TIMES:
        try:
            moment = datetime.strptime(value.strip(), form)
        except ValueError:
            continue
        if 1970 < moment.year < 3000:
            return (moment.replace(tzinfo=UTC) if form.endswith("Z") else moment).timestamp()
    return None
