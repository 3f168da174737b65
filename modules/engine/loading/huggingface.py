"""Load a model with transformers as a Plan says: 16-bit, 8-bit, 4-bit, split over GPUs, CPU and disk.

`load` is the LoadEngine. What to pass is decided in pretrained.py, which loop runs it in choice.py; ZeRO-3 is not
loaded here.
"""

from __future__ import annotations

import logging
import os
import shutil
import stat
import sys
import time
import weakref
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase
from transformers.models.auto.tokenization_auto import tokenizer_class_from_name
from transformers.utils.import_utils import DummyObject

from modules.confined import confined_to
from modules.engine.base import Engine, ModelInfo, OnProgress, Progress
from modules.engine.control_tokens import CHAT_END_TOKENS
from modules.engine.loading.draft import load_draft
from modules.engine.loading.eyes import load_processor
from modules.engine.loading.library_messages import route_library_messages, weights_progress
from modules.engine.loading.loading_errors import named_failures, named_tokenizer_failures
from modules.engine.loading.made import counted_first
from modules.engine.loading.merging import merge_loras
from modules.engine.loading.pretrained import auto_class, from_pretrained_kwargs, source_folder
from modules.engine.loops.choice import choose_loop
from modules.engine.loops.encoder import EncoderEngine
from modules.engine.loops.loaded import LoadedModel
from modules.engine.loops.sight import Eyes
from modules.engine.process.footprint import module_devices, peak_bytes, reset_peak, weight_bytes_by_device
from modules.engine.process.mappings import MappedFiles
from modules.errors import BadSafetensors, BadTokenizer, BadValue, DiskFull, ModelNotFound
from modules.heap import LARGE_STEP_TOKENS, give_back
from modules.memory.model.config import read_json
from modules.memory.model.links import followed_files
from modules.memory.model.meta import drop_pooler
from modules.memory.model.tokenizers import refuse_other_vocabularies
from modules.memory.planning.placement import make_groups
from modules.memory.planning.planner import Plan
from modules.units import MiB, format_size

log = logging.getLogger(__name__)

_WEIGHTS_SHARE = (0.05, 0.9)
_DISK_MARGIN_BYTES = 64 * MiB
_OURS = ".snug-"
"""Between model and process in the name of a cache folder. What else ends in a number, `photos.2019`, is not Snug's."""
_SMALL_BYTES = MiB


def load(plan: Plan, on_progress: OnProgress) -> Engine:
    """Load `plan.spec` as planned and return an engine that is ready to generate.

    Raises BadTokenizer, BadSafetensors, ModelNotFound, RemoteCodeDisabled, UnsupportedModel, NotAvailableHere,
    OutOfMemory, DiskFull, BadValue (a folder that cannot be written), or LoadFailed for anything else.
    """
    started = time.monotonic()
    route_library_messages()
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(psutil.cpu_count(logical=False) or 1)
    if not plan.spec.path.exists():
        raise ModelNotFound(f"{plan.spec.name} is no longer in the models folder.", remedy="Choose another model.")
    reset_peak()
    on_progress(Progress("Reading the tokenizer", 0.0))
    tokenizer = load_tokenizer(plan)
    processor = load_processor(plan, tokenizer) if plan.spec.vision is not None else None
    with named_failures(plan):
        draft = load_draft(plan, tokenizer, load_tokenizer, partial(_load_draft_model, on_progress, started))
        model = _load_model(plan, on_progress)
        if plan.loras:
            merge_loras(plan, model, partial(_merging, on_progress))
        loaded = replace(describe(plan, model, tokenizer, started), draft=draft)
        if processor is not None:
            loaded = with_eyes(loaded, processor)
        on_progress(Progress("Trying it out", _WEIGHTS_SHARE[1]))
        engine = _engine_of(loaded, on_progress)
    log.info("%s loaded in %.1f s, peak %s", plan.spec.name, loaded.info.load_s, format_size(loaded.info.peak_bytes))
    on_progress(Progress("Ready", 1.0))
    return engine


def _engine_of(loaded: LoadedModel, on_progress: OnProgress) -> Engine:
    """The engine that runs the model: one of the loops, or the encoder's for one that embeds."""
    embedder = loaded.plan.spec.embedder
    if embedder is None:
        return choose_loop(loaded, partial(_arranging, on_progress), partial(_compiling, on_progress))
    loaded.model.config.use_cache = False
    info = replace(
        loaded.info,
        loop="encoder",
        loop_reason="texts of like length are read together",
        chat_template="",
        embeds=embedder.pooling,
        embed_tokens=loaded.info.context_tokens,
    )
    return EncoderEngine(replace(loaded, info=info), embedder)


def _load_draft_model(on_progress: OnProgress, started: float, plan: Plan, tokenizer: Any) -> LoadedModel:
    on_progress(Progress("Reading the draft model", _WEIGHTS_SHARE[0]))
    with named_failures(plan):
        return describe(plan, _load_model(plan, lambda _: None), tokenizer, started)


def load_tokenizer(plan: Plan) -> Any:
    """The tokenizer beside the weights, or inside the GGUF file. Raises BadTokenizer where there is none."""
    folder = source_folder(plan)
    gguf = {"gguf_file": plan.spec.path.name} if plan.spec.source == "gguf" else {}
    own = (plan.spec.path,) if gguf else ()  # which may be a link of the owner's
    refuse_other_vocabularies(folder)
    if not plan.trust_remote_code:
        _refuse_other_classes(folder)
    read = partial(
        AutoTokenizer.from_pretrained,
        str(folder), trust_remote_code=plan.trust_remote_code, local_files_only=True, **gguf,
    )  # fmt: skip
    with named_tokenizer_failures(plan):
        read_confined = partial(confined_to, (folder, *followed_files(folder), *own), read)
        tokenizer: Any = read() if plan.trust_remote_code else read_confined()
    # Without any tokenizer file transformers 5 makes one that knows its special tokens alone.
    if len(tokenizer.get_vocab()) <= len(tokenizer.added_tokens_decoder) + len(tokenizer.all_special_tokens):
        raise BadTokenizer(
            f"{plan.spec.name} has no tokenizer files (tokenizer.json or tokenizer.model).",
            remedy="Fetch the model again, with all its files.",
        )
    return tokenizer


def _refuse_other_classes(folder: Path) -> None:
    """Raise BadTokenizer where a class is named that is no tokenizer's: transformers would load whatever of its own it
    finds under that name, a model too, and not as it was planned."""
    for file in (folder / "tokenizer_config.json", folder / "config.json"):
        name = read_json(file).get("tokenizer_class") if file.exists() else None
        found = tokenizer_class_from_name(name) if isinstance(name, str) else None
        lacking = isinstance(found, DummyObject)  # stands for a class that lacks its package, and says so
        if isinstance(found, type) and not lacking and not issubclass(found, PreTrainedTokenizerBase):
            raise BadTokenizer(
                f"{folder.name} names a tokenizer that is none: {str(name)[:80]!r} in {file.name}.",
                remedy="Fetch the model again, or another copy of it.",
            )


def _load_model(plan: Plan, on_progress: OnProgress) -> Any:
    """The model in evaluation mode, without gradients."""
    kwargs = from_pretrained_kwargs(plan)
    offload_folder = _prepare_offload_folder(plan, kwargs)
    if not _supports(plan, kwargs):
        log.info("%s has no SDPA attention; it runs with eager attention", plan.spec.architecture)
        kwargs["attn_implementation"] = "eager"
    sizes = {tensor.name: tensor.size_bytes for tensor in plan.spec.tensors}
    auto = auto_class(plan)
    on_progress(Progress("Building the model", _WEIGHTS_SHARE[0]))
    files = MappedFiles() if _converts(plan) else None
    try:
        with counted_first(plan), weights_progress(sizes, partial(_tell_weights, plan, on_progress, files)):
            model, report = auto.from_pretrained(str(source_folder(plan)), output_loading_info=True, **kwargs)
    except BaseException:
        if offload_folder:
            shutil.rmtree(offload_folder, ignore_errors=True)
        raise
    if offload_folder:
        weakref.finalize(model, shutil.rmtree, offload_folder, ignore_errors=True)
    if plan.spec.embedder is not None:
        drop_pooler(model)
        report["missing_keys"] = [name for name in report["missing_keys"] if not name.startswith("pooler.")]
    check_complete(plan, report)
    model.eval().requires_grad_(False)
    if files:
        _leave_files(model)
        files.let_go()
    if plan.run.quantization == "int8":
        _give_back_after_blocks(plan, model)
    elif plan.run.quantization != "none" or plan.spec.prequantized != "none":
        keep_odd_layers_unpacked(model)
    return model


def keep_odd_layers_unpacked(model: Any) -> None:
    """Leave 4-bit layers as they are whose sizes bitsandbytes cannot pack for CPUs with AVX-512 for bf16.

    It tries at their first forward, and raises (0.50.2, functional.py): rows are packed 32 at a time, and no block of
    one scale may reach into the next row.
    """
    for module in model.modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if state is not None and (state.shape[0] % 32 or state.shape[1] % state.blocksize):
            module.support_avx512bf16_for_cpu = False


def _give_back_after_blocks(plan: Plan, model: Any) -> None:
    """On the CPU, trim the heap after each block of a prompt: int8 products leave holes with every matrix, 220 MiB of
    them by the end of a step of 512 tokens in the starter model.
    """

    def trim(_module: Any, _inputs: Any, output: Any) -> None:
        states = output[0] if isinstance(output, tuple) else output
        if states.device.type == "cpu" and states.shape[-2] >= LARGE_STEP_TOKENS:
            give_back()

    for name in {tensor.block for tensor in plan.spec.tensors if tensor.block}:
        model.get_submodule(name).register_forward_hook(trim)


@torch.no_grad()
def _leave_files(model: Any) -> None:
    """Copy the small tensors that would each keep a stretch of a file in memory, when all else was converted."""
    for parameter in model.parameters():
        small = parameter.numel() * parameter.element_size() <= _SMALL_BYTES
        if small and type(parameter) is torch.nn.Parameter and parameter.device.type == "cpu":
            parameter.data = parameter.data.clone()


def _converts(plan: Plan) -> bool:
    """Whether tensors are changed or moved on their way into the model, not used where they lie in their files."""
    kept = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}[plan.run.dtype]
    moved = any(device != "cpu" for device in plan.placement.values())
    return moved or plan.run.quantization != "none" or any(tensor.dtype != kept for tensor in plan.spec.tensors)


def _tell_weights(plan: Plan, on_progress: OnProgress, files: MappedFiles | None, title: str, fraction: float) -> None:
    """Progress of the bar `title`; of a GGUF file there are two, unpacking and loading. What is read is let go."""
    if files:
        files.let_go_at(fraction)
    stage = "Loading weights" if plan.run.quantization == "none" else f"Quantizing weights to {plan.run.quantization}"
    if plan.spec.source == "gguf":
        unpacking = "GGUF" in title
        stage = "Unpacking the GGUF file" if unpacking else stage
        fraction = (fraction + (0 if unpacking else 1)) / 2
    first, last = _WEIGHTS_SHARE
    on_progress(Progress(stage, first + (last - first) * fraction))


def _arranging(on_progress: OnProgress, fraction: float) -> None:
    on_progress(Progress("Arranging weights for this CPU", _WEIGHTS_SHARE[1] + (1 - _WEIGHTS_SHARE[1]) * fraction))


def _merging(on_progress: OnProgress, _fraction: float) -> None:
    on_progress(Progress("Merging LoRA adapters", _WEIGHTS_SHARE[1]))


def _compiling(on_progress: OnProgress) -> None:
    on_progress(Progress("Compiling the step for one token; this takes a minute or two", _WEIGHTS_SHARE[1]))


def _supports(plan: Plan, kwargs: dict[str, Any]) -> bool:
    """Whether the model has SDPA attention, if that is what is planned (other kinds are the user's explicit wish)."""
    if plan.run.attention != "sdpa" or plan.trust_remote_code:
        return True
    gguf = {"gguf_file": kwargs["gguf_file"]} if "gguf_file" in kwargs else {}
    config = AutoConfig.from_pretrained(str(source_folder(plan)), local_files_only=True, **gguf)
    auto = auto_class(plan)
    mapping = auto._model_mapping
    return type(config) not in mapping or bool(mapping[type(config)]._supports_sdpa)


def check_complete(plan: Plan, report: dict[str, Any]) -> None:
    """Refuse a model of which tensors are missing: transformers would fill them with random numbers."""
    missing = sorted(report.get("missing_keys") or ())
    if missing:
        raise BadSafetensors(
            f"{plan.spec.name} lacks {len(missing)} of its tensors, {missing[0]} among them.",
            remedy="Fetch the model again, with all its files.",
        )


def _prepare_offload_folder(plan: Plan, kwargs: dict[str, Any]) -> Path | None:
    """A fresh folder of this process for tensors that transformers rewrites for the disk; None without disk.

    safetensors that need no conversion are read in place, so most models write nothing here. Raises BadValue where
    it cannot be written, DiskFull where what must be written does not fit.
    """
    if "offload_folder" not in kwargs:
        return None
    parent = Path(kwargs["offload_folder"])
    folder = make_own_folder(parent, plan.spec.name, param="disk_cache_dir")
    needed, free = bytes_to_write(plan), shutil.disk_usage(folder).free
    if needed and needed + _DISK_MARGIN_BYTES > free:
        shutil.rmtree(folder, ignore_errors=True)
        raise DiskFull(
            f"{plan.spec.name} needs {format_size(needed)} in {parent}, which has {format_size(free)} free.",
            remedy="Choose another disk with --disk-cache-dir, or free some space.",
            param="disk_cache_dir",
        )
    kwargs["offload_folder"] = str(folder)
    return folder


def make_own_folder(parent: Path, name: str, *, param: str) -> Path:
    """A folder of this process in `parent`, closed to other users; those of processes that were killed go.

    Raises BadValue for the flag `param` where it cannot be written, or is somebody else's: its name can be foretold.
    """
    folder = parent / f"{name}{_OURS}{os.getpid()}"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        _make_or_keep(folder)
        (folder / "probe").write_bytes(b"1")
        (folder / "probe").unlink()
    except OSError as error:
        flag = f"--{param.replace('_', '-')}"
        raise BadValue(
            f"{flag} {parent}: the folder cannot be written ({error.strerror}).",
            remedy=f"Choose another folder with {flag}.",
            param=param,
        ) from error
    _remove_stale(parent, folder)
    return folder


def _make_or_keep(folder: Path) -> None:
    """Raises FileExistsError where another user of the machine was first, or where a link lies."""
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or (sys.platform != "win32" and found.st_uid != os.getuid()):
            raise
        folder.chmod(0o700)


def bytes_to_write(plan: Plan) -> int:
    """Bytes that go into the disk cache: those of tensors on disk that are not read in place."""
    return sum(
        group.rewritten
        for group in make_groups(plan.spec, plan.run)
        if group.modules and plan.placement.get(group.modules[0], plan.placement.get("")) == "disk"
    )


def _remove_stale(parent: Path, own: Path) -> None:
    """Remove the cache folders of engine processes that were killed; `parent` may hold whatever else."""
    for folder in parent.glob(f"*{_OURS}*"):
        pid = folder.name.rpartition(_OURS)[2]
        ours = pid.isascii() and pid.isdecimal() and folder.is_dir() and not folder.is_symlink()
        if ours and folder != own and not psutil.pid_exists(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)


def describe(plan: Plan, model: Any, tokenizer: Any, started: float) -> LoadedModel:
    """The LoadedModel with what can be said of it before a loop is chosen."""
    gpus = sorted(device for device in set(plan.placement.values()) if device.startswith("cuda"))
    device = torch.device(gpus[0] if gpus else "cpu")
    modules = module_devices(model, str(device))
    eos_ids = find_eos_ids(model, tokenizer)
    prefix_ids, suffix_ids = find_border_ids(tokenizer)
    info = ModelInfo(
        name=plan.spec.name,
        architecture=type(model).__name__,
        loop="serial",
        loop_reason="",
        context_tokens=plan.run.context_tokens,
        vocab_size=model.config.get_text_config(decoder=True).vocab_size,
        is_encoder_decoder=plan.spec.is_encoder_decoder,
        dtype=str(model.dtype).removeprefix("torch."),
        quantization=plan.run.quantization,
        chat_template=_chat_template(tokenizer),
        special_tokens={name: text for name, text in tokenizer.special_tokens_map.items() if isinstance(text, str)},
        end_texts=tuple(str(tokenizer.convert_ids_to_tokens(token)) for token in sorted(eos_ids)),
        placement=weight_bytes_by_device(model, modules),
        modules=modules,
        load_s=time.monotonic() - started,
        peak_bytes=peak_bytes(on_gpu=bool(gpus)),
        warnings=plan.spec.warnings,
        adapters=tuple(lora.title for lora in plan.loras),
        longest_context=plan.spec.max_context,
        text_prefix_ids=prefix_ids,
        text_suffix_ids=suffix_ids,
    )
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        plan=plan,
        device=device,
        eos_ids=eos_ids,
        is_encoder_decoder=plan.spec.is_encoder_decoder,
        info=info,
    )


def with_eyes(loaded: LoadedModel, processor: Any) -> LoadedModel:
    """`loaded` as a model that sees, with what its `processor` says of pictures and of the chat template."""
    eyes = Eyes(loaded.model, processor, loaded.device, most_side=loaded.plan.run.picture_side)
    template = processor.chat_template if isinstance(processor.chat_template, str) else loaded.info.chat_template
    info = replace(loaded.info, sees=True, image_token=eyes.image_token, chat_template=template)
    return replace(loaded, eyes=eyes, info=info)


def find_border_ids(tokenizer: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What the tokenizer by itself puts before and after a text: Llama's BOS, T5's end token, nothing for most."""
    bare: list[int] = tokenizer.encode("a", add_special_tokens=False)
    whole: list[int] = tokenizer.encode("a")
    for start in range(len(whole) - len(bare) + 1):
        if whole[start : start + len(bare)] == bare:
            return tuple(whole[:start]), tuple(whole[start + len(bare) :])
    return (), ()


def find_eos_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """Tokens that end a reply: of generation_config, of the tokenizer, and the chat template's end of a turn."""
    config = getattr(model, "generation_config", None)  # a base model has none
    named = config.eos_token_id if config is not None else None
    found = set(named) if isinstance(named, list | tuple) else {named}
    found.add(tokenizer.eos_token_id)
    template = _chat_template(tokenizer)
    for token_id, token in tokenizer.added_tokens_decoder.items():
        if token.content in CHAT_END_TOKENS and token.content in template:
            found.add(token_id)
    return frozenset(int(token) for token in found if token is not None and token >= 0)


def _chat_template(tokenizer: Any) -> str:
    """The template as text; of several named ones, the default."""
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default", "")
    return template or ""
