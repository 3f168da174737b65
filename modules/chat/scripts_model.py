"""The loaded model as extensions may ask it: a Backend of extensions/webui.py. What they give it is content."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from modules.engine.base import Delta, Finished, GenerationRequest, TextPiece, Words
from modules.extensions.state import params_of
from modules.models.manager import ModelManager
from modules.sampling import MAX_STOP_STRINGS, GenerationParams

OWNER = "extensions"  # in the fair queue


@dataclass(frozen=True, slots=True)
class ModelForScripts:
    """As Backend. Raises NoModelLoaded, and what the engine raises."""

    models: ModelManager

    def name(self) -> str:
        """As Backend."""
        state = self.models.state
        return state.info.name if state.info else "None"

    def encode(self, text: str) -> list[int]:
        """As Backend."""
        return self.models.engine().encode([TextPiece(text)])

    def decode(self, token_ids: Sequence[int]) -> str:
        """As Backend."""
        return self.models.engine().decode(token_ids)

    def generate(self, prompt: str, state: dict[str, Any], stop: Sequence[str]) -> Iterator[str]:
        """As Backend."""
        engine = self.models.engine()
        params, _ = params_of(state, GenerationParams())
        params = params.model_copy(update={"stop": (*params.stop, *stop)[:MAX_STOP_STRINGS]})
        words = Words(text=prompt) if engine.info.takes == "words" else None
        ids = () if words else (*engine.info.text_prefix_ids, *engine.encode([TextPiece(prompt)]))
        text = ""
        with engine.submit(GenerationRequest(uuid4().hex, OWNER, ids, params, words=words, whose=OWNER)) as generation:
            for event in generation:
                if isinstance(event, Delta):
                    text += event.text
                    yield text
                elif isinstance(event, Finished) and event.error:
                    raise event.error
