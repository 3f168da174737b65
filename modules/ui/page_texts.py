"""What the page is told as it comes: its language in the HTML, the script with that language's words, whose page it is.

ASGI around the page's app. A page in English gets nothing more than the names of the languages; one in another language
gets a script that browsers keep for good, as its address changes with its content.
"""

from __future__ import annotations

import json
import re
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from modules.accounts.person import person_in
from modules.texts.catalogue import Catalogue, Texts
from modules.texts.negotiating import COOKIE, ENGLISH, choose_language, chosen

_SCRIPT = re.compile(r"/texts/([A-Za-z-]{2,20})\.js")
_HTML_TAG = re.compile(rb'<html\s+lang="en"')
_GRADIO = b'<script type="module"'
# Gradio's own few words follow the browser; they are to follow the choice.
_GRADIO_TOO = 'Object.defineProperty(navigator, "language", { value: window.snugLanguage.code, configurable: true });'
_YEAR_S = 365 * 24 * 3600


class PageTexts:
    """The page at "/" and its texts at /texts/LANGUAGE.js; everything else passes through."""

    def __init__(self, app: ASGIApp, catalogue: Catalogue) -> None:
        self.app = app
        self.catalogue = catalogue

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] in ("GET", "HEAD"):
            if asked := _SCRIPT.fullmatch(scope["path"]):
                await self._script(asked.group(1))(scope, receive, send)
                return
            if scope["path"] == "/":
                await self._page(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _script(self, code: str) -> Response:
        if code not in self.catalogue.codes:
            return PlainTextResponse("There is no such language.", 404)
        kept = {"cache-control": f"public, max-age={_YEAR_S}, immutable"}
        return Response(self.catalogue.texts(code).script, media_type="text/javascript; charset=utf-8", headers=kept)

    async def _page(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        asked = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("language", [""])[0]
        asked = asked if asked == ENGLISH or asked in self.catalogue.codes else ""
        code = asked or choose_language(headers, self.catalogue.codes)
        texts = self.catalogue.texts(code)
        tags = self._script_tags(texts, asked or self._chosen(headers), person_in(scope).owner)
        await self.app(scope, receive, _Speaking(send, tags, texts, asked))

    def _chosen(self, headers: Headers) -> str:
        """The language of the cookie, if there is one: any server on this host may have set it, to anything."""
        code = chosen(headers)
        return code if code == ENGLISH or code in self.catalogue.codes else ""

    def _script_tags(self, texts: Texts, chosen: str, owner: str) -> bytes:
        language = texts.language
        told = {
            "code": language.code,
            "direction": language.direction,
            "chosen": chosen,
            "offered": [{"code": one.code, "name": one.name} for one in self.catalogue.offered],
        }
        words = f"window.snugLanguage = {_script_value(told)};{_GRADIO_TOO if chosen else ''}"
        tags = f"<script>window.snugOwner = {_script_value(owner)};{words}</script>"
        if language.code != ENGLISH:
            tags += f'<script src="texts/{language.code}.js?v={texts.version}"></script>'
        return tags.encode()


def _script_value(value: object) -> str:
    return json.dumps(value, ensure_ascii=False).replace("<", "\\u003c")  # nothing in it ends the script


class _Speaking:
    """Sends a page on in a language; keeps it back until it is complete. What is no page goes on as it comes."""

    def __init__(self, send: Send, tags: bytes, texts: Texts, asked: str) -> None:
        self._send, self._tags, self._asked = send, tags, asked
        self._html = f'<html lang="{texts.language.code}" dir="{texts.language.direction}"'.encode()
        self._start: Message | None = None
        self._body = b""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start" and _is_page(message):
            self._start = message
        elif self._start is None:
            await self._send(message)
        else:
            self._body += message.get("body", b"")
            if not message.get("more_body"):
                await self._send_page(self._start)

    async def _send_page(self, start: Message) -> None:
        head, found, rest = _HTML_TAG.sub(self._html, self._body, count=1).partition(_GRADIO)
        whole = head + (self._tags if found else b"") + found + rest
        answer = {**start, "headers": list(start["headers"])}
        headers = MutableHeaders(raw=answer["headers"])
        headers.add_vary_header("Cookie, Accept-Language")
        if self._body:
            headers["content-length"] = str(len(whole))
        if self._asked:
            headers.append("set-cookie", f"{COOKIE}={self._asked}; Path=/; SameSite=Lax; Max-Age={10 * _YEAR_S}")
        await self._send(answer)
        await self._send({"type": "http.response.body", "body": whole})


def _is_page(start: Message) -> bool:
    headers = Headers(raw=start["headers"])
    html = headers.get("content-type", "").startswith("text/html")
    return start["status"] == 200 and html and "content-encoding" not in headers
