"""Pictures in messages: OpenAI's `image_url` parts, and what every dialect does with them. Read as attached files are.

Only data: addresses. Fetching others would let whoever may ask this API have the server ask any machine it can reach.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from contextlib import suppress
from typing import Literal

from pydantic import BaseModel
from pydantic_core import PydanticCustomError

from modules.attachments.extracted import MAX_FILE_BYTES
from modules.engine.base import ModelInfo
from modules.engine.intake import check_sees
from modules.errors import BadAttachment, BadValue
from modules.messages import Picture
from modules.services import Services
from modules.units import format_size

MAX_PICTURES = 16
OR_IMAGE = ', or {"type": "image_url", "image_url": {"url": "data:image/png;base64,…"}}'
ONLY_USERS = "only the user's messages may hold pictures"
_DATA = re.compile(r"data:image/[a-z0-9.+-]+;base64,", re.IGNORECASE)


class ImageUrl(BaseModel):
    """Where a picture is: in the address itself."""

    url: str
    detail: str | None = None


class ImagePart(BaseModel):
    """A picture in a message's content."""

    type: Literal["image_url"]
    image_url: ImageUrl


def is_image(part: object) -> bool:
    """Whether a part of a message's content is a picture, or means to be one."""
    return isinstance(part, dict) and part.get("type") == "image_url"


def pictures_apart(values: object) -> object:
    """A message with its parts that are pictures under "pictures" too, where no client can put anything else."""
    if not isinstance(values, dict):
        return values
    content = values.get("content")
    images = [part for part in content if is_image(part)] if isinstance(content, list) else []
    return {name: value for name, value in values.items() if name != "pictures"} | {"pictures": images}


def bytes_of(part: object) -> bytes:
    """The file that a part holds. Raises PydanticCustomError with what to do instead."""
    inner = part.get("image_url") if isinstance(part, dict) else None
    url = inner.get("url") if isinstance(inner, dict) else inner
    if not isinstance(url, str):
        raise PydanticCustomError("image_url", 'image_url must be {"url": "data:image/png;base64,…"}')
    return bytes_at(url)


def bytes_at(url: str) -> bytes:
    """The file that a data: address holds. Raises PydanticCustomError with what to do instead."""
    head = _DATA.match(url)
    if head is None:
        raise PydanticCustomError(
            "image_address",
            "Snug fetches nothing from other machines; send the picture itself: data:image/png;base64,…",
        )
    return bytes_in(url[head.end() :])


def bytes_in(text: str) -> bytes:
    """The file that base64 holds. Raises PydanticCustomError with what to do instead."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise PydanticCustomError("image_base64", "the picture is no base64") from error
    if not data or len(data) > MAX_FILE_BYTES:
        raise PydanticCustomError("image_size", f"the picture has {format_size(len(data))}; make it smaller")
    return data


def files_of(parts: object) -> tuple[bytes, ...]:
    """The files of those parts that hold one; what is wrong with the others is told at the content."""
    found: list[bytes] = []
    for part in parts if isinstance(parts, list) else []:
        with suppress(PydanticCustomError):
            found.append(bytes_of(part))
    return tuple(found)


def look_at(
    files: Sequence[Sequence[bytes]], services: Services, info: ModelInfo, *, param: str = "messages"
) -> list[tuple[Picture, ...]]:
    """The pictures of each message, drawn anew. Raises NotAvailableHere for a model that cannot see, BadAttachment.

    `param` is the field that they came in.
    """
    count = sum(map(len, files))
    check_sees(info, count, param=param)
    if count > MAX_PICTURES:
        raise BadValue(f"{count} pictures are more than {MAX_PICTURES}.", remedy="Leave out the oldest.", param=param)
    return [tuple(_picture(data, services, param) for data in message) for message in files]


def picture_side(services: Services) -> int:
    """The longest side that pictures are kept with: the server's, or the loaded model's where that is longer."""
    loaded = services.models.options
    return max(services.models.defaults.picture_side, loaded.picture_side if loaded else 0)


def _picture(data: bytes, services: Services, param: str) -> Picture:
    taken = services.extractor.extract("The picture", data, most_side=picture_side(services))
    if taken.kind != "picture":
        raise BadAttachment("A picture is none: it holds text.", remedy="Send PNG, JPEG or WebP.", param=param)
    return taken.as_picture()
