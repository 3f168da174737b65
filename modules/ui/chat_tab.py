"""The Chat tab: the messages, the composer, and the frame around them (what is done in the list: side.py).

The page's script sends small requests to the doors below and shows what they answer; a running reply is followed by
one stream, which any page may leave and take up again. History lives in the store alone.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, suppress
from dataclasses import asdict
from functools import partial

import gradio as gr
from anyio import to_thread
from pydantic import Field

from modules.attachments.extracted import MAX_FILES
from modules.chat.incognito import is_incognito
from modules.chat.service import RunningReply
from modules.errors import BadValue, NotFound, SnugError
from modules.on_behalf import ASKED_FOR, UNTIL_ANSWERED
from modules.sampling import GenerationParams
from modules.services import Services
from modules.ui import setup_panel, side
from modules.ui.download_panel import downloads_view
from modules.ui.file_doors import FileDoors, Files
from modules.ui.markdown import StreamingMarkdown, may_hold_code
from modules.ui.setup_panel import SetupBody
from modules.ui.strip import Strip
from modules.ui.views import (
    MAX_HZ,
    Json,
    file_view,
    live_view,
    model_view,
    printable,
    problem_view,
    revision,
    thread_view,
)
from modules.ui.widgets import Body, Pick, door, owner_of, personal_door, read_body, scripted

SHOWN = 60  # messages of a conversation that a page gets, unless it asks for more
AROUND_FOUND = 30  # messages above one that a search found, and below it
RENDER_SHARE = 0.1  # of the time, at most, goes into rendering one reply
LONG_RENDER_S = 0.02


class Seen(Pick):
    """A request about a conversation, of which the page shows what lies between two messages.

    `top` is the first of them, None for the last few; `bottom` is the last, None where that is the conversation's.
    """

    top: str | None = Field(default=None, max_length=64)
    bottom: str | None = Field(default=None, max_length=64)


class Open(Seen):
    """A conversation; with a message, what stands around it. `above` and `below` are how many more to show there."""

    message: str | None = Field(default=None, max_length=64)
    above: int = Field(default=0, ge=0, le=1000)
    below: int = Field(default=0, ge=0, le=1000)


class Pulse(Body):
    id: str | None = Field(default=None, max_length=64)


class Send(Body):
    """A message to a conversation; without an id, to a new one."""

    id: str | None = Field(default=None, max_length=64)
    parent: str | None = Field(default=None, max_length=64)
    top: str | None = Field(default=None, max_length=64)
    text: str
    attachments: list[str] = Field(default=[], max_length=MAX_FILES)
    op_id: str = Field(min_length=8, max_length=64)
    system_prompt: str = ""
    setup: SetupBody = SetupBody()
    incognito: bool = False
    folder: str | None = Field(default=None, max_length=64)
    params: GenerationParams = GenerationParams()


class Touch(Seen):
    """A request about one message of a conversation."""

    message: str = Field(max_length=64)
    params: GenerationParams = GenerationParams()


class Edit(Seen):
    message: str = Field(max_length=64)
    text: str


class SystemPrompt(Pick):
    text: str


class ChatDoors:
    """What the page may ask for; every answer is JSON for static/chat.js and static/shell.js."""

    def __init__(self, services: Services) -> None:
        self.store, self.chat, self.models = services.store, services.chat, services.models
        self.downloads, self.accounts = services.downloads, services.accounts
        self.strip = Strip(services.models.machine)
        self.streams = not services.settings.no_stream
        self.kept = not services.settings.read_only

    def thread(
        self,
        owner: str,
        conversation_id: str,
        top: str | None = None,
        bottom: str | None = None,
        *,
        above: int = 0,
        below: int = 0,
    ) -> Json:
        """The conversation as it stands: from `above` messages over `top` to `below` under `bottom`, or to its end.

        Raises Busy while another large one of the same person does not go.
        """
        with ExitStack() as alone:
            (UNTIL_ANSWERED.get() or alone).enter_context(self.store.shelf.alone_if_large(owner, conversation_id))
            return self._thread(owner, conversation_id, top, bottom, above, below)

    def _thread(
        self, owner: str, conversation_id: str, top: str | None, bottom: str | None, above: int, below: int
    ) -> Json:
        running = self.chat.running(owner, conversation_id)
        excerpt = self.store.excerpt(
            owner, conversation_id, least=SHOWN, top=top, above=above, bottom=bottom, below=below
        )
        return thread_view(
            self.store.get(owner, conversation_id),
            excerpt.messages,
            running.message_id if running else None,
            earlier=excerpt.earlier,
            later=excerpt.later,
        )

    def _seen(self, owner: str, body: Seen) -> Json:
        """What the page has on show."""
        return self.thread(owner, body.id, body.top, body.bottom)

    def open(self, owner: str, body: Open) -> Json:
        """One conversation; with a message, the branch that holds it comes on show, and of it what is near."""
        if body.message is None:
            return self.thread(owner, body.id, body.top, body.bottom, above=body.above, below=body.below)
        if not self.chat.running(owner, body.id) and not self.store.shows(owner, body.id, body.message):
            self.store.set_head(owner, body.id, body.message)
        return self.thread(owner, body.id, body.message, body.message, above=AROUND_FOUND, below=AROUND_FOUND)

    def send(self, owner: str, body: Send) -> Json:
        """Store a message and start the reply. On failure the answer tells whether the message was stored."""
        conversation_id = body.id or self._begin(owner, body)
        try:
            self.chat.reply(
                owner, conversation_id, body.parent, body.text, body.params, op_id=body.op_id,
                attachments=body.attachments,
            )  # fmt: skip
        except SnugError as error:
            return self._refused(owner, conversation_id, body, error)
        return self.thread(owner, conversation_id, body.top) | {"accepted": True}

    def _begin(self, owner: str, body: Send) -> str:
        """A new conversation, in the folder that is on show if it is still there."""
        made = self.store.create(
            owner, system_prompt=body.system_prompt, setup=body.setup.setup(), incognito=body.incognito
        )
        if body.folder and not body.incognito:
            with suppress(NotFound):
                self.store.shelf.move(owner, made.id, body.folder)
        return made.id

    def _refused(self, owner: str, conversation_id: str, body: Send, error: SnugError) -> Json:
        """The answer to a message without a reply: the thread as it stands, and whether the text is safe in it."""
        stored = any(
            message.role == "user" and message.parent_id == body.parent and message.content == body.text
            for message in self.store.path(owner, conversation_id)
        )
        problem = {"problem": problem_view(error), "accepted": stored}
        if body.id is None and not stored:
            self.store.delete(owner, conversation_id)
            if not is_incognito(conversation_id):
                self.store.shelf.erase(owner, conversation_id)
            return problem
        return self.thread(owner, conversation_id, body.top) | problem

    def regenerate(self, owner: str, body: Touch) -> Json:
        """Another version of a reply; the old one stays in the tree."""
        self.chat.regenerate(owner, body.id, body.message, body.params)
        return self._seen(owner, body)

    def go_on(self, owner: str, body: Touch) -> Json:
        """Continue a reply where it ended."""
        self.chat.continue_reply(owner, body.id, body.message, body.params)
        return self._seen(owner, body)

    def edit(self, owner: str, body: Edit) -> Json:
        """Change a message's text; a question without files keeps some, as the composer asks for."""
        message = self.store.message(owner, body.message)
        if not body.text.strip() and message.role == "user" and not message.attachments:
            raise BadValue("A message needs some text.", remedy="Write something, or cancel the edit.", param="text")
        self.chat.edit(owner, body.id, body.message, body.text)
        return self._seen(owner, body)

    def delete_last(self, owner: str, body: Seen) -> Json:
        """Take the last exchange away; its question goes back into the composer, with copies of its files."""
        deleted = self.chat.delete_last(owner, body.id)
        question = deleted.content if deleted and deleted.role == "user" else ""
        files = [file_view(file) for file in deleted.attachments] if deleted else []
        undo = {"deleted": deleted.id if deleted else None, "question": printable(question), "files": files}
        return self._seen(owner, body) | undo

    def delete(self, owner: str, body: Touch) -> Json:
        """Take a message away with all that follows it."""
        self.chat.delete_message(owner, body.id, body.message)
        return self._seen(owner, body) | {"deleted": body.message}

    def undelete(self, owner: str, body: Touch) -> Json:
        """Bring deleted messages back."""
        self.chat.restore_message(owner, body.id, body.message)
        return self._seen(owner, body)

    def branch(self, owner: str, body: Touch) -> Json:
        """A new conversation that begins as this one does, down to a message."""
        return self.thread(owner, self.chat.branch(owner, body.id, body.message).id)

    def stop(self, owner: str, body: Pick) -> Json:
        """End a reply; what it holds stays."""
        self.chat.stop(owner, body.id)
        return {}

    def set_system_prompt(self, owner: str, body: SystemPrompt) -> Json:
        """What the model is told before the conversation."""
        self.store.set_system_prompt(owner, body.id, body.text)
        return {}

    def pulse(self, owner: str, body: Pulse) -> Json:
        """The state of model and memory, and whether the list or the conversation on show has changed elsewhere."""
        if self.accounts is not None:
            self.accounts.tidy()
        answer: Json = {
            "model": model_view(self.models.state),
            "kept": self.kept,
            "machine": self.strip.view(),
            "dry_runs": asdict(self.models.dry_run_progress),
            "downloads": downloads_view(self.downloads),
            "conversations": str(self.store.shelf.revision(owner)),
        }
        if body.id:
            running, conversation = self.chat.running(owner, body.id), self.store.get(owner, body.id)
            self.store.shelf.see(body.id)
            answer |= {"head": conversation.head_id, "revision": revision(conversation)}
            answer["running"] = running.message_id if running else None
        return answer

    def show_version(self, owner: str, body: Touch) -> Json:
        """Show the branch of another version of a message."""
        self.store.set_head(owner, body.id, body.message)
        return self._seen(owner, body)

    async def follow(self, event: gr.EventData, request: gr.Request) -> AsyncIterator[Json]:
        """The running reply of a conversation, from now to its end."""
        body, owner = read_body(Pick, event._data), owner_of(request)
        ASKED_FOR.set(owner)
        running = self.chat.running(owner, body.id)
        if running is None:
            yield {"conversation": body.id, "gone": True}
            return
        async for view in follow_reply(running, stream=self.streams):
            yield {"conversation": body.id, **view}


async def follow_reply(reply: RunningReply, *, stream: bool) -> AsyncIterator[Json]:
    """Live views of a reply, at most MAX_HZ a second and fewer where rendering is costly; `beat` tells them apart."""
    markdown = StreamingMarkdown()
    ready_at, cost_s, beat = 0.0, 0.0, 0
    async for view in reply.updates(max_hz=MAX_HZ):
        started = time.monotonic()
        if started < ready_at and not view.finished:
            continue
        beat += 1
        render = partial(live_view, view, markdown, show_text=stream)
        # In a thread where the last one took long: hostile text costs seconds, and other streams go on meanwhile.
        # So does code, which waits for a process.
        long = cost_s > LONG_RENDER_S or view.modified is not None or may_hold_code(view.text)
        rendered = await to_thread.run_sync(render) if long else render()
        yield rendered | {"beat": beat}
        cost_s = time.monotonic() - started
        ready_at = time.monotonic() + cost_s / RENDER_SHARE


def build_shell(services: Services) -> None:
    """The frame of the page: conversations at the side, the model in the header."""
    doors, list_doors = ChatDoors(services), side.SideDoors(services)
    gr.HTML(
        js_on_load="snug.mountShell(element, server)",
        apply_default_css=False,
        elem_id="snug-shell",
        server_functions=[
            door(Pulse, "pulse", doors.pulse),
            door(side.Look, "conversations", list_doors.conversations),
            door(side.Rename, "rename", list_doors.rename),
            door(side.Pin, "pin", list_doors.pin),
            door(side.Move, "move", list_doors.move),
            door(side.FolderName, "name_folder", list_doors.name_folder),
            door(Pick, "remove_folder", list_doors.remove_folder),
            door(Pick, "remove", list_doors.remove),
            door(Pick, "restore", list_doors.restore),
            door(Pick, "erase", list_doors.erase),
            door(side.Export, "export", list_doors.export),
            personal_door(side.Import, "take_in", list_doors.take_in),
        ],
    )


def build(services: Services) -> None:
    """Put the tab's content here."""
    doors, files = ChatDoors(services), FileDoors(services)
    scripted(
        "snug.mountChat",
        door(Open, "open", doors.open),
        door(Send, "send", doors.send),
        door(Touch, "regenerate", doors.regenerate),
        door(Touch, "go_on", doors.go_on),
        door(Touch, "show_version", doors.show_version),
        door(Edit, "edit", doors.edit),
        door(Seen, "delete_last", doors.delete_last),
        door(Touch, "delete", doors.delete),
        door(Touch, "undelete", doors.undelete),
        door(Touch, "branch", doors.branch),
        door(Pick, "stop", doors.stop),
        door(SystemPrompt, "set_system_prompt", doors.set_system_prompt),
        door(Files, "files_waiting", files.waiting),
        door(Pick, "file_text", files.text),
        door(Pick, "discard_file", files.discard),
        follow=doors.follow,
        show="snug.onLive",
    )
    setup_panel.build(services)
