"""The web app without the page: the API's routes and how their errors look. guard.py stands in front of it."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import FastAPI

from modules.api import sse
from modules.api.accounts import account_routes
from modules.api.admin import admin_routes
from modules.api.anthropic.routes import anthropic_routes
from modules.api.attachments import attachment_routes
from modules.api.conversations import conversation_routes
from modules.api.downloads import download_routes
from modules.api.errors import install_error_handlers
from modules.api.internal import internal_routes
from modules.api.lost import lost_routes
from modules.api.metrics import metrics_routes
from modules.api.openai import openai_routes
from modules.api.pictures import picture_routes
from modules.api.plans import plan_routes
from modules.api.responses.routes import responses_routes
from modules.api.tokens import LongTexts, token_routes
from modules.services import Services


@dataclass(frozen=True, slots=True)
class Patience:
    """How long streams wait, in seconds: between signs of life, and for a client to take in one event."""

    keep_alive_s: float = sse.KEEP_ALIVE_S
    send_timeout_s: float = sse.SEND_TIMEOUT_S


def build_api(services: Services, *, patience: Patience = Patience()) -> FastAPI:
    """The app that the page is mounted on. Put guard.install_guard in front before serving it to anyone."""
    app = FastAPI(title="Snug", docs_url=None, redoc_url=None, swagger_ui_oauth2_redirect_url=None)
    install_error_handlers(app)
    waits = {"keep_alive_s": patience.keep_alive_s, "send_timeout_s": patience.send_timeout_s}
    # Our own first: openai's catch-all for /v1 comes last, so that the page's own routes never answer for the API.
    app.include_router(account_routes(services))
    app.include_router(admin_routes(services, **waits))
    long_texts = LongTexts(services)
    app.include_router(internal_routes(services, long_texts))
    app.include_router(plan_routes(services))
    app.include_router(metrics_routes(services))
    app.include_router(download_routes(services))
    app.include_router(token_routes(services, long_texts))
    app.include_router(picture_routes(services))
    app.include_router(attachment_routes(services))
    app.include_router(conversation_routes(services))
    app.include_router(anthropic_routes(services, **waits))
    app.include_router(responses_routes(services, **waits))
    app.include_router(lost_routes())
    app.include_router(openai_routes(services, **waits))
    return app
