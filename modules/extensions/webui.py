"""What scripts find under text-generation-webui's names of modules in the web process, and what Snug itself offers.

A small part: names of the model, its tokens, text from it, a logger, one door to the network. docs/extensions.md has
the list.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, Protocol

from modules.extensions.absent import stand_in
from modules.extensions.script import OF_WEBUI, OURS
from modules.outgoing import fetch

TORCH = "is not in the web process: only logits_processor_modifier runs where the model is"
GPU_LIBRARIES = ("torch", "transformers", "accelerate", "bitsandbytes", "deepspeed", "tokenizers", "torchaudio",
                 "torchvision", "diffusers", "sentence_transformers", "peft")  # fmt: skip
ABSENT: Mapping[str, str] = dict.fromkeys(GPU_LIBRARIES, TORCH)


class Backend(Protocol):
    """The loaded model, as scripts may use it. Every method raises SnugError where there is none."""

    def name(self) -> str:
        """The model's name, "None" where there is none."""

    def encode(self, text: str) -> list[int]:
        """Token ids of a text."""

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of token ids."""

    def generate(self, prompt: str, state: dict[str, Any], stop: Sequence[str]) -> Iterator[str]:
        """The continuation of a prompt, the whole so far each time."""


class NoBackend:
    """Until Snug has started."""

    def name(self) -> str:
        """As Backend."""
        return "None"

    def encode(self, _: str) -> list[int]:
        """As Backend."""
        raise RuntimeError("Snug is still starting: no model can be asked yet")

    def decode(self, _: Sequence[int]) -> str:
        """As Backend."""
        raise RuntimeError("Snug is still starting: no model can be asked yet")

    def generate(self, _: str, __: dict[str, Any], ___: Sequence[str]) -> Iterator[str]:
        """As Backend."""
        raise RuntimeError("Snug is still starting: no model can be asked yet")


class Model:
    """The backend that faces lead to, which comes later than they do."""

    backend: Backend = NoBackend()


class _Shared(Mapping[str, Any]):
    """`shared.gradio`: controls of text-generation-webui's page, none of which Snug's page has."""

    def __getitem__(self, name: str) -> Any:
        raise KeyError(f"shared.gradio[{name!r}] {OF_WEBUI}")

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


class _Arguments(SimpleNamespace):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return None  # a flag of text-generation-webui that is not given


def faces(extension: str, model: Model) -> dict[str, dict[str, Any]]:
    """Name of a module → what a script finds there."""

    def generate_reply(
        question: str, state: dict[str, Any], stopping_strings: Sequence[str] | None = None, *_: Any, **__: Any
    ) -> Iterator[str]:
        yield from model.backend.generate(question, state, stopping_strings or ())

    def count(text: str) -> int:
        return len(model.backend.encode(text))

    def encode(text: str, *_: Any, **__: Any) -> list[list[int]]:
        return [model.backend.encode(text)]

    def decode(token_ids: Sequence[int], *_: Any, **__: Any) -> str:
        return model.backend.decode([int(token) for token in token_ids])

    logger = logging.getLogger(f"extension.{extension}")
    shared = {
        "args": _Arguments(listen=False, extensions=[], verbose=False),
        "gradio": _Shared(),
        "settings": {},
        "is_seq2seq": False,
        "stop_everything": False,
        "model": stand_in("shared.model", TORCH),
        "tokenizer": stand_in("shared.tokenizer", TORCH),
    }
    generation = {
        "generate_reply": generate_reply,
        "encode": encode,
        "decode": decode,
        "get_encoded_length": count,
    }
    return {
        "shared": shared,
        "text_generation": generation,
        "logging_colors": {"logger": logger},
        OURS: {"fetch": fetch, "logger": logger, "model_name": lambda: model.backend.name()},
    }
