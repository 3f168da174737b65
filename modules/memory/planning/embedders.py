"""A model that embeds texts in a plan: what does not go with it, and what is said of it. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from modules.errors import NotAvailableHere
from modules.memory.forecasting.encoding import batch_tokens
from modules.memory.forecasting.forecast import RunSpec
from modules.memory.model.embedder import Embedder, Pooling
from modules.memory.model.model_spec import ModelSpec
from modules.settings import LoadOptions

_BY: dict[Pooling, str] = {
    "mean": "Its vectors are the mean of a text's tokens.",
    "cls": "Its vectors are those of a text's first token.",
    "last": "Its vectors are those of a text's last token.",
}


def check_embedder(spec: ModelSpec, options: LoadOptions) -> None:
    """Raise NotAvailableHere for flags that are of use only to a model that writes, or that would split this one."""
    if spec.embedder is None:
        return
    reasons = {
        "lora": (bool(options.lora), "--lora", "adapters are not merged into models that embed"),
        "draft_model": (bool(options.draft_model), "--draft-model", "it writes no tokens that could be guessed"),
        "kv_cache": (options.kv_cache not in ("auto", "plain"), "--kv-cache", "it keeps no KV cache"),
        "loader": (options.loader in ("vllm", "llamacpp"), f"--loader {options.loader}", "transformers embeds with it"),
        "deepspeed": (options.deepspeed, "--deepspeed", "it runs whole on one device"),
        "auto_devices": (options.auto_devices, "--auto-devices", "it runs whole on one device"),
        "disk": (options.disk, "--disk", "it runs whole on one device"),
    }
    for param, (asked, flag, why) in reasons.items():
        if asked:
            raise NotAvailableHere(
                f"{flag}: {spec.name} embeds texts, and {why}.", remedy=f"Drop {flag.partition(' ')[0]}.", param=param
            )


def embedder_notes(
    spec: ModelSpec, embedder: Embedder, run: RunSpec, wished_tokens: int, *, asked: bool
) -> Iterator[str]:
    """What it does, and how long a text may be; `asked` says that a flag names that length."""
    yield "It embeds texts for /v1/embeddings and writes no replies."
    yield _BY[embedder.pooling]
    if embedder.normalizes:
        yield "They are brought to length 1."
    yield f"Texts of like length are read together, up to {batch_tokens(run):,} tokens at once."
    if run.context_tokens < wished_tokens:
        yield f"A text may have {run.context_tokens:,} tokens: {wished_tokens:,} do not fit."
    elif not asked and run.context_tokens < spec.max_context:
        yield f"A text may have {run.context_tokens:,} tokens; the model can take {spec.max_context:,} (--ctx-size)."
    else:
        yield f"A text may have {run.context_tokens:,} tokens."
