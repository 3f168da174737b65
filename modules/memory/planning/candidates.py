"""Every way to run a model on a machine: in which precision, on which devices, and what is not worth a try, with why.

Pure. It does not know whether a way fits; that is fitting.py's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.util import find_spec
from typing import Literal

from modules.errors import BadFlag, BadValue, NotAvailableHere
from modules.memory.forecasting.forecast import DTYPE_FLAGS, DType, Quantization, RunSpec, kv_cache_bytes, weight_bytes
from modules.memory.forecasting.kinds import quantizable
from modules.memory.forecasting.kv_cache import LABELS as CACHE_LABELS
from modules.memory.forecasting.kv_cache import QUALITY as CACHE_QUALITY
from modules.memory.forecasting.kv_cache import KVCache, why_not
from modules.memory.forecasting.llamacpp_sizes import why_not_cached
from modules.memory.llamacpp_build import GPU_BUILD, OTHER_BUILDS
from modules.memory.model.gguf_parts import part_number
from modules.memory.model.spec import ModelSpec
from modules.memory.planning.embedders import check_embedder
from modules.memory.planning.quality import expected_quality
from modules.settings import LoadOptions

Place = Literal["gpu", "gpus", "split", "cpu", "zero3"]
Loader = Literal["transformers", "deepspeed", "llamacpp", "remote", "vllm"]
DEFAULT_CONTEXT = 8192
_DTYPES = {flag: dtype for dtype, flag in DTYPE_FLAGS.items()}
LABELS: dict[Quantization, str] = {"none": "", "int8": "8-bit", "nf4": "4-bit (nf4)", "fp4": "4-bit (fp4)"}

# A way that saves less of the weights than this changes nothing worth its loss.
_LEAST_SAVING = 0.1
_SMALLER_CACHES: tuple[KVCache, ...] = ("int8", "int4", "offloaded")
_CACHES: tuple[KVCache, ...] = ("plain", "static", *_SMALLER_CACHES)


@dataclass(frozen=True, slots=True)
class Way:
    """One way to run a model. `disk`: what fits nowhere else stays on disk. `quality` as in Plan."""

    run: RunSpec
    place: Place
    disk: bool = False
    quality: float = 1.0

    @property
    def rung(self) -> tuple[int, int, int]:
        """Where it stands on the ladder: 16-bit, 8-bit, 4-bit; split over GPU and CPU; disk; DeepSpeed.

        Of two alike, the one whose cache is kept as computed is first.
        """
        place = 3 if self.place == "zero3" else 2 if self.disk else 1 if self.place in ("split", "cpu") else 0
        precision = {"none": 0, "int8": 1, "nf4": 2, "fp4": 3}[self.run.quantization]
        return place, 2 * precision + self.run.double_quant, _CACHES.index(self.run.kv_cache)

    @property
    def loader(self) -> Loader:
        """Whose engine runs it."""
        if self.place == "zero3":
            return "deepspeed"
        return "llamacpp" if self.run.runtime == "llamacpp" else "transformers"

    @property
    def label(self) -> str:
        """`16-bit`, `8-bit`, `4-bit (nf4, double)`."""
        if self.run.runtime == "llamacpp":
            return "As stored (llama.cpp)"
        if self.run.quantization == "none":
            return "32-bit" if self.run.dtype == "float32" else "16-bit"
        label = LABELS[self.run.quantization]
        return label.replace(")", ", double)") if self.run.double_quant else label


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the flags leave open. `precision` and `placement` say whether a flag names one.

    `llamacpp_gpu`: llama.cpp can compute on the GPUs.
    """

    options: LoadOptions
    gpus: int
    llamacpp_gpu: bool = False

    @property
    def precision(self) -> bool:
        """Whether a flag names a precision."""
        options = self.options
        return options.bf16 or options.dtype != "auto" or options.load_in_8bit or options.load_in_4bit

    @property
    def placement(self) -> bool:
        """Whether a flag names a way to split the model: then its precision is not Snug's to lower."""
        return asks_to_split(self.options) or self.options.deepspeed


def asks_to_split(options: LoadOptions) -> bool:
    """Whether the user named a way to split the model."""
    return options.auto_devices or options.disk or bool(options.gpu_memory) or options.cpu_memory is not None


def list_ways(
    spec: ModelSpec, options: LoadOptions, gpus: int, *, llamacpp_gpu: bool = False
) -> tuple[tuple[Way, ...], tuple[tuple[str, str], ...]]:
    """The ways that `options` leave open with so many GPUs, on which llama.cpp can compute if `llamacpp_gpu`, and what
    was dropped: (what, why).

    Raises BadValue for an impossible context, BadFlag for quantizing what is quantized already, NotAvailableHere.
    """
    wishes = Wishes(options, gpus, llamacpp_gpu)
    _check(spec, options, gpus)
    runs, dropped = _precisions(spec, wishes)
    # What saves something is asked of transformers where it may run the model; llama.cpp then drops what it lacks.
    caches, dropped_caches = _caches(spec, wishes, next((run for run in runs if run.runtime == "torch"), runs[0]))
    ways: list[Way] = []
    for run in runs:
        for place, disk in _places(spec, wishes, run):
            on_cpu = place == "cpu" or (place == "zero3" and not gpus)
            placed = _on_cpu(spec, options, run) if on_cpu else run
            for cache in caches:
                if run.runtime == "llamacpp" and why_not_cached(cache, spec):
                    continue
                if _goes_with(cache, place, disk=disk, wishes=wishes):
                    kept = replace(placed, kv_cache=cache)
                    ways.append(Way(kept, place, disk, _quality(spec, kept)))
    return tuple(ways), (*dropped, *dropped_caches)


def _caches(spec: ModelSpec, wishes: Wishes, run: RunSpec) -> tuple[list[KVCache], list[tuple[str, str]]]:
    """The kinds of KV cache to try, as computed first; of those that no flag names, what was dropped with why."""
    none_kept = wishes.options.loader == "vllm" or spec.embedder is not None
    asked = "plain" if none_kept else wishes.options.kv_cache
    if asked != "auto":
        return [asked], []
    kept = [_CACHES[0]]
    dropped: dict[str, list[str]] = {}
    for kind in _SMALLER_CACHES if wishes.gpus else _SMALLER_CACHES[:-1]:
        impossible = why_not_cached(kind, spec) if run.runtime == "llamacpp" else why_not(kind, spec, wishes.gpus)
        reason = impossible or _why_no_saving(spec, replace(run, kv_cache=kind))
        if reason:
            dropped.setdefault(reason, []).append(CACHE_LABELS[kind])
        else:
            kept.append(kind)
    return kept, [(", ".join(labels), reason) for reason, labels in dropped.items()]


def _why_no_saving(spec: ModelSpec, run: RunSpec) -> str:
    """Why the cache of `run` is hardly smaller than one kept as computed; "" where it is."""
    if run.kv_cache == "offloaded":
        return ""
    whole = kv_cache_bytes(spec, replace(run, kv_cache="plain"), run.context_tokens)
    saved = 1 - kv_cache_bytes(spec, run, run.context_tokens) / max(1, whole)
    if saved >= _LEAST_SAVING:
        return ""
    return "it would save next to nothing: windows, states and the latest tokens stay as they are"


def _goes_with(cache: KVCache, place: Place, *, disk: bool, wishes: Wishes) -> bool:
    """Whether a kind of cache is an answer for that place; unasked, only where no weights wait for the disk."""
    if cache == "static":
        return place == "gpu" and not disk
    if cache == "offloaded":
        return place in ("gpu", "split")
    return cache == "plain" or wishes.options.kv_cache != "auto" or not (disk or place == "zero3")


def wished_context(spec: ModelSpec, options: LoadOptions) -> int:
    """The context to aim at: the user's, else the model's own, at most DEFAULT_CONTEXT. Raises BadValue."""
    if options.ctx_size is None:
        return min(spec.max_context, DEFAULT_CONTEXT)
    if options.ctx_size > spec.max_context:
        raise BadValue(
            f"--ctx-size {options.ctx_size}: {spec.name} was made for at most {spec.max_context} tokens.",
            remedy=f"Use --ctx-size {spec.max_context} or less.",
            param="ctx_size",
        )
    return options.ctx_size


def _check_cache(spec: ModelSpec, options: LoadOptions, gpus: int) -> None:
    if options.kv_cache == "auto":
        return
    reason = why_not(options.kv_cache, spec, gpus)
    if options.kv_cache in ("static", "offloaded") and options.deepspeed:
        reason = reason or "not built for ZeRO-3"
    if reason:
        raise NotAvailableHere(
            f"--kv-cache {options.kv_cache} for {spec.name}: {reason}.", remedy="Drop the flag.", param="kv_cache"
        )


def _check_layers(spec: ModelSpec, options: LoadOptions) -> None:
    if options.gpu_layers is None:
        return
    why = "it is no GGUF file" if spec.source != "gguf" else ""
    why = why or (f"--loader {options.loader} does not take it" if options.loader not in ("auto", "llamacpp") else "")
    if why:
        raise NotAvailableHere(
            f"--gpu-layers {options.gpu_layers} for {spec.name}: {why}.",
            remedy="Use --gpu-memory or --auto-devices to split it.",
            param="gpu_layers",
        )


def _check(spec: ModelSpec, options: LoadOptions, gpus: int) -> None:
    """Refuse what cannot be for this model under any circumstances."""
    check_embedder(spec, options)
    _check_cache(spec, options, gpus)
    _check_layers(spec, options)
    wanted = _flagged(options)
    flag = "--load-in-8bit" if wanted == "int8" else "--load-in-4bit"
    if options.deepspeed and spec.vision is not None:
        raise NotAvailableHere(
            f"--deepspeed: {spec.name} sees, and ZeRO-3 runs models that read text here.",
            remedy="Drop --deepspeed; --auto-devices and --disk split the model too.",
            param="deepspeed",
        )
    if options.deepspeed and spec.prequantized != "none":
        raise NotAvailableHere(f"--deepspeed: {spec.name} is quantized.", remedy="ZeRO-3 needs 16-bit weights.")
    if wanted == "none":
        return
    if spec.prequantized not in ("none", wanted):
        raise BadFlag(f"{flag}: {spec.name} is stored as {spec.prequantized} already.", remedy="Drop the flag.")
    if spec.source == "gguf":
        raise NotAvailableHere(
            f"{spec.name} is a GGUF file; bitsandbytes cannot quantize it a second time.",
            remedy=f"Drop {flag}.",
            param="load_in_8bit" if wanted == "int8" else "load_in_4bit",
        )


def _flagged(options: LoadOptions) -> Quantization:
    """The quantization that a flag names."""
    return "int8" if options.load_in_8bit else (options.quant_type or "nf4") if options.load_in_4bit else "none"


def _stored(spec: ModelSpec, options: LoadOptions) -> DType:
    """The precision of weights that are not quantized, on a GPU."""
    wanted = "bf16" if options.bf16 else options.dtype
    if wanted != "auto":
        return _DTYPES[wanted]
    return next((dtype for dtype in DTYPE_FLAGS if dtype == spec.stored_dtype), "bfloat16")


def _on_cpu(spec: ModelSpec, options: LoadOptions, run: RunSpec) -> RunSpec:
    """`run` as a CPU does it: bf16 for files in fp16, with which CPUs are slow, unless a flag says otherwise."""
    if run.dtype != "float16" or options.bf16 or options.dtype != "auto" or spec.stored_dtype != "float16":
        return run
    compute = run.compute_dtype if options.compute_dtype else "bfloat16"
    return replace(run, dtype="bfloat16", compute_dtype=compute)


def _precisions(spec: ModelSpec, wishes: Wishes) -> tuple[list[RunSpec], list[tuple[str, str]]]:
    """The precisions to try, as runs of the wished context, and what was dropped."""
    options, wanted = wishes.options, _flagged(wishes.options)
    dtype = _stored(spec, options)
    base = RunSpec(
        dtype=dtype,
        quantization=wanted if spec.prequantized == "none" else spec.prequantized,
        double_quant=options.use_double_quant,
        compute_dtype=_DTYPES[options.compute_dtype] if options.compute_dtype else dtype,
        context_tokens=wished_context(spec, options),
        attention="sdpa" if options.attn_implementation == "auto" else options.attn_implementation,
    )
    if spec.vision is not None:
        base = replace(base, picture_side=options.picture_side)
    if options.loader == "vllm":
        return _vllm_runs(spec, wishes, base)
    if spec.prequantized != "none":
        return [base], [("other precisions", f"the file is stored as {spec.prequantized}")]
    if spec.source == "gguf":
        return _gguf_runs(spec, wishes, base)
    if wishes.precision or wishes.placement:
        return [base], []
    half: DType = "bfloat16" if dtype == "float32" else dtype
    lower = replace(base, dtype=half, compute_dtype=half)
    runs = [base] if half == dtype else [base, lower]
    if options.lora:
        return runs, [("8-bit, 4-bit", "LoRA adapters are merged into weights in 16 or 32 bits")]
    kept, dropped = _that_change_something(spec, lower)
    return runs + kept, dropped


def _vllm_runs(spec: ModelSpec, wishes: Wishes, base: RunSpec) -> tuple[list[RunSpec], list[tuple[str, str]]]:
    """What vLLM can run as the flags say: whole on one device, its cache as computed."""
    options = wishes.options
    reasons = {
        "it needs a folder with safetensors": spec.source == "gguf",
        "its server runs no encoder-decoder models": spec.is_encoder_decoder,
        "Snug runs models that see with transformers alone": spec.vision is not None,
        "it splits no model over devices": options.auto_devices or options.disk or options.deepspeed,
        "it has no 8-bit of this kind; use --load-in-4bit": options.load_in_8bit,
        "its 4-bit is nf4 without double quantization": options.use_double_quant or options.quant_type == "fp4",
        "it quantizes on a GPU only": options.load_in_4bit and (options.cpu or not wishes.gpus),
        "its KV cache is kept as computed here": options.kv_cache not in ("auto", "plain"),
        "it chooses how attention is computed itself": options.attn_implementation != "auto",
    }
    reason = next((why for why, holds in reasons.items() if holds), "")
    if reason:
        raise NotAvailableHere(
            f"--loader vllm for {spec.name}: {reason}.", remedy="Change that, or drop --loader vllm.", param="loader"
        )
    return [base], [("8-bit, splits, disk, other KV caches", "vLLM runs a model whole on one device")]


def _gguf_runs(spec: ModelSpec, wishes: Wishes, base: RunSpec) -> tuple[list[RunSpec], list[tuple[str, str]]]:
    """Through llama.cpp as stored, and through transformers as `base`; what the flags leave of both."""
    options = wishes.options
    dropped = [("8-bit, 4-bit", "bitsandbytes cannot quantize a GGUF file a second time")]
    reason = _why_not_llamacpp(spec, wishes)
    only = _only_llamacpp(options)
    if only and reason:
        named = only.partition(" ")[0]
        remedy = "Use --loader transformers." if named == "--loader" else f"Drop {only}."
        param = named.removeprefix("--").replace("-", "_")
        raise NotAvailableHere(f"{only} for {spec.name}: {reason}.", remedy=remedy, param=param)
    if part_number(spec.path.name):
        whole = "transformers reads a GGUF file in one piece, and this one is split"
        if options.loader == "transformers" or reason:
            why = whole if options.loader == "transformers" else f"{whole}; llama.cpp: {reason}"
            raise NotAvailableHere(f"{spec.name}: {why}.", remedy="Drop the flags in its way.", param="loader")
        dropped.append(("unpacked to 16 bits", whole))
    if options.loader == "transformers" or reason:
        return [base], [*dropped, *([("llama.cpp", reason)] if reason else [])]
    if wishes.gpus and not wishes.llamacpp_gpu:
        reason = f"the installed xllamacpp computes on the CPU alone; for NVIDIA's cards: {GPU_BUILD}"
        if options.gpu_layers:
            raise NotAvailableHere(
                f"--gpu-layers {options.gpu_layers}: the installed xllamacpp computes on the CPU alone.",
                remedy=f"Install its build for GPUs: {GPU_BUILD} ({OTHER_BUILDS}). Or drop --gpu-layers.",
                param="gpu_layers",
            )
        dropped.append(("llama.cpp on the GPU", reason))
    through = replace(base, runtime="llamacpp", dtype="float16", compute_dtype="float16", attention="sdpa")
    return [through] if only or part_number(spec.path.name) else [through, base], dropped


def _only_llamacpp(options: LoadOptions) -> str:
    """The flag that leaves a GGUF file to llama.cpp alone: of files, only it drafts, deals out layers, applies LoRA
    adapters to them, and embeds with them. "" where none does.
    """
    if options.loader != "auto":
        return "--loader llamacpp" if options.loader == "llamacpp" else ""
    flags = {"--gpu-layers": options.gpu_layers is not None, "--draft-model": options.draft_model,
             "--lora": options.lora, "--embeddings": options.embeddings}  # fmt: skip
    return next((flag for flag, given in flags.items() if given), "")


def _why_not_llamacpp(spec: ModelSpec, wishes: Wishes) -> str:
    """Why llama.cpp cannot run a GGUF file, or not as the flags say; "" where it can."""
    options = wishes.options
    if not has_llamacpp():
        return "xllamacpp is not installed (pip install -r requirements.txt)"
    if spec.is_encoder_decoder:
        return "its server runs no encoder-decoder models"
    if options.dtype != "auto" or options.bf16 or options.attn_implementation != "auto":
        return "it computes with the file's own formats, not with --dtype or --attn-implementation"
    if options.kv_cache != "auto" and (reason := why_not_cached(options.kv_cache, spec)):
        return reason
    if options.disk or options.deepspeed:
        return "it runs from memory, without --disk and --deepspeed"
    split = wishes.gpus and (options.auto_devices or options.gpu_memory)
    return f"the installed xllamacpp computes on the CPU alone ({GPU_BUILD})" if split and not _cards(wishes) else ""


def _cards(wishes: Wishes) -> int:
    """On how many GPUs llama.cpp can compute."""
    return wishes.gpus if wishes.llamacpp_gpu else 0


@lru_cache(maxsize=1)
def has_llamacpp() -> bool:
    """Whether llama.cpp is installed."""
    return find_spec("xllamacpp") is not None


def _that_change_something(spec: ModelSpec, base: RunSpec) -> tuple[list[RunSpec], list[tuple[str, str]]]:
    """The quantized runs that make the model clearly smaller than `base`; the others with why not."""
    whole = weight_bytes(spec, base)
    tried: tuple[tuple[Quantization, bool], ...] = (("int8", False), ("nf4", False), ("nf4", True))
    kept: list[RunSpec] = []
    useless: list[str] = []
    for quantization, double in tried:
        run = replace(base, quantization=quantization, double_quant=double)
        if 1 - weight_bytes(spec, run) / max(1, whole) >= _LEAST_SAVING:
            kept.append(run)
        else:
            useless.append(Way(run, "cpu").label)
    return kept, [(", ".join(useless), _why_useless(spec))] if useless else []


def _why_useless(spec: ModelSpec) -> str:
    """Why quantizing saves next to nothing of this model."""
    found = quantizable(spec)
    told = f"bitsandbytes reaches {found.share:.1%} of this model".replace("%", " %")
    return f"{told}; it skips {found.skipped[0].what}: {found.skipped[0].why}" if found.skipped else told


def _places(spec: ModelSpec, wishes: Wishes, run: RunSpec) -> Iterator[tuple[Place, bool]]:
    """(place, with disk) for one precision, the nearest to the arithmetic first."""
    options = wishes.options
    if run.runtime == "llamacpp":
        yield from ((place, False) for place in _llamacpp_places(spec, wishes))
        return
    if options.loader == "vllm":
        yield ("gpu" if wishes.gpus else "cpu"), False
        return
    if spec.embedder is not None:
        yield from (("gpu", False), ("cpu", False)) if wishes.gpus else (("cpu", False),)
        return
    if options.deepspeed:
        yield "zero3", options.nvme_offload_dir is not None
        return
    if wishes.gpus:
        yield "gpu", False
        if wishes.gpus > 1:
            yield "gpus", False
    if options.lora:  # merged where the weights lie: not on disk, nor in what is fetched for each use
        yield "cpu", False
        return
    # What leaves the GPU is kept unquantized, and a file that is quantized already holds nothing to keep so.
    may_leave = wishes.gpus > 0 and spec.prequantized == "none"
    if may_leave:
        yield "split", False
    yield "cpu", False
    plain = run.quantization == "none"
    if may_leave and (plain or options.disk):
        yield "split", True
    if plain:
        yield "cpu", True
    if plain and spec.source == "safetensors" and not (wishes.placement or options.cpu):
        yield "zero3", False
        yield "zero3", True


def _llamacpp_places(spec: ModelSpec, wishes: Wishes) -> Iterator[Place]:
    """Where llama.cpp may compute: --gpu-layers counts the output as one more layer."""
    asked = wishes.options.gpu_layers
    gpus, whole = _cards(wishes), asked is not None and (asked < 0 or asked > spec.layers)
    if gpus and (asked is None or whole):
        yield "gpu"
        if gpus > 1:
            yield "gpus"
    if gpus and asked != 0 and not whole:
        yield "split"
    if not asked:
        yield "cpu"


def _quality(spec: ModelSpec, run: RunSpec) -> float:
    """The expected ratio of perplexities: as stored is 1."""
    cache = CACHE_QUALITY[run.kv_cache]
    if spec.prequantized != "none":
        return cache
    narrowed = spec.stored_dtype == "float32" and run.dtype != "float32"
    return cache * expected_quality(run, spec.parameters, narrowed=narrowed)
