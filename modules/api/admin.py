"""Snug's own routes: the model (list, info, load, unload) and health.

A load changes what start-up flags allow to change and nothing more: folders and trust_remote_code are no part of its
body. A load goes on when the client that asked for it leaves; /v1/internal/model/info shows how far it is.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import asdict
from functools import partial

from anyio import to_thread
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from modules.api import sse
from modules.api.errors import error_object
from modules.api.schemas import LoadRequest, LorasRequest
from modules.api.shapes import Json
from modules.engine.base import ModelInfo, Progress
from modules.errors import NoModelLoaded
from modules.files import without_folders
from modules.memory.model.lora import list_loras
from modules.models.manager import ModelManager
from modules.models.state import ModelState
from modules.services import Services
from modules.settings import LoadOptions

_HIDDEN = ("chat_template", "special_tokens", "modules")
"""What ModelInfo holds for the house's own use."""


def admin_routes(services: Services, *, keep_alive_s: float, send_timeout_s: float) -> APIRouter:
    """The routes under /v1/internal/model, and /health."""
    models = services.models
    router = APIRouter()

    @router.get("/health")
    def health() -> Json:
        """Alive: it answers at all. Ready: a model answers, perhaps while the next one is loading."""
        state = models.state
        ready = state.info is not None and state.status != "died"
        name = None if state.info is None else state.info.name
        return {"status": "ok", "ready": ready, "model": name, "state": state.status}

    @router.get("/health/live")
    def alive() -> Json:
        """Alive: the server answers, whatever the model does."""
        return {"status": "ok"}

    @router.get("/health/ready")
    def ready() -> Response:
        """Ready: a model answers. Else 503 with the reason: none is loaded, one is loading, failed or died."""
        state = models.state
        answers = state.info is not None and state.status != "died"
        reason = None if answers else _unready(state)
        return JSONResponse({"ready": answers, "state": state.status, "reason": reason}, 200 if answers else 503)

    @router.get("/v1/internal/model/list")
    def list_models() -> Json:
        """Every model in the models folder; `problem` says why one cannot be loaded."""
        entries = [
            {"name": entry.name, "kind": entry.kind, "size_bytes": entry.size_bytes, "problem": entry.problem}
            for entry in models.list()
        ]
        return {"object": "list", "data": entries, "model_names": [entry["name"] for entry in entries]}

    @router.get("/v1/internal/model/info")
    def model_info() -> Json:
        """The loaded model, where it went and why; or how far a load is, or how it failed."""
        return _state_json(models)

    @router.post("/v1/internal/model/load")
    async def load_model(request: Request, body: LoadRequest) -> Response:
        """Load a model in place of the one that is loaded, which stays until the new one answers."""
        options = body.options(models.defaults)
        if body.stream:
            produce = partial(_stream_load, models, options)
            return sse.EventStream(produce, keep_alive_s=keep_alive_s, send_timeout_s=send_timeout_s)
        load = partial(to_thread.run_sync, partial(models.load, options), abandon_on_cancel=True)
        return JSONResponse(_info_json(await sse.unless_disconnected(request, load)))

    @router.post("/v1/internal/model/unload")
    def unload_model() -> Json:
        """Unload the model and give back its memory. Nothing happens where none is loaded."""
        models.unload()
        return _state_json(models)

    @router.get("/v1/internal/lora/list")
    def loras() -> Json:
        """The LoRA adapters in the folder for them."""
        return {"lora_names": list_loras(services.settings.lora_dir)}

    @router.post("/v1/internal/lora/load")
    def load_loras(body: LorasRequest) -> Json:
        """Load the model anew with these adapters."""
        _with_loras(models, tuple(body.lora_names))
        return _state_json(models)

    @router.post("/v1/internal/lora/unload")
    def unload_loras() -> Json:
        """Load the model anew without any."""
        _with_loras(models, ())
        return _state_json(models)

    return router


def _with_loras(models: ModelManager, names: tuple[str, ...]) -> None:
    options = models.options
    if options is None:
        raise NoModelLoaded("Adapters change a model, and none is loaded.", remedy="Load a model first.")
    if options.lora != names:
        models.load(LoadOptions.model_validate(options.model_dump() | {"lora": names}))


async def _stream_load(models: ModelManager, options: LoadOptions, write: sse.Write) -> None:
    """Progress as events `{"stage", "fraction"}`, then the loaded model as `{"model": …}`."""
    loop = asyncio.get_running_loop()
    steps: asyncio.Queue[Progress | None] = asyncio.Queue()

    def tell(step: Progress | None) -> None:
        with contextlib.suppress(RuntimeError):  # the server is down: the load's end concerns nobody any more
            loop.call_soon_threadsafe(steps.put_nowait, step)

    def load() -> ModelInfo:
        try:
            return models.load(options, tell)
        finally:
            tell(None)

    task = asyncio.ensure_future(to_thread.run_sync(load, abandon_on_cancel=True))
    try:
        while (step := await steps.get()) is not None:
            await write(sse.event(asdict(step)))
        await write(sse.event({"model": _info_json(await task)}))
        await write(sse.DONE)
    finally:
        task.cancel()


def _unready(state: ModelState) -> str:
    """Why no model answers, in a sentence."""
    if state.status == "loading":
        done = f", {state.progress.fraction:.0%}: {state.progress.stage}" if state.progress else ""
        return f"{state.name} is loading{done}."
    if state.error is not None:
        return without_folders(str(state.error))
    return "No model is loaded."


def _loras_json(models: ModelManager) -> Json:
    """What text-generation-webui tells of the model that answers."""
    info = models.state.info
    return {
        "model_name": info.name if info else "None",
        "lora_names": list(info.adapters) if info else [],
        "loader": info.loop if info else None,
    }


def _state_json(models: ModelManager) -> Json:
    state = models.state
    return _loras_json(models) | {
        "status": state.status,
        "name": state.name,
        "progress": None if state.progress is None else asdict(state.progress),
        "error": None if state.error is None else error_object(state.error)["error"],
        "model": None if state.info is None else _info_json(state.info),
        "reasons": [] if state.plan is None else list(state.plan.reasons),
    }


def _info_json(info: ModelInfo) -> Json:
    return {name: value for name, value in asdict(info).items() if name not in _HIDDEN}
