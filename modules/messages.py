"""What a conversation is made of: values only. chat/store.py keeps them, chat/service.py makes them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Role = Literal["system", "user", "assistant"]
MessageStatus = Literal["complete", "streaming", "stopped", "interrupted", "error"]
Mode = Literal["chat", "notebook"]
FileKind = Literal["text", "pdf", "docx", "picture"]
PictureType = Literal["image/png", "image/jpeg"]
Manner = Literal["instruct", "chat", "chat-instruct"]


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture as a model that sees gets it: drawn anew by Snug, upright, without anything beside its pixels.

    `data` is the file, b"" while only the size matters: what a picture costs follows from its size alone. `source` is
    the attachment that it is kept as, "" where it is not kept.
    """

    width: int
    height: int
    media_type: PictureType = "image/png"
    data: bytes = field(default=b"", repr=False)
    source: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool that a model asked for. `arguments` is JSON text as the model wrote it, mostly of an object."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One turn as a model sees it; its pictures stand before its text.

    `tool_calls` are what an assistant asked for; the result of each is a message of role "tool" with the `call_id` that
    it answers, and the `tool`'s name.
    """

    role: Role | Literal["tool"]
    content: str
    pictures: tuple[Picture, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()
    call_id: str = ""
    tool: str = ""


@dataclass(frozen=True, slots=True)
class ReplyStats:
    """How one reply went. Times in seconds; `dropped_messages` lay outside the model's context.

    `drafted_tokens` were guessed ahead, `accepted_tokens` of them rightly. `told` are sentences about what the engine
    had to give up for it. `thought_s` went by before a thinking model began its answer.
    """

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    queue_s: float
    prefill_s: float
    first_token_s: float
    tokens_per_s: float
    finish_reason: str
    model: str
    dropped_messages: int = 0
    told: tuple[str, ...] = ()
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    thought_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Attachment:
    """A file that came with a message, as Snug keeps it: its text, or a picture drawn anew, never the file itself.

    `size_bytes` is the file's, `characters` the length of the text. `about` says what it is ("PDF, 12 pages"), `cut`
    in a sentence what was left out of it, "" for nothing. `width` and `height` are those of a picture, else 0.
    """

    id: str
    name: str
    kind: FileKind
    size_bytes: int
    characters: int
    about: str
    cut: str = ""
    width: int = 0
    height: int = 0


@dataclass(frozen=True, slots=True)
class Message:
    """One stored message: a node of its conversation's tree. `sequence` orders siblings and never repeats.

    `siblings` holds the ids of all versions at this place, this one included, in order. `modified` is what extensions
    made of the content: of a question what the model reads, of a reply what the page shows; None where they did not.
    """

    id: str
    conversation_id: str
    parent_id: str | None
    sequence: int
    role: Role
    content: str
    created_at: float
    status: MessageStatus = "complete"
    stats: ReplyStats | None = None
    error: str = ""
    siblings: tuple[str, ...] = ()
    attachments: tuple[Attachment, ...] = ()
    modified: str | None = None


@dataclass(frozen=True, slots=True)
class Excerpt:
    """Some of a conversation's messages; `earlier` ones stand above them, `later` ones below."""

    earlier: int
    messages: list[Message]
    later: int


@dataclass(frozen=True, slots=True)
class Setup:
    """How the model is asked in one conversation; "" is always the usual way.

    `manner` is text-generation-webui's mode. `character` and `persona` are ids, `command` is what chat-instruct tells
    the model, `template` stands in place of the model's own, `reply_start` begins every reply, `thinking` is one of
    the choices that the template offers.
    """

    manner: Manner = "instruct"
    character: str = ""
    persona: str = ""
    command: str = ""
    template: str = ""
    reply_start: str = ""
    thinking: str = ""


USUAL = Setup()


@dataclass(frozen=True, slots=True)
class Conversation:
    """A titled tree of messages; `head_id` is the newest message of the branch on show, None while empty.

    `folder_id` names the folder that holds it, None where none does.
    """

    id: str
    owner: str
    title: str
    mode: Mode
    system_prompt: str
    head_id: str | None
    created_at: float
    updated_at: float
    setup: Setup = USUAL
    pinned: bool = False
    folder_id: str | None = None
