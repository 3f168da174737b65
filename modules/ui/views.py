"""What the page is told: values of the other rooms as plain JSON, with every text already safe to show.

Nothing here asks the store or the engine for anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from hashlib import blake2b
from typing import Any

from modules.chat.incognito import is_incognito
from modules.chat.service import ReplyView
from modules.chat.thinking import Parts, split
from modules.errors import SnugError
from modules.messages import Conversation, Message, ReplyStats
from modules.models.state import ModelState
from modules.ui.markdown import StreamingMarkdown, render
from modules.units import format_duration

Json = dict[str, Any]
MAX_HZ = 20  # looks at a running reply


def problem_view(error: SnugError) -> Json:
    """An error card: what was wrong and what to do."""
    return {"code": error.code, "message": error.message, "remedy": error.remedy}


def conversation_view(conversation: Conversation) -> Json:
    """What the page shows of a conversation beside its messages."""
    return {
        "id": conversation.id,
        "incognito": is_incognito(conversation.id),
        "title": printable(conversation.title) or printable(conversation.setup.character) or "New chat",
        "system_prompt": printable(conversation.system_prompt),
        "updated_at": conversation.updated_at,
        "setup": {name: printable(value) for name, value in asdict(conversation.setup).items()},
    }


def revision(*conversations: Conversation) -> str:
    """Another text after every change of these conversations, of their messages, or of which they are."""
    seen = repr(
        [(item.id, item.title, item.system_prompt, item.head_id, item.updated_at, item.setup) for item in conversations]
    )
    return blake2b(seen.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()


def message_view(message: Message) -> Json:
    """One message: its text to edit, its answer to copy, its HTML to show, its thought to fold away."""
    text = printable(message.content)
    parts = split(text) if message.role == "assistant" else Parts("", text)
    return {
        "id": message.id,
        "role": message.role,
        "text": text,
        "answer": parts.answer,
        "html": render(parts.answer) if message.role == "assistant" else "",
        "thought": thought_view(parts, message.stats),
        "status": message.status,
        "stats": stats_line(message.stats),
        "error": printable(message.error),
        "told": [printable(told) for told in message.stats.told] if message.stats else [],
        "versions": list(message.siblings),
    }


def thought_view(parts: Parts, stats: ReplyStats | None) -> Json | None:
    """What was thought before the answer, and a line about it; None for nothing."""
    if not parts.thought and not parts.thinking:
        return None
    seconds = stats.thought_s if stats else 0.0
    line = f"Thought for {format_duration(seconds)}" if seconds else "Thought"
    return {"text": parts.thought, "line": "Thinking" if parts.thinking and stats is None else line}


def thread_view(conversation: Conversation, messages: Sequence[Message], running_id: str | None) -> Json:
    """A conversation as the page shows it; `head` names what the page has seen, for the next request."""
    return {
        "conversation": conversation_view(conversation),
        "head": conversation.head_id,
        "revision": revision(conversation),
        "messages": [message_view(message) for message in messages],
        "running": running_id,
    }


def live_view(reply: ReplyView, markdown: StreamingMarkdown, *, show_text: bool = True) -> Json:
    """One look at a running reply. `blocks` only grows; `tail` is written anew each time."""
    done = reply.finished
    text = printable(reply.text)
    parts = split(text)
    blocks, tail = markdown.update(parts.answer if show_text or done else "")
    return {
        "id": reply.message_id,
        "blocks": blocks,
        "tail": tail,
        "done": done,
        "status": reply.status,
        "text": text if done else "",
        "answer": parts.answer if done else "",
        "html": render(parts.answer) if done else "",
        "thought": thought_view(parts, reply.stats) if show_text or done else None,
        "waiting": waiting_line(reply),
        "stats": stats_line(reply.stats),
        "notice": reply.notice,
        "told": list(reply.told),
        "problem": problem_view(reply.error) if reply.error else None,
        "revision": revision(reply.conversation) if reply.conversation else None,
    }


def notebook_view(before: str, reply: ReplyView, *, show_text: bool = True) -> Json:
    """One look at a running completion of `before`. `text` is the whole, None where it is not to be shown yet."""
    done = reply.finished
    return {
        "id": reply.message_id,
        "text": printable(before + reply.text) if show_text or done else None,
        "done": done,
        "stats": stats_line(reply.stats),
        "waiting": waiting_line(reply),
        "told": list(reply.told),
        "problem": problem_view(reply.error) if reply.error else None,
    }


def printable(text: str) -> str:
    """`text` as UTF-8 can carry it: halves of characters become the replacement character."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def waiting_line(reply: ReplyView) -> str:
    """What a reply waits for before its first token, in words."""
    if reply.position is not None:
        return f"Waiting, {reply.position} before you" if reply.position else "You are next"
    if reply.prefill and reply.prefill[1]:
        done, total = reply.prefill
        return f"Reading the conversation: {done} of {total} tokens" if done < total else ""
    return ""


def stats_line(stats: ReplyStats | None) -> str:
    """`37 tokens · 41.2 tok/s · 12 of 15 guessed ahead · first token 0.12 s · 512 cached`.

    It says so where the length limit ended the reply.
    """
    if stats is None or not stats.completion_tokens:
        return ""
    parts = [f"{stats.completion_tokens} token{'s' if stats.completion_tokens > 1 else ''}"]
    if stats.tokens_per_s:
        parts.append(f"{stats.tokens_per_s:,.{0 if stats.tokens_per_s >= 100 else 1}f} tok/s")
    if stats.accepted_tokens:
        parts.append(f"{stats.accepted_tokens} of {stats.drafted_tokens} guessed ahead")
    parts.append(f"first token {format_duration(stats.first_token_s)}")
    if stats.cached_tokens:
        parts.append(f"{stats.cached_tokens} cached")
    if stats.finish_reason == "length":
        parts.append("length limit reached")
    return " · ".join(parts)


def model_view(state: ModelState) -> Json:
    """The model in the header: its name, its state, and how far a load is."""
    return {
        "status": state.status,
        "version": state.version,
        "name": state.name,
        "answering": state.info.name if state.info else "",
        "stage": state.progress.stage if state.progress else "",
        "fraction": state.progress.fraction if state.progress else 0.0,
        "problem": problem_view(state.error) if state.error else None,
    }
