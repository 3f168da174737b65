"""The page before the page: where to log in, or to enter the secret of a server for one. No script, nothing loaded.

It speaks the language of the request (texts/negotiating.py), as the page behind it will.
"""

from __future__ import annotations

import html
from collections.abc import Mapping

from fastapi.responses import HTMLResponse, Response

from modules.errors import SnugError, Unauthorized
from modules.texts.catalogue import Texts
from modules.texts.spoken import texts_of

POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'"
)
_LOGO = (
    '<svg viewBox="0 0 32 32" aria-hidden="true"><rect width="32" height="32" rx="9" fill="var(--accent)"/>'
    '<path d="M9 13.5a7 5.5 0 0 1 14 0c0 6-14 3-14 7.5a7 4 0 0 0 14 0" fill="none" stroke="var(--on)" '
    'stroke-width="2.6" stroke-linecap="round"/></svg>'
)
_STYLE = """
:root { color-scheme: light dark; --paper: #f7f7f4; --card: #fff; --ink: #1d211f; --soft: #5f6763; --line: #dcdcd6;
  --edge: #8d938e; --accent: #1d6b58; --press: #175646; --on: #fff; --bad: #b3372b; --bad-soft: #fbeeec;
  --ring: #cfe3db; --shadow: 0 1px 2px rgb(20 30 25 / 5%), 0 10px 40px rgb(20 30 25 / 8%); }
@media (prefers-color-scheme: dark) {
  :root { --paper: #111413; --card: #181c1a; --ink: #e6e9e7; --soft: #a2aaa6; --line: #2c322f; --edge: #6f7873;
    --accent: #63c2a5; --press: #7cd1b7; --on: #0c1f19; --bad: #ef8a7c; --bad-soft: #32201d; --ring: #24473c;
    --shadow: none; } }
* { box-sizing: border-box; }
body { margin: 0; min-height: 100dvh; display: grid; place-items: center; padding: 24px 16px 12vh;
  background: var(--paper); color: var(--ink); font: 16px/1.5 "IBM Plex Sans", system-ui, sans-serif; }
main { width: 100%; max-width: 372px; padding: 34px 34px 30px; border: 1px solid var(--line); border-radius: 18px;
  background: var(--card); box-shadow: var(--shadow); }
svg { display: block; width: 44px; height: 44px; margin-bottom: 18px; }
h1 { margin: 0 0 4px; font-size: 23px; line-height: 1.25; letter-spacing: -.01em; }
p { margin: 0; color: var(--soft); font-size: 15px; }
form { display: grid; gap: 16px; margin-top: 24px; }
label { display: grid; gap: 6px; font-size: 14px; font-weight: 600; }
input { width: 100%; height: 44px; padding: 0 13px; border: 1px solid var(--edge); border-radius: 10px;
  background: var(--card); color: inherit; font: inherit; font-weight: 400; }
input:focus { outline: 3px solid var(--ring); border-color: var(--accent); }
button { height: 46px; margin-top: 4px; border: 0; border-radius: 10px; background: var(--accent); color: var(--on);
  font: inherit; font-weight: 600; cursor: pointer; }
button:hover { background: var(--press); }
button:focus-visible { outline: 3px solid var(--ring); outline-offset: 2px; }
.bad { margin-top: 20px; padding: 11px 14px; border-radius: 10px; background: var(--bad-soft); color: var(--bad); }
@media (max-width: 480px) { body { padding: 0 0 10vh; background: var(--card); place-items: center stretch; }
  main { max-width: none; border: 0; box-shadow: none; padding: 24px; } }
"""


def login_page(
    headers: Mapping[str, str], problem: SnugError | None = None, *, name: str = "", status: int | None = None
) -> Response:
    """Where people log in, for a request with these headers; after a failure the name is still there."""
    texts = texts_of(headers)
    t = texts.get
    fields = (
        f'<label>{t("Name")}<input name="name" autocomplete="username" autocapitalize="none" spellcheck="false" '
        f'required maxlength="200" value="{html.escape(name[:200])}"{"" if name else " autofocus"}></label>'
        f'<label>{t("Password")}<input name="password" type="password" autocomplete="current-password" required '
        f'maxlength="1000"{" autofocus" if name else ""}></label>'
    )
    title, said, button = t("Welcome back"), t("Log in to your conversations."), t("Log in")
    page = _page(texts, title, said, fields, button, "/login", problem=problem)
    return _answer(page, status or (problem.http_status if problem else 200))


def locked_page(headers: Mapping[str, str], error: SnugError, *, wrong: bool) -> Response:
    """What a browser without the secret sees: where to get it, and a place to put it."""
    texts = texts_of(headers)
    t = texts.get
    fields = f'<label>{t("Secret")}<input name="token" type="password" autocomplete="off" required autofocus></label>'
    said = t("Open the address that Snug printed when it started, or enter its secret here.")
    told = Unauthorized(error.message) if isinstance(error, Unauthorized) else error  # where it is, is said already
    page = _page(texts, t("Snug is locked"), said, fields, t("Open"), "/", problem=told if wrong else None)
    return _answer(page, error.http_status)


def once_more() -> Response:
    """For who followed a link from another site: a strict cookie comes with the next request, which is our own."""
    return HTMLResponse(
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Snug</title>'
        '<meta http-equiv="refresh" content="0;url=/"></head><body></body></html>',
        headers={"cache-control": "no-store"},
    )


def _page(
    texts: Texts, title: str, said: str, fields: str, button: str, action: str, *, problem: SnugError | None
) -> str:
    told = f'<p class="bad" role="alert">{html.escape(texts.tell(str(problem)))}</p>' if problem else ""
    method = "get" if action == "/" else "post"
    language = texts.language
    return (
        f'<!doctype html><html lang="{language.code}" dir="{language.direction}">'
        '<head><meta charset="utf-8"><title>Snug</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="referrer" content="same-origin"><link rel="icon" href="data:,">'
        f"<style>{_STYLE}</style></head><body><main>{_LOGO}<h1>{title}</h1><p>{said}</p>{told}"
        f'<form method="{method}" action="{action}">{fields}<button type="submit">{button}</button></form>'
        "</main></body></html>"
    )


def _answer(page: str, status: int) -> Response:
    return HTMLResponse(page, status, {"cache-control": "no-store", "vary": "Cookie, Accept-Language"})
