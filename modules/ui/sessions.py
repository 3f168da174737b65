"""Whose Gradio session, event and file is whose: in front of Gradio's own routes, behind Snug's doors.

Gradio knows a page by a `session_hash` that the browser made up, and gives whoever names it what belongs to it. Here
each person's are put under their own name before Gradio sees them, so that nobody can name another's. Of Gradio's
routes only those answer that the page uses.
"""

from __future__ import annotations

import json
import os
import re
from collections import OrderedDict
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlencode

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from modules.accounts.person import Person, person_in
from modules.characters.character import holds_more_values
from modules.errors import BadValue, BodyTooLarge, Forbidden, NotFound, SnugError
from modules.ui.streams import Streams
from modules.ui.uploads import plain_upload
from modules.units import KiB, format_size

ROUTES: tuple[tuple[str, str], ...] = (
    ("GET|HEAD", r"/"),
    ("GET", r"/(config|theme\.css|favicon\.ico|manifest\.json|robots\.txt)"),
    ("GET", r"/(assets|static|svelte)/.+"),
    ("GET", r"/gradio_api/(info|app_id|theme\.css|user)/?"),
    ("GET", r"/gradio_api/queue/data"),
    ("GET|HEAD", r"/gradio_api/(heartbeat/[^/]+|file=.+)"),
    ("POST", r"/gradio_api/(queue/join|run/predict|api/predict|cancel|reset|component_server|upload)/?"),
)
"""What the page asks of Gradio."""
_OPEN = [(re.compile(methods), re.compile(path, re.DOTALL)) for methods, path in ROUTES]
_HASH = re.compile(r"[\w-]{1,64}")
_MAX_UPLOADS = 20_000
_MAX_PATH = 1000
# In one request: Gradio walks through all of them while nobody's request moves, and keeps them until it answers.
_MOST_VALUES = 200_000
# Of an event: the values of Snug's own controls, some of which a session keeps; an extension's, which are an
# administrator's, may be longer. What is large comes through doors.
_MOST_OF_AN_EVENT = 256 * KiB
_FILE_HEADERS = (b"host", b"range", b"if-range", b"if-none-match", b"if-modified-since")
"""What Gradio hears of a request for a part of a file: it answers with all of those headers, the cookie's too."""


class OwnSessions:
    """ASGI around Gradio's app."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        streams: Streams,
        files: Path,
        events: Collection[int],
        parts: Collection[int],
        admin_events: Collection[int],
        admin_parts: Collection[int] = (),
    ) -> None:
        """`files`: the folder of uploads. `events`, `parts`: numbers of Gradio's events, and of components; `admin_…`:
        those for administrators alone. Gradio stumbles over numbers that are none, and logs a page for each.
        """
        self.app = app
        self._streams = streams
        self._files = os.path.abspath(files)  # noqa: PTH100 - as Gradio spells paths: links stay
        self._events = events
        self._parts = parts
        self._admin_events = admin_events
        self._admin_parts = admin_parts
        self._uploads: OrderedDict[str, set[str]] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            if not _is_open(scope["method"], scope["path"]) or _is_other_page(scope):
                raise NotFound("There is no such page.")
            person = person_in(scope)
            # An address that the answer is to name; what the first one asked for, Gradio answers everybody.
            scope["headers"] = [pair for pair in scope["headers"] if pair[0].lower() != b"x-gradio-server"]
            if scope["path"].startswith("/gradio_api/file="):
                scope["headers"] = [pair for pair in scope["headers"] if pair[0].lower() in _FILE_HEADERS]
            if scope["path"].startswith("/gradio_api/upload"):
                if not person.admin:  # files go to controls of extensions, which are administrators'
                    raise Forbidden("This is for administrators.")
                await self._upload(person, scope, plain_upload(scope, receive), send)
                return
            if person.id or not person.admin:  # guests have no account, and their sessions are not the administrator's
                receive = await self._claimed(person, scope, receive)
        except SnugError as error:
            await JSONResponse({"detail": error.message}, error.http_status)(scope, receive, send)
            return
        await self.app(scope, receive, send)

    async def _upload(self, person: Person, scope: Scope, receive: Receive, send: Send) -> None:
        """Let Gradio keep files, and note whose they are. Raises BodyTooLarge for too many."""
        try:
            await self.app(scope, receive, self._noting(person, send))
        except BodyTooLarge as error:  # nothing has been answered while the body is still on its way
            await JSONResponse({"detail": error.message}, error.http_status)(scope, receive, send)

    async def _claimed(self, person: Person, scope: Scope, receive: Receive) -> Receive:
        """The request with every session in it as this person's own. Raises a SnugError for what is another's."""
        path = scope["path"]
        if path.startswith("/gradio_api/file="):
            self._check_file(person, path.removeprefix("/gradio_api/file="))
        if path.startswith("/gradio_api/heartbeat/"):
            own = _own(person, path.removeprefix("/gradio_api/heartbeat/"))
            scope["path"] = f"/gradio_api/heartbeat/{own}"
            scope["raw_path"] = scope["path"].encode()
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        if any(name == "session_hash" for name, _ in query):
            named = [(name, _own(person, value) if name == "session_hash" else value) for name, value in query]
            scope["query_string"] = urlencode(named).encode()
        if scope["method"] != "POST":
            return receive
        body = self._check_body(person, path, await _read(scope, receive))
        scope["headers"] = [pair for pair in scope["headers"] if pair[0].lower() != b"content-length"]
        scope["headers"].append((b"content-length", str(len(body)).encode()))
        return _with_body(body, receive)

    def _check_body(self, person: Person, path: str, body: bytes) -> bytes:
        try:
            asked: Any = json.loads(body)
        except (ValueError, RecursionError) as error:  # nested too deeply, too
            raise BadValue("The page's request is not JSON.") from error
        if not isinstance(asked, dict):
            raise BadValue("The page's request is no object.")
        is_event = path.rstrip("/").endswith(("/join", "/predict"))
        if is_event and len(body) > _MOST_OF_AN_EVENT and not person.admin:
            raise BodyTooLarge(f"The page's request is larger than {format_size(_MOST_OF_AN_EVENT)}.")
        if holds_more_values(asked, _MOST_VALUES):
            raise BadValue("The page's request has too many parts.")
        for named in _files_named(asked):
            if not Path(os.path.abspath(named)).is_relative_to(self._files):  # noqa: PTH100
                raise NotFound("There is no such page.")
            self._check_file(person, named)
        if asked.get("session_hash") is not None:
            asked["session_hash"] = _own(person, asked["session_hash"])
        event = asked.get("event_id")
        own = f"{person.id}-"
        if isinstance(event, str) and not (self._streams.session_of(event) or own).startswith(own):
            raise NotFound("There is no such event.")
        number = asked.get("fn_index")
        if type(number) is not int and (number is not None or is_event):
            raise BadValue("An event is known by its number.")
        part = asked.get("component_id")
        if part is not None and type(part) is not int:
            raise BadValue("The page's request is no object.")
        if (number is not None and number not in self._events) or (part is not None and part not in self._parts):
            raise NotFound("There is no such page.")
        if (number in self._admin_events or part in self._admin_parts) and not person.admin:
            raise Forbidden("This is for administrators.")
        if path.rstrip("/").endswith("/join"):
            self._streams.make_room(own)
        return json.dumps(asked).encode()

    def _check_file(self, person: Person, path: str) -> None:
        """Raise NotFound for a file that others have uploaded, and this person has not."""
        owners = self._uploads.get(_plain(path))
        if owners is not None and person.id not in owners:
            raise NotFound("There is no such page.")

    def _noting(self, person: Person, send: Send) -> Send:
        """Remembers whose the files are whose paths go out."""
        told = bytearray()

        async def noting(message: Message) -> None:
            if message["type"] == "http.response.body":
                told.extend(message.get("body", b""))
                if not message.get("more_body", False):
                    self._note(person, bytes(told))
            await send(message)

        return noting

    def _note(self, person: Person, told: bytes) -> None:
        try:
            paths = json.loads(told)
        except ValueError:  # a refusal in plain text
            return
        for path in paths if isinstance(paths, list) else []:
            kept = _plain(str(path))
            self._uploads.setdefault(kept, set()).add(person.id)
            self._uploads.move_to_end(kept)
        while len(self._uploads) > _MAX_UPLOADS:
            self._uploads.popitem(last=False)


def _files_named(asked: object) -> Iterator[str]:
    """The paths and addresses that Gradio would take for files, and copy to where pages may read them."""
    inside = [asked]
    while inside:
        value = inside.pop()
        if isinstance(value, dict):
            meta = value.get("meta")
            if isinstance(meta, dict) and meta.get("_type") == "gradio.FileData":
                yield str(value.get("path"))
            inside.extend(value.values())
        elif isinstance(value, list):
            inside.extend(value)


def _plain(path: str) -> str:
    """One spelling of a path, from the folder of the start where it says no other, as Gradio has it."""
    return "/" + os.path.abspath(path).lstrip("/")  # noqa: PTH100


def _is_open(method: str, path: str) -> bool:
    """Whether the page uses this route. Nothing is fetched from elsewhere on anybody's behalf."""
    if len(path) > _MAX_PATH:  # Gradio stumbles over names that are longer than a file's
        return False
    if path.startswith("/gradio_api/file=") and re.match(r"\s*[a-z][\w+.-]*:", unquote(path[17:]), re.IGNORECASE):
        return False
    return any(methods.fullmatch(method) and pattern.fullmatch(path) for methods, pattern in _OPEN)


def _is_other_page(scope: Scope) -> bool:
    """Whether one is asked for that a Gradio program of several pages has; there is one here."""
    query = parse_qsl(scope["query_string"].decode("latin-1"))
    return scope["path"] == "/" and any(name == "page" for name, _ in query)


def _own(person: Person, session: object) -> str:
    """A session under its person's name."""
    if not isinstance(session, str) or not _HASH.fullmatch(session):
        raise BadValue("That is no session.")
    return f"{person.id}-{session}"


async def _read(scope: Scope, receive: Receive) -> bytes:
    if any(name.lower() == b"content-type" and b"json" not in value.lower() for name, value in scope["headers"]):
        raise BadValue("The page's request is not JSON.")
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise BadValue("The request broke off.")
        body += message.get("body", b"")
        if not message.get("more_body", False):
            return bytes(body)


def _with_body(body: bytes, receive: Receive) -> Receive:
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def received() -> Message:
        return waiting.pop() if waiting else await receive()

    return received
