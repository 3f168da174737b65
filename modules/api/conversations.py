"""Large conversations from files: one POST takes one in, as raw text, where the page's own door would be too narrow.

The guard in front checks who asks, and how much comes. What comes is laid down on the disk until its turn: of these
files one at a time is in memory as text and as values, and of IN_MEMORY what came of them; people draw their pictures
by turns.
"""

from __future__ import annotations

import tempfile
from typing import IO, Annotated, Any

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Query, Request

from modules.accounts.person import person_in
from modules.api.errors import problem
from modules.chat.aside import set_aside
from modules.chat.taking_in import take_in
from modules.engine.turns import Turns
from modules.errors import BodyTooLarge, SnugError, StoreFailed
from modules.services import Services
from modules.texts.spoken import texts_of
from modules.units import MiB, format_size

MAX_DIGESTS = 1000
MOST_TEXT = 128 * MiB
IN_MEMORY = 3


def conversation_routes(services: Services) -> APIRouter:
    """POST /conversations: the body is a file of conversations; `only` as take_in has it."""
    router = APIRouter()
    places, turns = CapacityLimiter(IN_MEMORY), Turns()

    @router.post("/conversations", include_in_schema=False)
    async def import_conversations(
        request: Request, only: Annotated[list[str] | None, Query(max_length=MAX_DIGESTS)] = None
    ) -> dict[str, Any]:
        """Keep the conversations; a problem is told as the page's doors tell it."""
        person, tell = person_in(request.scope), texts_of(request.headers).tell

        def take(file: IO[bytes]) -> dict[str, Any]:
            text, aside = set_aside(file)
            if len(text) > MOST_TEXT:
                raise BodyTooLarge(f"Without its pictures it is larger than {format_size(MOST_TEXT)}.")
            taken = take_in(
                services.store.shelf, person.owner, text.decode("utf-8", "replace"), services.extractor,
                only=only, aside=aside, turns=turns, may=services.still_in(person),
            )  # fmt: skip
            return taken.as_json(tell)

        try:
            with _waiting_room(services) as file:
                async for piece in request.stream():
                    await to_thread.run_sync(file.write, piece)
                return await to_thread.run_sync(take, file, limiter=places)
        except OSError as error:
            return problem(StoreFailed(f"The file was not taken: {error.strerror}.", remedy="Free some space."), tell)
        except SnugError as error:
            return problem(error, tell)

    return router


def _waiting_room(services: Services) -> IO[bytes]:
    """A file without a name, gone when it is closed; not in /tmp, which may be memory."""
    return tempfile.TemporaryFile(dir=services.settings.user_data_dir)
