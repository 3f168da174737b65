"""This rank's share of a model under DeepSpeed ZeRO-3: loaded, its weights in CPU memory or on disk (NVMe).

Weights are gathered for a module's turn and let go after it, so that no device ever holds them all. Not here: how ranks
find each other (ranks.py) and generate in step (engine.py).
"""

from __future__ import annotations

import fcntl
import gc
import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed
from torch.utils.cpp_extension import get_default_build_root
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, modeling_utils
from transformers.integrations.deepspeed import HfDeepSpeedConfig

from modules.engine.base import OnProgress, Progress
from modules.engine.loading.huggingface import check_complete, describe, load_tokenizer, make_own_folder
from modules.engine.loading.library_messages import route_library_messages
from modules.engine.loading.loading_errors import in_one_line, named_failures
from modules.engine.loading.made import refuse_more_than_held
from modules.engine.loading.pretrained import from_pretrained_kwargs
from modules.engine.loops.loaded import LoadedModel
from modules.engine.process.footprint import reset_peak
from modules.engine.process.mappings import MappedFiles
from modules.engine.zero3.ranks import World
from modules.errors import NotAvailableHere
from modules.memory.planning.planner import Plan

log = logging.getLogger(__name__)

STEP_TIMEOUT = timedelta(hours=2)  # for gathering one layer; a slow disk may hold it up
NVME_BUFFERS = 4
SMALL_PARAMETER = 10_000  # elements; smaller ones stay on every rank: gathering them costs more than it saves


@dataclass(frozen=True, slots=True)
class Sizes:
    """Elements of a model's largest parameter, of its largest module's own parameters, and of all together."""

    parameter: int
    module: int
    total: int


@dataclass(frozen=True, slots=True)
class Share:
    """A loaded share. `deepspeed` is DeepSpeed's engine, which must live as long as the model."""

    loaded: LoadedModel
    deepspeed: Any
    nvme_folder: Path | None

    def clean_up(self) -> None:
        """Remove what was written to disk."""
        if self.nvme_folder is not None:
            shutil.rmtree(self.nvme_folder, ignore_errors=True)


def zero3_config(plan: Plan, sizes: Sizes, *, on_gpu: bool, nvme_folder: Path | None) -> dict[str, Any]:
    """DeepSpeed's configuration for `plan`: about two modules' weights are gathered at a time, the rest stays away.

    Keys: deepspeed/runtime/zero/config.py and offload_config.py of DeepSpeed 0.19.
    """
    offload: dict[str, Any] = {"device": "cpu", "pin_memory": on_gpu}
    if nvme_folder is not None:
        offload = {
            "device": "nvme",
            "nvme_path": str(nvme_folder),
            "pin_memory": on_gpu,
            "buffer_count": NVME_BUFFERS,
            "buffer_size": sizes.parameter,
        }
    return {
        "train_micro_batch_size_per_gpu": 1,  # asked for even where nothing is trained
        "steps_per_print": 2**31 - 1,
        "bf16": {"enabled": plan.run.dtype == "bfloat16"},
        "fp16": {"enabled": plan.run.dtype == "float16"},
        "zero_optimization": {
            "stage": 3,
            "offload_param": offload,
            "stage3_param_persistence_threshold": SMALL_PARAMETER,
            "stage3_prefetch_bucket_size": sizes.module,
            "stage3_max_live_parameters": 2 * sizes.module,
            "stage3_max_reuse_distance": 0,
        },
    }


def load_share(plan: Plan, world: World, store: Any, on_progress: OnProgress) -> Share:
    """Load `plan` together with all ranks, which meet at `store` (of torch.distributed).

    Every rank must call it. Raises SnugError.
    """
    started = time.monotonic()
    if plan.spec.source == "gguf":
        raise NotAvailableHere(
            f"--deepspeed: {plan.spec.name} is a GGUF file.", remedy="ZeRO-3 needs a model folder with safetensors."
        )
    on_gpu = torch.cuda.is_available() and any(device.startswith("cuda") for device in plan.budgets)
    prepare_process(world, on_gpu=on_gpu)
    reset_peak()
    on_progress(Progress("Reading the tokenizer", 0.0))
    tokenizer = load_tokenizer(plan)
    nvme_folder = None
    if plan.nvme_offload_dir is not None:
        on_progress(Progress("Preparing to read weights from disk (the first time takes minutes)", 0.02))
        nvme_folder = make_own_folder(plan.nvme_offload_dir, plan.spec.name, param="nvme_offload_dir")
        build_disk_reader()
    with named_failures(plan):
        join_ranks(world, store, on_gpu=on_gpu)
        on_progress(Progress("Building the model", 0.05))
        config = zero3_config(plan, measure(plan), on_gpu=on_gpu, nvme_folder=nvme_folder)
        on_progress(Progress(f"Sharing the weights among {world.size} ranks", 0.1))
        deepspeed = _load_model(plan, config)
        gc.collect()
        loaded = _describe(plan, world, deepspeed.module, tokenizer, started, on_gpu=on_gpu)
    return Share(loaded, deepspeed, nvme_folder)


def prepare_process(world: World, *, on_gpu: bool) -> None:
    """Tell DeepSpeed where it runs, before it is imported, and keep it quiet."""
    os.environ.update(
        RANK=str(world.rank),
        WORLD_SIZE=str(world.size),
        LOCAL_RANK=str(world.local_rank),
        MASTER_ADDR=world.host,
        MASTER_PORT=str(world.port),
    )
    if on_gpu:
        torch.cuda.set_device(world.local_rank)
    else:
        os.environ["DS_ACCELERATOR"] = "cpu"
        torch.set_num_threads(max(1, torch.get_num_threads() // world.local_size))
    import deepspeed

    route_library_messages()
    # Compiled at first use for a reduction that inference never makes; without it DeepSpeed takes the process group's.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def join_ranks(world: World, store: Any, *, on_gpu: bool) -> None:
    """Form the process group, for torch and for DeepSpeed."""
    import deepspeed

    backend = "nccl" if on_gpu else "gloo"
    torch.distributed.init_process_group(
        backend, store=store, rank=world.rank, world_size=world.size, timeout=STEP_TIMEOUT
    )
    deepspeed.init_distributed(dist_backend=backend, verbose=False, timeout=STEP_TIMEOUT)


def build_disk_reader() -> None:
    """Let DeepSpeed compile its asynchronous file reader, unless it has. Raises NotAvailableHere where it cannot."""
    from deepspeed.ops.op_builder import AsyncIOBuilder

    builder = AsyncIOBuilder()
    if not builder.is_compatible():
        raise NotAvailableHere(
            "--nvme-offload-dir: DeepSpeed reads weights from disk with libaio, which is not installed.",
            remedy="Install libaio-dev (Debian, Ubuntu) or libaio-devel (Fedora), or leave the flag out.",
            param="nvme_offload_dir",
        )
    try:
        with _alone_in_build_folder():
            builder.load(verbose=False)
    except (RuntimeError, OSError, ImportError) as error:
        raise NotAvailableHere(
            f"--nvme-offload-dir: DeepSpeed's file reader could not be compiled: {in_one_line(error)}.",
            remedy="Install a C++ compiler (g++) and ninja, or leave the flag out.",
            param="nvme_offload_dir",
        ) from error


def measure(plan: Plan) -> Sizes:
    """The sizes of the model, built without weights. Raises BadSafetensors where its files hold far fewer."""
    config = AutoConfig.from_pretrained(
        str(plan.spec.path), trust_remote_code=plan.trust_remote_code, local_files_only=True
    )
    with torch.device("meta"):
        model = _auto_class(plan).from_config(config, trust_remote_code=plan.trust_remote_code)
    parameters = [parameter.numel() for parameter in model.parameters()]
    modules = [sum(p.numel() for p in module.parameters(recurse=False)) for module in model.modules()]
    refuse_more_than_held(plan, sum(parameters))
    return Sizes(max(parameters), max(modules), sum(parameters))


@contextmanager
def _alone_in_build_folder() -> Iterator[None]:
    """One rank compiles at a time. Locks that torch left there when it was killed would be waited for without end."""
    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())
    root.mkdir(parents=True, exist_ok=True)
    with (root / "snug.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        for name in ("async_io", "pin_memory"):
            for lock in root.glob(f"**/{name}/lock"):
                lock.unlink(missing_ok=True)
        yield


def _auto_class(plan: Plan) -> Any:
    return AutoModelForSeq2SeqLM if plan.spec.is_encoder_decoder else AutoModelForCausalLM


def _load_model(plan: Plan, config: dict[str, Any]) -> Any:
    """DeepSpeed's engine around the model, in evaluation mode."""
    import deepspeed

    kwargs = from_pretrained_kwargs(plan)
    del kwargs["device_map"]
    as_seen_by_transformers: Any = HfDeepSpeedConfig
    seen = as_seen_by_transformers(config)  # through a weak reference, while it lives
    with _letting_go_of_files():
        model, report = _auto_class(plan).from_pretrained(str(plan.spec.path), output_loading_info=True, **kwargs)
    del seen
    check_complete(plan, report)
    model.eval().requires_grad_(False)
    return deepspeed.initialize(model=model, config=config)[0]


@contextmanager
def _letting_go_of_files() -> Iterator[None]:
    """While transformers copies the mapped weights into the shares, let go of what was read.

    Only then: before and after it, files are mapped and unmapped, and memory that takes an unmapped file's place would
    be emptied (SIGSEGV in every fifth load on a busy machine). Its function for ZeRO-3 tells no progress and has no
    hook: the name is replaced until the end of the `with`.
    """
    name = "_load_state_dict_into_zero3_model"
    copy_weights = getattr(modeling_utils, name)

    def copy_and_let_go(model: Any, state_dict: dict[str, torch.Tensor], *others: Any, **named: Any) -> Any:
        with MappedFiles().letting_go(state_dict.values()):
            return copy_weights(model, state_dict, *others, **named)

    with patch.object(modeling_utils, name, copy_and_let_go):
        yield


def _describe(plan: Plan, world: World, model: Any, tokenizer: Any, started: float, *, on_gpu: bool) -> LoadedModel:
    """The share as a LoadedModel; `placement` counts all ranks' weights together."""
    loaded = describe(plan, model, tokenizer, started)
    stored = "disk" if plan.nvme_offload_dir is not None else "cpu"
    weights = sum(parameter.ds_numel * parameter.element_size() for parameter in model.parameters())
    info = replace(
        loaded.info,
        loop="zero3",
        loop_reason=f"DeepSpeed ZeRO-3: {world.size} rank{'s' if world.size > 1 else ''} in step, weights on {stored}.",
        placement={stored: weights},
        modules={"": stored},
    )
    device = torch.device(f"cuda:{world.local_rank}" if on_gpu else "cpu")
    return replace(loaded, device=device, info=info)
