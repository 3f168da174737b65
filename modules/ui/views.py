"""What the page is told: values of the other rooms as plain JSON, with every text already safe to show.

Nothing here asks the store or the engine for anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from hashlib import blake2b
from typing import Any

from modules.chat.incognito import is_incognito
from modules.chat.packing import printable as printable
from modules.chat.service import ReplyView
from modules.chat.thinking import Parts, split
from modules.errors import SnugError
from modules.messages import Attachment, Conversation, Message, ReplyStats
from modules.models.state import ModelState
from modules.ui.kept_html import KeptHtml
from modules.ui.markdown import StreamingMarkdown, render, render_modified
from modules.ui.words import format_duration, number, t, texts, tn, told

Json = dict[str, Any]
MAX_HZ = 20  # looks at a running reply
_REPLIES, _MODIFIED = KeptHtml(render), KeptHtml(render_modified)


def problem_view(error: SnugError) -> Json:
    """An error card: what was wrong and what to do."""
    return {"code": error.code, "message": told(error.message), "remedy": told(error.remedy)}


def conversation_view(conversation: Conversation) -> Json:
    """What the page shows of a conversation beside its messages."""
    return {
        "id": conversation.id,
        "incognito": is_incognito(conversation.id),
        "title": printable(conversation.title) or printable(conversation.setup.character) or t("New chat"),
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
        "html": _kept_html(message, parts) if message.role == "assistant" else "",
        "modified": modified_view(message.role, parts, message.modified),
        "thought": thought_view(parts, message.stats),
        "status": message.status,
        "stats": stats_line(message.stats),
        "error": told(printable(message.error)),
        "told": [told(printable(sentence)) for sentence in message.stats.told] if message.stats else [],
        "versions": list(message.siblings),
        "files": [file_view(file) for file in message.attachments],
    }


def file_view(file: Attachment) -> Json:
    """An attached file, without its text."""
    return asdict(file) | {"about": told(file.about), "cut": told(file.cut)}


def shown_html(parts: Parts, modified: str | None) -> str:
    """A reply's answer as HTML, or what extensions have made of it."""
    return render(parts.answer) if modified is None else render_modified(printable(modified))


def _kept_html(message: Message, parts: Parts) -> str:
    """`shown_html` of a message that is shown again and again."""
    if is_incognito(message.id):
        return shown_html(parts, message.modified)
    if message.modified is None:
        return _REPLIES.html(parts.answer, texts().language.code)
    return _MODIFIED.html(printable(message.modified), texts().language.code)


def modified_view(role: str, parts: Parts, modified: str | None) -> Json | None:
    """The other text of a message that extensions have changed, and whose it is; None for one as it was."""
    if modified is None or modified == parts.answer:
        return None
    if role == "user":
        return {"line": t("What the model read"), "text": printable(modified)}
    return {"line": t("As the model wrote it"), "text": printable(parts.answer)}


def thought_view(parts: Parts, stats: ReplyStats | None) -> Json | None:
    """What was thought before the answer, and a line about it; None for nothing."""
    if not parts.thought and not parts.thinking:
        return None
    seconds = stats.thought_s if stats else 0.0
    line = t("Thought for {duration}", duration=format_duration(seconds)) if seconds else t("Thought")
    thinking = parts.thinking and stats is None
    return {"text": parts.thought, "line": t("Thinking") if thinking else line, "thinking": thinking}


def thread_view(
    conversation: Conversation, messages: Sequence[Message], running_id: str | None, *, earlier: int = 0, later: int = 0
) -> Json:
    """A conversation as the page shows it; `head` names what the page has seen, for the next request.

    `earlier` messages stand above these, `later` ones below.
    """
    return {
        "conversation": conversation_view(conversation),
        "head": conversation.head_id,
        "revision": revision(conversation),
        "messages": [message_view(message) for message in messages],
        "earlier": earlier,
        "later": later,
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
        "html": shown_html(parts, reply.modified) if done else "",
        "modified": modified_view("assistant", parts, reply.modified) if done else None,
        "thought": thought_view(parts, reply.stats) if show_text or done else None,
        "waiting": waiting_line(reply),
        "stats": stats_line(reply.stats),
        "notice": told(reply.notice),
        "told": [told(sentence) for sentence in reply.told],
        "problem": problem_view(reply.error) if reply.error else None,
        "reread": reply.reread,
        "revision": revision(reply.conversation) if reply.conversation else None,
    }


def waiting_line(reply: ReplyView) -> str:
    """What a reply waits for before its first token, or before it goes on, in words."""
    if reply.position is not None:
        return t("Waiting, {number} before you", number=reply.position) if reply.position else t("You are next")
    if reply.prefill and reply.prefill[1]:
        done, total = reply.prefill
        reading = t("Reading the conversation: {done} of {total} tokens", done=str(done), total=str(total))
        return reading if done < total else ""
    return ""


def stats_line(stats: ReplyStats | None) -> str:
    """`37 tokens · 41.2 tok/s · 12 of 15 guessed ahead · first token 0.12 s · 512 cached`.

    It says so where the length limit ended the reply.
    """
    if stats is None or not stats.completion_tokens:
        return ""
    parts = [tn("{count} token", "{count} tokens", stats.completion_tokens)]
    if stats.tokens_per_s:
        parts.append(t("{rate} tok/s", rate=number(stats.tokens_per_s, 0 if stats.tokens_per_s >= 100 else 1)))
    if stats.accepted_tokens:
        parts.append(t("{count} of {all} guessed ahead", count=stats.accepted_tokens, all=stats.drafted_tokens))
    parts.append(t("first token {duration}", duration=format_duration(stats.first_token_s)))
    if stats.cached_tokens:
        parts.append(t("{count} cached", count=stats.cached_tokens))
    if stats.finish_reason == "length":
        parts.append(t("length limit reached"))
    return " · ".join(parts)


def model_view(state: ModelState) -> Json:
    """The model in the header: its name, its state, and how far a load is."""
    return {
        "status": state.status,
        "version": state.version,
        "name": state.name,
        "answering": state.info.name if state.info else "",
        "writes": state.info.generates if state.info else True,
        "stage": told(state.progress.stage) if state.progress else "",
        "fraction": state.progress.fraction if state.progress else 0.0,
        "problem": problem_view(state.error) if state.error else None,
    }
