"""What people do in a conversation: ask, regenerate, continue, stop, edit, delete; and complete a notebook's text.

A question is stored before anything else happens. Its reply is then written in the background, whether a tab looks on
or not, and found again by `running`. While a conversation has a running reply, nothing else in it can change.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from uuid import uuid4

from modules.characters.library import People
from modules.chat.casting import cast_of, history_of
from modules.chat.forms import Form, Speaker
from modules.chat.prompts import BuiltPrompt, Prompts
from modules.chat.running import ReplyView, RunningReply
from modules.chat.store import Store
from modules.chat.writing import Outcome, Task, Writer
from modules.engine.host.host import EngineHost
from modules.errors import BadCharacter, BadName, BadValue, Busy, NotFound, StaleView
from modules.extensions import Extensions
from modules.messages import ChatMessage, Conversation, Message, Setup
from modules.models.manager import ModelManager
from modules.sampling import GenerationParams

__all__ = ["NOTEBOOK", "ChatService", "ReplyView", "RunningReply"]

NOTEBOOK = "notebook"  # where `running` finds an owner's notebook completion; no conversation has this id
SHUTDOWN_S = 5.0
LORE_SHARE = 4  # of the context, at most, goes to a lorebook that names no budget
LORE_TOKENS = 1024  # where nobody knows the context


class ChatService:
    """The conversations of all owners in action. Every method may be called from any thread."""

    def __init__(
        self,
        models: ModelManager,
        store: Store,
        prompts: Prompts,
        extensions: Extensions | None = None,
        people: People | None = None,
    ) -> None:
        self._models = models
        self._store = store
        self._prompts = prompts
        self._extensions = extensions or Extensions(Path("extensions"))
        self._people = people or People.of(Path("characters"), Path("user_data"))
        self._lock = threading.RLock()  # held while a reply starts or a conversation changes, never while one runs
        self._writers: dict[tuple[str, str], Writer] = {}
        self._closed = False

    def reply(
        self,
        owner: str,
        conversation_id: str,
        parent_id: str | None,
        text: str,
        params: GenerationParams,
        *,
        op_id: str,
    ) -> RunningReply:
        """Store a question below `parent_id` (None: as a first one) and start its reply.

        The same `op_id` again starts nothing and returns the same reply. Raises BadValue for an empty text, Busy,
        StaleView if what it answers is gone, StoreFailed. Whatever the model does wrong is told by the reply.
        """
        if not text.strip():
            raise BadValue("The message is empty.", remedy="Write something.", param="text")
        with self._lock:
            if earlier := self._replayed(owner, conversation_id, op_id):
                return earlier
            with self._changing(owner, conversation_id):
                question = self._store.append(owner, conversation_id, parent_id, "user", text, op_id=op_id)
                return self._answer(owner, conversation_id, question.id, params, op_id=_reply_op(op_id))

    def regenerate(self, owner: str, conversation_id: str, message_id: str, params: GenerationParams) -> RunningReply:
        """Start another version of a reply, or the reply to a question that has none.

        Raises NotFound, Busy, BadValue for a reply to nothing, StoreFailed.
        """
        with self._changing(owner, conversation_id):
            message = self._message(owner, conversation_id, message_id)
            question = message.id if message.role == "user" else message.parent_id
            if question is None:
                raise BadValue("This message answers no question.", remedy="Regenerate a reply.", param="message_id")
            return self._answer(owner, conversation_id, question, params, op_id=uuid4().hex)

    def continue_reply(
        self, owner: str, conversation_id: str, message_id: str, params: GenerationParams
    ) -> RunningReply:
        """Go on with the last reply where it ended, in the same message.

        Raises NotFound, Busy, BadValue for a question, StaleView if other messages follow, StoreFailed.
        """
        with self._changing(owner, conversation_id):
            message = self._message(owner, conversation_id, message_id)
            if message.role != "assistant":
                raise BadValue("Only a reply can be continued.", remedy="Regenerate it.", param="message_id")
            if message.parent_id is None:
                raise BadValue("A greeting cannot be continued.", remedy="Answer it, or edit it.", param="message_id")
            if self._store.get(owner, conversation_id).head_id != message.id:
                raise StaleView("Other messages follow this one now.", remedy="Reload the conversation.")
            self._store.reopen(owner, message.id)
            build = partial(self._continued, owner, message, params)
            task = Task(
                owner,
                params,
                build,
                _InStore(self._store, message.id),
                not message.content,
                self._extensions.modify_output,
            )
            return self._start((owner, conversation_id), task, message.id, message.content)

    def begin(self, owner: str, setup: Setup) -> Conversation:
        """A new conversation with a character, its greetings in place. Raises NotFound, BadCharacter, StoreFailed."""
        new = Conversation("", owner, "", "chat", "", None, 0, 0, setup)
        return self._store.create(owner, setup=setup, greetings=self.greetings(new))

    def greetings(self, conversation: Conversation) -> tuple[str, ...]:
        """With what a conversation's character begins. Raises NotFound, BadCharacter."""
        return cast_of(conversation, self._people).greetings

    def set_setup(self, owner: str, conversation_id: str, setup: Setup) -> Conversation:
        """Change how the model is asked, from the next reply on. Raises NotFound, BadCharacter, Busy, StoreFailed."""
        with self._changing(owner, conversation_id):
            conversation = self._store.get(owner, conversation_id)
            before = conversation.setup
            if (setup.character, setup.persona) != (before.character, before.persona):
                named = replace(
                    setup,
                    character="" if setup.character == before.character else setup.character,
                    persona="" if setup.persona == before.persona else setup.persona,
                )
                cast_of(replace(conversation, setup=named), self._people)  # what it had may be gone, and stays told so
            return self._store.set_setup(owner, conversation_id, setup)

    def impersonate(
        self, owner: str, conversation_id: str, parent_id: str | None, text: str, params: GenerationParams
    ) -> RunningReply:
        """Let the model write the user's next message, which begins with `text`; nothing of it is stored.

        Found by `running(owner, impersonation(conversation_id))`. Raises Busy while one is being written already.
        """
        key = owner, impersonation(conversation_id)
        with self._changing(*key):
            self._store.get(owner, conversation_id)

            def build(engine: EngineHost) -> BuiltPrompt:
                return self._build(owner, conversation_id, parent_id, params, engine, text or None, speaker="user")

            task = Task(owner, params, build, _Nowhere(), trim_start=not text)
            return self._start(key, task, f"{key[1]}-{uuid4().hex}", text)

    def complete(self, owner: str, text: str, params: GenerationParams) -> RunningReply:
        """Keep a notebook's text and start its continuation; the reply's text is what is added.

        Raises Busy while the owner's last one runs, StoreFailed.
        """
        with self._changing(owner, NOTEBOOK):
            self._store.save_notebook(owner, text)

            def build(engine: EngineHost) -> BuiltPrompt:
                return self._prompts.completion(engine, text, max_new_tokens=params.max_new_tokens, truncate=True)

            task = Task(owner, params, build, _InNotebook(self._store, owner, text), trim_start=False)
            return self._start((owner, NOTEBOOK), task, f"{NOTEBOOK}-{uuid4().hex}", "")

    def running(self, owner: str, conversation_id: str) -> RunningReply | None:
        """The reply that is being written in a conversation (or NOTEBOOK), None if there is none."""
        writer = self._writers.get((owner, conversation_id))
        return writer.reply if writer else None

    def stop(self, owner: str, message_id: str) -> None:
        """End one reply within a token; its text stays. One that ended already, or is another's, is left alone."""
        for (holder, _), writer in tuple(self._writers.items()):
            if holder == owner and writer.reply.message_id == message_id:
                writer.stop()

    def edit(self, owner: str, conversation_id: str, message_id: str, content: str) -> Message:
        """Replace a message's text. Raises NotFound, Busy, StoreFailed."""
        with self._changing(owner, conversation_id):
            self._message(owner, conversation_id, message_id)
            return self._store.edit(owner, message_id, content)

    def delete_message(self, owner: str, conversation_id: str, message_id: str) -> Conversation:
        """Delete a message and all that follows it. Raises NotFound, Busy, StoreFailed."""
        with self._changing(owner, conversation_id):
            self._message(owner, conversation_id, message_id)
            return self._store.delete_message(owner, message_id)

    def delete_last(self, owner: str, conversation_id: str) -> Message | None:
        """Delete the last question on show with its replies; returns it, so that its text can be written anew.

        Without a question the last message goes; None if there is none. Raises NotFound, Busy, StoreFailed.
        """
        with self._changing(owner, conversation_id):
            path = self._store.path(owner, conversation_id)
            if not path:
                return None
            last = path[-2] if len(path) > 1 and path[-1].role == "assistant" and path[-2].role == "user" else path[-1]
            self._store.delete_message(owner, last.id)
            return last

    def restore_message(self, owner: str, conversation_id: str, message_id: str) -> Conversation:
        """Bring a deleted message back with all that followed it.

        Raises NotFound, Busy, StoreFailed, StaleView if what it followed is gone too.
        """
        with self._changing(owner, conversation_id):
            return self._store.shelf.restore(owner, message_id)

    def branch(self, owner: str, conversation_id: str, message_id: str) -> Conversation:
        """A new conversation that begins as this one does, down to a message. Raises NotFound, Busy, StoreFailed."""
        with self._changing(owner, conversation_id):
            self._message(owner, conversation_id, message_id)
            return self._store.shelf.branch(owner, message_id)

    def delete_conversation(self, owner: str, conversation_id: str) -> None:
        """Delete a conversation. Raises NotFound, Busy, StoreFailed."""
        with self._changing(owner, conversation_id):
            self._store.delete(owner, conversation_id)

    def shutdown(self, timeout_s: float = SHUTDOWN_S) -> None:
        """End every running reply as "interrupted", its text kept, within `timeout_s`; refuse new ones."""
        with self._lock:
            self._closed = True
            writers = tuple(self._writers.values())
        deadline = time.monotonic() + timeout_s
        for writer in writers:
            threading.Thread(target=writer.interrupt, name="interrupt", daemon=True).start()
        for writer in writers:
            writer.join(deadline - time.monotonic())

    @contextmanager
    def _changing(self, owner: str, conversation_id: str) -> Iterator[None]:
        """The right to change a conversation; no reply can start or end a change meanwhile."""
        with self._lock:
            if self._closed:
                raise Busy("Snug is shutting down.", remedy="Start it again.")
            if (owner, conversation_id) in self._writers:
                raise Busy("A reply is being written here.", remedy="Wait until it is complete, or stop it.")
            yield

    def _replayed(self, owner: str, conversation_id: str, op_id: str) -> RunningReply | None:
        """The reply that this operation started before."""
        earlier = self._store.find_op(owner, conversation_id, _reply_op(op_id))
        if earlier is None:
            return None
        running = self.running(owner, conversation_id)
        return running if running and running.message_id == earlier.id else RunningReply.of(earlier)

    def _answer(
        self, owner: str, conversation_id: str, question_id: str, params: GenerationParams, *, op_id: str
    ) -> RunningReply:
        """Start a new reply below a question."""
        start = self.reply_start(self._store.get(owner, conversation_id))
        message = self._store.append(
            owner, conversation_id, question_id, "assistant", start, op_id=op_id, status="streaming"
        )
        build = partial(self._build, owner, conversation_id, question_id, params, reply_start=start or None)
        keeper = _InStore(self._store, message.id)
        task = Task(owner, params, build, keeper, not start, self._extensions.modify_output)
        return self._start((owner, conversation_id), task, message.id, start)

    def reply_start(self, conversation: Conversation) -> str:
        """What a conversation's replies begin with; a character that is gone is told by the reply instead."""
        try:
            return cast_of(conversation, self._people).reply_start
        except (NotFound, BadCharacter, BadName):
            return ""

    def _start(self, key: tuple[str, str], task: Task, message_id: str, text: str) -> RunningReply:
        writer = Writer(self._models, task, message_id, text, partial(self._forget, key))
        self._writers[key] = writer
        writer.start()
        return writer.reply

    def _forget(self, key: tuple[str, str], writer: Writer) -> None:
        if self._writers.get(key) is writer:
            del self._writers[key]
        self._store.backup_if_due()

    def _message(self, owner: str, conversation_id: str, message_id: str) -> Message:
        message = self._store.message(owner, message_id)
        if message.conversation_id != conversation_id:
            raise NotFound("There is no such message in this conversation.", remedy="Reload the conversation.")
        return message

    def _build(
        self,
        owner: str,
        conversation_id: str,
        last_id: str | None,
        params: GenerationParams,
        engine: EngineHost,
        reply_start: str | None = None,
        *,
        speaker: Speaker = "assistant",
    ) -> BuiltPrompt:
        """The prompt for a reply to the messages down to `last_id`.

        Raises what `cast_of` and Prompts.chat raise.
        """
        turns, form, _ = self.turns(self._store.get(owner, conversation_id), last_id, engine)
        return self._prompts.chat(
            engine,
            turns,
            max_new_tokens=params.max_new_tokens,
            reply_start=reply_start,
            truncate=True,
            form=replace(form, speaker=speaker, closing="" if speaker == "user" else form.closing),
        )

    def turns(
        self, conversation: Conversation, last_id: str | None, engine: EngineHost, *, draft: str = ""
    ) -> tuple[list[ChatMessage], Form, list[str]]:
        """What is told to the model, the form of it, and the ids of the messages in it; a `draft` comes after them.

        The conversation need not be stored. Raises what `cast_of` raises.
        """
        cast = cast_of(conversation, self._people)
        said = history_of(self._store.path_to(conversation.owner, last_id) if last_id else [], self._read)
        history = [turn for _, turn in said]
        if draft.strip():
            history.append(ChatMessage("user", self._extensions.modify_input(draft)))
        count, budget = partial(self._prompts.length, engine), engine.info.context_tokens // LORE_SHARE or LORE_TOKENS
        form = cast.form(cast.setup.template or engine.info.chat_template, history, count, budget)
        return cast.turns(history, count, budget), form, [ident for ident, _ in said]

    def _read(self, message: Message) -> str:
        """What the model is to read of a message."""
        return self._extensions.modify_input(message.content) if message.role == "user" else message.content

    def _continued(self, owner: str, message: Message, params: GenerationParams, engine: EngineHost) -> BuiltPrompt:
        return self._build(owner, message.conversation_id, message.parent_id, params, engine, message.content)


@dataclass(frozen=True, slots=True)
class _InStore:
    """Keeps a reply in its message."""

    store: Store
    message_id: str

    def journal(self, text: str) -> None:
        """As Keeper."""
        self.store.journal(self.message_id, text)

    def finish(self, text: str, outcome: Outcome) -> Conversation:
        """As Keeper."""
        error = str(outcome.error) if outcome.error else ""
        return self.store.finish(self.message_id, text, outcome.status, outcome.stats, error)


@dataclass(frozen=True, slots=True)
class _InNotebook:
    """Keeps a completion behind the text that it completes."""

    store: Store
    owner: str
    before: str

    def journal(self, text: str) -> None:
        """As Keeper."""
        self.store.save_notebook(self.owner, self.before + text, durable=False)

    def finish(self, text: str, _: Outcome) -> None:
        """As Keeper; a notebook remembers its text alone."""
        self.store.save_notebook(self.owner, self.before + text)


@dataclass(frozen=True, slots=True)
class _Nowhere:
    """Keeps nothing: what is written is the page's to keep."""

    def journal(self, text: str) -> None:
        """As Keeper."""

    def finish(self, text: str, outcome: Outcome) -> None:
        """As Keeper."""


def impersonation(conversation_id: str) -> str:
    """Where `running` finds the user's message that the model is writing for a conversation."""
    return f"impersonation {conversation_id}"


def _reply_op(op_id: str) -> str:
    """The operation that makes the reply to what `op_id` makes."""
    return f"{op_id}/reply"
