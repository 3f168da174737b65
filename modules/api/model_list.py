"""The loaded model as Anthropic's /v1/models tells it. Pure."""

from __future__ import annotations

from typing import Any

from modules.engine.base import ModelInfo


def anthropic_model(info: ModelInfo) -> dict[str, Any]:
    """One model."""
    return {
        "id": info.name,
        "type": "model",
        "display_name": info.name,
        "created_at": "1970-01-01T00:00:00Z",
        "lifecycle": "active",
        "max_input_tokens": info.context_tokens or None,
        "max_tokens": info.context_tokens or None,
    }


def anthropic_models(info: ModelInfo | None) -> dict[str, Any]:
    """The list of the one that is loaded, or of none."""
    name = None if info is None else info.name
    models = [] if info is None else [anthropic_model(info)]
    return {"data": models, "has_more": False, "first_id": name, "last_id": name}
