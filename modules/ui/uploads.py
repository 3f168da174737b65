"""Uploads to the page before Gradio reads them: a form of a few parts, in no character set but the usual one.

Gradio opens a file for each part and holds it until the last has come, of a thousand parts; reads names in whatever
character set the form asks for, of which one (punycode) takes time with the square of the length; and never forgets the
numbers under which uploads' progress is asked for, so those it does not hear of.
"""

from __future__ import annotations

import re

from starlette.types import Message, Receive, Scope

from modules.errors import BodyTooLarge

MOST_PARTS = 64
_BOUNDARY = re.compile(rb"multipart/form-data\b.*?;\s*boundary=\"?([\w'()+,./:=?-]{1,70})\"?\s*(?:;.*)?", re.IGNORECASE)


def plain_upload(scope: Scope, receive: Receive) -> Receive:
    """The upload as Gradio is to see it; `scope` is changed. Its body raises BodyTooLarge for many parts."""
    told = b",".join(value for name, value in scope["headers"] if name.lower() == b"content-type")
    found = _BOUNDARY.fullmatch(told)
    scope["headers"] = [pair for pair in scope["headers"] if pair[0].lower() != b"content-type"]
    scope["query_string"] = b""
    if found is None:  # Gradio refuses what is no form
        return receive
    scope["headers"].append((b"content-type", b"multipart/form-data; boundary=" + found[1]))
    mark, seen, parts = b"--" + found[1], b"", 0

    async def few() -> Message:
        nonlocal seen, parts
        message = await receive()
        seen += message.get("body", b"")
        parts += seen.count(mark)
        if parts > MOST_PARTS + 1:  # the end has a mark too
            raise BodyTooLarge(f"An upload has more than {MOST_PARTS} files.", remedy="Send fewer at once.")
        last = seen.rfind(mark)
        seen = seen[max(last + len(mark) if last >= 0 else 0, len(seen) - len(mark) + 1) :]
        return message

    return few
