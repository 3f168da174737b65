"""The loaded model as Anthropic's /v1/models tells it. Pure."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from modules.engine.base import ModelInfo


def anthropic_model(info: ModelInfo) -> dict[str, Any]:
    """One model."""
    return {
        "id": info.name,
        "type": "model",
        "display_name": info.name,
        "created_at": datetime.fromtimestamp(info.loaded_at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "lifecycle": "active",
        "max_input_tokens": info.context_tokens or None,
        "max_tokens": info.context_tokens or None,
    }


def anthropic_models(info: ModelInfo | None) -> dict[str, Any]:
    """The list of the one that is loaded, or of none."""
    name = None if info is None else info.name
    models = [] if info is None else [anthropic_model(info)]
    return {"data": models, "has_more": False, "first_id": name, "last_id": name}
