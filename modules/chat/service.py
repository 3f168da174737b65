"""What people do in a conversation: ask, regenerate, continue, stop, edit, delete. The notebook's is notebook.py's.

A question is stored before anything else happens. Its reply is then written in the background, whether a tab looks on
or not, and found again by `running`. While a conversation has a running reply, nothing else in it can change.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from uuid import uuid4

from modules.characters.library import Library
from modules.chat.attached import pictures_of
from modules.chat.attaching import ToldFile, tell, with_files
from modules.chat.casting import cast_of, history_of
from modules.chat.forms import Form, Speaker
from modules.chat.modifying import Part
from modules.chat.modifying_elsewhere import AsidePart, TextPart
from modules.chat.prompts import BuiltPrompt, Prompts
from modules.chat.running import ReplyView, RunningReply
from modules.chat.store import Store
from modules.chat.trees import MOST_CHARACTERS, too_long
from modules.chat.writing import Outcome, Task, Writer
from modules.engine.host.host import EngineHost
from modules.engine.intake import check_generates
from modules.errors import BadCharacter, BadName, BadValue, Busy, ContextLengthExceeded, NotFound, QueueFull, StaleView
from modules.extensions.manager import Extensions
from modules.messages import Attachment, ChatMessage, Conversation, Message, Setup
from modules.models.manager import ModelManager
from modules.on_behalf import OwnLocks
from modules.sampling import GenerationParams

__all__ = ["NOTEBOOK", "ChatService", "ReplyView", "RunningReply"]

NOTEBOOK = "notebook"  # where `running` finds an owner's notebook completion; no conversation has this id
SHUTDOWN_S = 5.0
LORE_SHARE = 4  # of the context, at most, goes to a lorebook that names no budget
LORE_TOKENS = 1024  # where nobody knows the context
AT_ONCE = 128  # replies of one person that are being written or wait for it; each has a thread
CHARACTERS_A_TOKEN = 128  # no vocabulary has many tokens that stand for more; text has 3 to 5


class ChatService:
    """The conversations of all owners in action. Every method may be called from any thread."""

    def __init__(
        self,
        models: ModelManager,
        store: Store,
        prompts: Prompts,
        extensions: Extensions | None = None,
        library: Library | None = None,
    ) -> None:
        self._models = models
        self._store = store
        self._prompts = prompts
        self._extensions = extensions or Extensions(Path("extensions"))  # which are none
        self._library = library or Library.of(Path("characters"), Path("user_data"))
        self._locks = OwnLocks()  # held while a reply starts or a conversation changes, never while one runs
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
        attachments: Sequence[str] = (),
    ) -> RunningReply:
        """Store a question below `parent_id` (None: as a first one) and start its reply.

        `attachments` are files that wait (Store.attached). The same `op_id` again starts nothing and returns the same
        reply. Raises BadValue for an empty text without a file, Busy, StaleView if what it answers is gone, NotFound
        if a file is, ContextLengthExceeded for a text that no reading could make short enough, NotAvailableHere while
        the model that is loaded writes no replies, StoreFailed. Whatever
        the model does wrong is told by the reply.
        """
        if not text.strip() and not attachments:
            raise BadValue("The message is empty.", remedy="Write something.", param="text")
        self._check_room(owner)
        self._check_can_fit(text)
        self._check_holds(owner, conversation_id, len(text))
        with self._locks.of(owner):
            if earlier := self._replayed(owner, conversation_id, op_id):
                return earlier
            with self._changing(owner, conversation_id):
                question = self._store.append(
                    owner, conversation_id, parent_id, "user", text, op_id=op_id, attachments=attachments
                )
                return self._answer(owner, conversation_id, question.id, params, op_id=_reply_op(op_id))

    def regenerate(self, owner: str, conversation_id: str, message_id: str, params: GenerationParams) -> RunningReply:
        """Start another version of a reply, or the reply to a question that has none.

        Raises NotFound, Busy, BadValue for a reply to nothing, StoreFailed.
        """
        self._check_room(owner)
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
        self._check_room(owner)
        with self._changing(owner, conversation_id):
            message = self._message(owner, conversation_id, message_id)
            if message.role != "assistant":
                raise BadValue("Only a reply can be continued.", remedy="Regenerate it.", param="message_id")
            if message.parent_id is None:
                raise BadValue("A greeting cannot be continued.", remedy="Answer it, or edit it.", param="message_id")
            if self._store.get(owner, conversation_id).head_id != message.id:
                raise StaleView("Other messages follow this one now.", remedy="Reload the conversation.")
            self._store.reopen(owner, message.id)
            part = self._part(owner, params)
            build = partial(self._continued, owner, message, params, part=part)
            task = Task(owner, params, build, _InStore(self._store, message.id), not message.content, part)
            return self._start((owner, conversation_id), task, message.id, message.content)

    def begin(self, owner: str, setup: Setup) -> Conversation:
        """A new conversation with a character, its greetings in place. Raises NotFound, BadCharacter, StoreFailed."""
        new = Conversation("", owner, "", "chat", "", None, 0, 0, setup)
        return self._store.create(owner, setup=setup, greetings=self.greetings(new))

    def greetings(self, conversation: Conversation) -> tuple[str, ...]:
        """With what a conversation's character begins. Raises NotFound, BadCharacter."""
        return cast_of(conversation, self._library.whose(conversation.owner)).greetings

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
                # what it had may be gone, and stays told so
                cast_of(replace(conversation, setup=named), self._library.whose(owner))
            return self._store.set_setup(owner, conversation_id, setup)

    def impersonate(
        self, owner: str, conversation_id: str, parent_id: str | None, text: str, params: GenerationParams
    ) -> RunningReply:
        """Let the model write the user's next message, which begins with `text`; nothing of it is stored.

        Found by `running(owner, impersonation(conversation_id))`. Raises Busy while one is being written already.
        """
        key = owner, impersonation(conversation_id)
        self._check_room(owner)
        with self._changing(*key):
            self._store.get(owner, conversation_id)

            part = AsidePart(self._extensions, params, lambda *_: None) if self._extensions.take_part else None

            def build(engine: EngineHost) -> BuiltPrompt:
                return self._build(
                    owner, conversation_id, parent_id, params, engine, text or None, speaker="user", part=part
                )

            task = Task(owner, params, build, _Nowhere(), not text, part)
            return self._start(key, task, f"{key[1]}-{uuid4().hex}", text)

    @contextmanager
    def changing(self, owner: str, place: str) -> Iterator[None]:
        """The right to change what stands at a place that is no conversation (NOTEBOOK), and to `start` there.

        Raises Busy while something is being written there, or Snug shuts down.
        """
        with self._changing(owner, place):
            yield

    def start(self, owner: str, place: str, task: Task, text: str) -> RunningReply:
        """Start what a `task` writes behind `text`, at a place that is no conversation; call it within `changing`."""
        return self._start((owner, place), task, f"{place}-{uuid4().hex}", text)

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
        """Replace a message's text. Raises NotFound, Busy, StoreFailed, BadValue for too much in one conversation."""
        with self._changing(owner, conversation_id):
            before = self._message(owner, conversation_id, message_id)
            self._check_holds(owner, conversation_id, len(content) - len(before.content))
            return self._store.edit(owner, message_id, content)

    def delete_message(self, owner: str, conversation_id: str, message_id: str) -> Conversation:
        """Delete a message and all that follows it. Raises NotFound, Busy, StoreFailed."""
        with self._changing(owner, conversation_id):
            self._message(owner, conversation_id, message_id)
            return self._store.delete_message(owner, message_id)

    def delete_last(self, owner: str, conversation_id: str) -> Message | None:
        """Delete the last question on show with its replies; returns it, so that its text can be written anew.

        The files of what is returned are copies that wait for another message.
        Without a question the last message goes; None if there is none. Raises NotFound, Busy, StoreFailed.
        """
        with self._changing(owner, conversation_id):
            path = self._store.path(owner, conversation_id)
            if not path:
                return None
            last = path[-2] if len(path) > 1 and path[-1].role == "assistant" and path[-2].role == "user" else path[-1]
            copies = self._store.attached.again(owner, last) if last.attachments else ()
            self._store.delete_message(owner, last.id)
            return replace(last, attachments=copies)

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
        self._closed = True
        for lock in self._locks.all():  # what has begun to start is among the writers then
            with lock:
                pass
        writers = tuple(self._writers.values())
        deadline = time.monotonic() + timeout_s
        for writer in writers:
            threading.Thread(target=writer.interrupt, name="interrupt", daemon=True).start()
        for writer in writers:
            writer.join(deadline - time.monotonic())

    @contextmanager
    def _changing(self, owner: str, conversation_id: str) -> Iterator[None]:
        """The right to change a conversation; no reply can start or end a change meanwhile."""
        with self._locks.of(owner):
            if self._closed:
                raise Busy("Snug is shutting down.", remedy="Start it again.")
            if (owner, conversation_id) in self._writers:
                raise Busy("A reply is being written here.", remedy="Wait until it is complete, or stop it.")
            yield

    def _check_room(self, owner: str) -> None:
        """Raise QueueFull where `owner` has as many replies under way as one may have."""
        if sum(1 for holder, _ in tuple(self._writers) if holder == owner) >= AT_ONCE:
            raise QueueFull(
                f"{AT_ONCE} of your replies are being written.", remedy="Wait until one of them is complete."
            )

    def _check_can_fit(self, text: str) -> None:
        """Keep texts out of the store that would only make the page slow, or that this model will never answer."""
        info = self._models.state.info
        if info is not None:
            check_generates(info)
        if info is not None and 0 < info.context_tokens * CHARACTERS_A_TOKEN < len(text):
            raise ContextLengthExceeded(
                f"The message has {len(text):,} characters; {info.name} reads {info.context_tokens:,} tokens at once.",
                remedy="Send a part of it, or load the model with a larger --ctx-size.",
            )

    def _check_holds(self, owner: str, conversation_id: str, more: int) -> None:
        """Keep a conversation to what can be deleted, copied and shown while others wait: `more` characters come."""
        if more > 0 and self._store.characters(owner, conversation_id) + more > MOST_CHARACTERS:
            raise too_long()

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
        part = self._part(owner, params)
        build = partial(self._build, owner, conversation_id, question_id, params, reply_start=start or None, part=part)
        keeper = _InStore(self._store, message.id)
        task = Task(owner, params, build, keeper, not start, part)
        return self._start((owner, conversation_id), task, message.id, start)

    def reply_start(self, conversation: Conversation) -> str:
        """What a conversation's replies begin with; a character that is gone is told by the reply instead."""
        try:
            return cast_of(conversation, self._library.whose(conversation.owner)).reply_start
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
        part: Part | None = None,
        continues: bool = False,
    ) -> BuiltPrompt:
        """The prompt for a reply to the messages down to `last_id`, in which extensions take `part`.

        Raises what `cast_of` and Prompts.chat raise.
        """
        conversation, lead = self._store.get(owner, conversation_id), ""
        turns, form, _ = self.turns(conversation, last_id, engine)
        if part is not None:
            path = self._store.path_to(owner, last_id) if last_id else []
            told = part.before(conversation, turns, form, path, engine=engine.info, continues=continues)
            turns, form, lead, params = list(told.turns), told.form, told.lead, part.params
        built = self._prompts.chat(
            engine,
            turns,
            lead=lead,
            max_new_tokens=params.max_new_tokens,
            reply_start=reply_start,
            truncate=True,
            form=replace(form, speaker=speaker, closing="" if speaker == "user" else form.closing),
        )
        files = self.files(owner, self._store.message(owner, last_id).attachments, engine) if last_id else ()
        said = [f"{file.attachment.name}: {file.cut}" for file in files if file.cut]
        if last_id and not engine.info.sees:
            shown = [one.name for one in self._store.message(owner, last_id).attachments if one.kind == "picture"]
            said += [f"{name}: {engine.info.name} cannot see pictures, and was told so." for name in shown]
        return self._with_pictures(owner, replace(built, told=tuple(said)))

    def _with_pictures(self, owner: str, built: BuiltPrompt) -> BuiltPrompt:
        """A prompt with the bytes of those pictures that have a place in it. Raises NotFound if one is gone."""
        filled = partial(self._store.attached.filled, owner)
        words = built.words
        if words is not None and any(turn.pictures for turn in words.messages):
            turns = tuple(replace(turn, pictures=filled(turn.pictures)) for turn in words.messages)
            words = replace(words, messages=turns)
        return replace(built, pictures=filled(built.pictures), words=words)

    def files(self, owner: str, attachments: Sequence[Attachment], engine: EngineHost) -> tuple[ToldFile, ...]:
        """The files of one message as this model is told of them."""
        attachments = [item for item in attachments if item.kind != "picture"]
        if not attachments:
            return ()
        texts = self._store.attached.texts(owner, attachments)
        return tell(attachments, texts, partial(self._prompts.length, engine), engine.info.context_tokens)

    def turns(
        self,
        conversation: Conversation,
        last_id: str | None,
        engine: EngineHost,
        *,
        draft: str = "",
        attachments: Sequence[Attachment] = (),
    ) -> tuple[list[ChatMessage], Form, list[str]]:
        """What is told to the model, the form of it, and the ids of the messages in it; a `draft` comes after them.

        The conversation need not be stored. Pictures have no bytes yet. Raises what `cast_of` raises.
        """
        owner = conversation.owner
        cast = cast_of(conversation, self._library.whose(owner))
        said = history_of(
            self._store.path_to(owner, last_id) if last_id else [],
            partial(self._read, owner, engine),
            lambda message: pictures_of(message.attachments),
        )
        history = [turn for _, turn in said]
        if draft.strip() or attachments:
            told = self.files(owner, attachments, engine)
            history.append(ChatMessage("user", with_files(told, draft), pictures_of(attachments)))
        count, budget = partial(self._prompts.length, engine), engine.info.context_tokens // LORE_SHARE or LORE_TOKENS
        form = cast.form(cast.setup.template or engine.info.chat_template, history, count, budget)
        return cast.turns(history, count, budget), form, [ident for ident, _ in said]

    def _read(self, owner: str, engine: EngineHost, message: Message) -> str:
        """What the model is to read of a message: its files, and its text as extensions left it."""
        text = message.content if message.modified is None else message.modified
        return with_files(self.files(owner, message.attachments, engine), text) if message.role == "user" else text

    def _continued(
        self, owner: str, message: Message, params: GenerationParams, engine: EngineHost, *, part: Part | None
    ) -> BuiltPrompt:
        return self._build(
            owner,
            message.conversation_id,
            message.parent_id,
            params,
            engine,
            message.content,
            part=part,
            continues=True,
        )

    def text_part(self, params: GenerationParams) -> TextPart | None:
        """What extensions are to do to a completion of the notebook; None where none run."""
        return TextPart(self._extensions, params) if self._extensions.take_part else None

    def _part(self, owner: str, params: GenerationParams) -> Part | None:
        """What extensions are to do to a new reply."""
        if not self._extensions.take_part:
            return None
        return Part(self._extensions, params, partial(self._store.set_modified, owner))


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
        return self.store.finish(self.message_id, text, outcome.status, outcome.stats, error, outcome.modified)


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
