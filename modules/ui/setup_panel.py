"""The panel of one conversation: mode, character, persona, template, the exact prompt; the gauge of the context.

And the model writing the user's next message into the composer, followed by a stream of its own.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator
from dataclasses import asdict, replace

import gradio as gr
from pydantic import Field

from modules.attachments.extracted import MAX_FILES
from modules.chat.preview import Previews
from modules.chat.service import RunningReply, impersonation
from modules.chat.setup_fields import SetupFields
from modules.errors import BadChatTemplate, SnugError
from modules.messages import Conversation
from modules.sampling import GenerationParams
from modules.services import Services
from modules.ui.characters_tab import CharacterDoors, Talk
from modules.ui.views import MAX_HZ, Json, printable, problem_view, revision
from modules.ui.widgets import Body, Nothing, Pick, door, owner_of, read_body, scripted
from modules.ui.words import told

_WRITTEN_KEPT = 20
_GONE = {"no_model_loaded", "not_found", "bad_character", "bad_name"}


class SetupBody(SetupFields, Body):
    """How the model is asked; see messages.Setup."""


class Change(Pick):
    setup: SetupBody


class Look(Body):
    """A look at what the model would be told; without an id, in a new conversation."""

    id: str | None = Field(default=None, max_length=64)
    setup: SetupBody = SetupBody()
    system_prompt: str = ""
    draft: str = ""
    attachments: list[str] = Field(default=[], max_length=MAX_FILES)
    params: GenerationParams = GenerationParams()


class Impersonate(Pick):
    parent: str | None = Field(default=None, max_length=64)
    text: str = ""
    params: GenerationParams = GenerationParams()


class SetupDoors:
    """What the panel and the composer may ask for; every answer is JSON for static/setup.js."""

    def __init__(self, services: Services) -> None:
        self.store, self.chat = services.store, services.chat
        self.previews = Previews(services.models, services.store, services.prompts, services.chat)
        self._written: OrderedDict[tuple[str, str], RunningReply] = OrderedDict()  # the last ones, for late followers

    def set_setup(self, owner: str, body: Change) -> Json:
        """Keep a setup, unless its template fails: then the conversation stays as it is."""
        setup = body.setup.setup()
        if setup.template != self.store.get(owner, body.id).setup.template:
            self.previews.check_template(setup.template)
        return {"revision": revision(self.chat.set_setup(owner, body.id, setup))}

    def template(self, owner: str, body: Look) -> Json:
        """The template in use, the model's own, and what can be chosen of thinking."""
        conversation = self._conversation(owner, body)
        return {"own": printable(self.previews.template()), "efforts": list(self.previews.efforts(conversation))}

    def gauge(self, owner: str, body: Look) -> Json:
        """How full the context will be; nothing where that cannot be said."""
        try:
            files = self.store.attached.waiting(owner, body.attachments)
            with self.store.shelf.alone_if_large(owner, body.id or ""):
                seen = self.previews.gauge(self._conversation(owner, body), body.draft, body.params, files)
        except SnugError as error:
            if error.code in _GONE or isinstance(error, BadChatTemplate):
                return {"gauge": None}
            raise
        return {
            "gauge": asdict(seen.gauge) if seen.gauge.context else None,
            "left_out": list(seen.left_out),
            "files": [{"id": file.attachment.id, "tokens": file.tokens, "cut": told(file.cut)} for file in seen.files],
        }

    def preview(self, owner: str, body: Look) -> Json:
        """The exact prompt. What is wrong with it is told in the panel, not as a toast."""
        try:
            files = self.store.attached.waiting(owner, body.attachments)
            with self.store.shelf.alone_if_large(owner, body.id or ""):
                seen = self.previews.exact(self._conversation(owner, body), body.draft, body.params, files)
        except SnugError as error:
            return {"refused": problem_view(error)}
        return asdict(seen) | {"text": printable(seen.text), "notice": told(seen.notice)}

    def impersonate(self, owner: str, body: Impersonate) -> Json:
        """Let the model write the user's next message."""
        reply = self.chat.impersonate(owner, body.id, body.parent, body.text, body.params)
        self._written[owner, body.id] = reply
        while len(self._written) > _WRITTEN_KEPT:
            self._written.popitem(last=False)
        return {"writing": reply.message_id}

    def stop_impersonation(self, owner: str, body: Pick) -> Json:
        """End it; what it wrote stays in the composer."""
        running = self.chat.running(owner, impersonation(body.id))
        if running:
            running.stop()
        return {}

    async def follow(self, event: gr.EventData, request: gr.Request) -> AsyncIterator[Json]:
        """The message that the model writes for the user, from now to its end; `beat` tells equal looks apart."""
        body, beat = read_body(Pick, event._data), 0
        running = self._written.get((owner_of(request), body.id))
        if running is None:
            yield {"conversation": body.id, "gone": True}
            return
        async for view in running.updates(max_hz=MAX_HZ):
            beat += 1
            yield {
                "conversation": body.id, "id": view.message_id, "text": printable(view.text), "done": view.finished,
                "problem": problem_view(view.error) if view.error else None, "beat": beat,
            }  # fmt: skip

    def _conversation(self, owner: str, body: Look) -> Conversation:
        """The one meant, with the setup that the panel shows."""
        setup = body.setup.setup()
        if body.id is None:
            return Conversation("", owner, "", "chat", body.system_prompt, None, 0, 0, setup)
        return replace(self.store.get(owner, body.id), setup=setup)


def build(services: Services) -> None:
    """Put the panel's doors into the Chat tab."""
    doors = SetupDoors(services)
    scripted(
        "snug.mountSetup",
        door(Nothing, "people", CharacterDoors(services).people),
        door(Talk, "talk", CharacterDoors(services).talk),
        door(Change, "set_setup", doors.set_setup),
        door(Look, "template", doors.template),
        door(Look, "gauge", doors.gauge),
        door(Look, "preview", doors.preview),
        door(Impersonate, "impersonate", doors.impersonate),
        door(Pick, "stop_impersonation", doors.stop_impersonation),
        follow=doors.follow,
        show="snug.onImpersonation",
    )
