"""An engine without a model, machines that we do not have, and model folders of a few bytes.

ScriptedEngine keeps every promise of modules/engine/base.py without torch: it says what a Script tells it to say, at
the speed and with the faults that the Script names. Load it with `ScriptedLoad(Script(...))`, or let a model folder
carry its script (`make_model_folder`), which reaches engines behind a ModelManager or a whole server.
"""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import psutil
from safetensors.numpy import save_file

from modules.engine.base import (
    Delta,
    Emit,
    EngineStats,
    Finished,
    FinishReason,
    GenerationRequest,
    ModelInfo,
    OnProgress,
    Prefill,
    Progress,
    Queued,
    TextPiece,
    Timings,
    TokenLogprob,
    Usage,
)
from modules.engine.intake import waited_too_long
from modules.errors import ContextLengthExceeded, GenerationFailed, LoadFailed, OutOfMemory, QueueFull, SnugError
from modules.hardware import Device, Inventory
from modules.memory.forecasting.forecast import RunSpec
from modules.memory.model.spec import ModelSpec, TensorInfo
from modules.memory.planning.planner import Plan
from modules.sampling import GenerationParams
from modules.units import GiB, MiB

IMAGE_TOKEN = "<image>"
CONTROL_TOKENS = ("<|im_start|>", "<|im_end|>", "<bos>", "<eos>", IMAGE_TOKEN)
CONTROL_IDS = {text: 256 + number for number, text in enumerate(CONTROL_TOKENS)}
VOCAB_SIZE = 256 + len(CONTROL_TOKENS)
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SEEING_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SCRIPT_FILE = "script.json"

StepFault = Literal["", "raise", "oom", "hang", "exit", "kill", "wait"]
LoadFault = Literal["", "raise", "refuse", "oom", "hang", "exit", "kill"]


@dataclass(frozen=True)
class Script:
    """What a ScriptedEngine does.

    One step emits one character, whose tokens are its UTF-8 bytes. `reply` is said once, or over and over if
    `endless`; `echo` says the decoded prompt instead, `quote` too, with signs in it that no stop string can meet.
    `tokens_per_s` 0 is as fast as it goes. At step `fault_at` of every reply `fault` strikes: an exception or
    out-of-memory in the step, a hang that ignores cancel, exit code 7, SIGKILL, or for a second another reply has its
    turn. `load_fault` strikes after `load_s` seconds of loading in ten steps; `ballast_bytes` are held while loaded.
    One that `sees` takes a token for every 32 × 32 pixels of a picture.
    """

    reply: str = "The quick brown fox jumps over the lazy dog."
    endless: bool = False
    echo: bool = False
    quote: bool = False
    tokens_per_s: float = 0.0
    prefill_s: float = 0.0
    fault: StepFault = ""
    fault_at: int = 0
    load_s: float = 0.0
    load_fault: LoadFault = ""
    ballast_bytes: int = 0
    rows: int = 64
    queue: int = 1000
    end_texts: tuple[str, ...] = ("<|im_end|>",)
    chat_template: str = CHAT_TEMPLATE
    lacks: dict[str, str] = field(default_factory=dict)
    sees: bool = False


@dataclass(frozen=True)
class ScriptedLoad:
    """A LoadEngine, picklable into an engine process. Without a `script`, the model folder's own script.json counts."""

    script: Script | None = None

    def __call__(self, plan: Plan, on_progress: OnProgress) -> ScriptedEngine:
        """Play the load part of the script; raises what it says."""
        script = self.script or read_script(plan.spec.path)
        started = time.monotonic()
        for step in range(10):
            on_progress(Progress("Reading the script", step / 10))
            time.sleep(script.load_s / 10)
        _strike_load(script.load_fault)
        ballast = bytearray(os.urandom(1)) * script.ballast_bytes
        on_progress(Progress("Ready", 1.0))
        return ScriptedEngine(script, plan, ballast=ballast, load_s=time.monotonic() - started)


def quoted(text: str) -> str:
    """`text` as a Script with `quote` says it."""
    return text.replace("\n", "⏎").replace("<|", "«").replace("|>", "»")


def load_scripted(plan: Plan, on_progress: OnProgress) -> ScriptedEngine:
    """The LoadEngine at "tests.fakes:load_scripted": plays the model folder's script.json."""
    return ScriptedLoad()(plan, on_progress)


def read_script(folder: Path) -> Script:
    """The script.json of a model folder, or the default Script where there is none."""
    path = folder / SCRIPT_FILE
    if not path.exists():
        return Script()
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return Script(**values | {"end_texts": tuple(values["end_texts"])})


def _strike_load(fault: LoadFault) -> None:
    if fault == "raise":
        raise RuntimeError("scripted failure while loading")
    if fault == "refuse":
        raise LoadFailed("The script refuses to load.", remedy="Write another script.")
    if fault == "oom":
        raise OutOfMemory("The script has no memory left.", remedy="Write a shorter one.")
    _strike_process(fault)


def _strike_process(fault: str) -> None:
    if fault == "hang":
        threading.Event().wait(3600)
    if fault == "exit":
        os._exit(7)
    if fault == "kill":
        os.kill(os.getpid(), signal.SIGKILL)


class _Row:
    """One running request."""

    def __init__(self, request: GenerationRequest, emit: Emit) -> None:
        self.request = request
        self.emit = emit
        self.cancelled = threading.Event()
        self.stopped_by = ""
        self.late = False
        self._submitted = time.monotonic()

    @property
    def left_s(self) -> float | None:
        """How much longer it waits for its turn; None without end."""
        if not self.request.queue_s:
            return None
        return max(self._submitted + self.request.queue_s - time.monotonic(), 0)


class ScriptedEngine:
    """An Engine (modules/engine/base.py) that plays a Script. One thread a request, `rows` of them at a time."""

    def __init__(self, script: Script, plan: Plan, *, ballast: bytearray | None = None, load_s: float = 0.0) -> None:
        self.script = script
        self.requests: list[GenerationRequest] = []
        self._ballast = ballast
        self._info = _info(script, plan, load_s)
        self._lock = threading.Lock()
        self._rows: dict[str, _Row] = {}
        self._waiting: list[str] = []
        self._turns = threading.Condition(self._lock)
        self._closed = False

    @property
    def info(self) -> ModelInfo:
        """What was "loaded"."""
        return self._info

    def submit(self, request: GenerationRequest, emit: Emit) -> None:
        """As Engine.submit; every accepted request is kept in `requests` for tests to look at."""
        used = len(request.prompt_ids) + len(request.reply_ids)
        if used >= self._info.context_tokens:
            raise ContextLengthExceeded(
                f"The prompt has {used} tokens, the model takes {self._info.context_tokens}.", remedy="Shorten it."
            )
        with self._lock:
            if len(self._waiting) >= self.script.queue:
                raise QueueFull(f"{len(self._waiting)} requests wait already.", remedy="Try again in a moment.")
            row = _Row(request, emit)
            self._rows[request.id] = row
            self._waiting.append(request.id)
            self.requests.append(request)
        threading.Thread(target=self._run, args=(row,), name=f"scripted {request.id}", daemon=True).start()

    def cancel(self, request_id: str) -> None:
        """As Engine.cancel."""
        with self._lock:
            if row := self._rows.get(request_id):
                row.cancelled.set()
                self._turns.notify_all()

    def encode(self, pieces: Sequence[TextPiece]) -> list[int]:
        """UTF-8 bytes; control tokens only from template pieces."""
        return [token for piece in pieces for token in encode_piece(piece)]

    def decode(self, token_ids: Sequence[int]) -> str:
        """The inverse of `encode`."""
        return decode_tokens(token_ids)

    def stats(self) -> EngineStats:
        """Rows, queue and memory as they are."""
        with self._lock:
            waiting = len(self._waiting)
            rss_bytes = psutil.Process().memory_info().rss
            return EngineStats(active=len(self._rows) - waiting, queued=waiting, rss_bytes=rss_bytes)

    def close(self) -> None:
        """Cancel everything."""
        with self._lock:
            self._closed = True
            for row in self._rows.values():
                row.cancelled.set()
            self._turns.notify_all()

    def _run(self, row: _Row) -> None:
        clock = _Clock(row.request)
        reason: FinishReason = "cancelled"
        error: SnugError | None = None
        try:
            if self._take_turn(row):
                clock.queue_s = time.monotonic() - clock.submitted
                reason = self._reply(row, clock)
        except SnugError as caught:
            reason, error = "error", caught
        with self._lock:
            del self._rows[row.request.id]
            self._turns.notify_all()
        row.emit(Finished(reason, clock.usage(), clock.timings(), error, row.stopped_by))

    def _take_turn(self, row: _Row) -> bool:
        """Wait for a free row, in order; False if cancelled before that."""
        told: int | None = None
        with self._turns:
            while not row.cancelled.is_set():
                position = self._waiting.index(row.request.id)
                if position + len(self._rows) - len(self._waiting) < self.script.rows:
                    break
                if position != told:
                    told = position
                    row.emit(Queued(position))
                if not self._turns.wait(row.left_s) and row.left_s == 0:
                    row.late = True
                    break
            self._waiting.remove(row.request.id)
            self._turns.notify_all()
        if row.late:
            raise waited_too_long(row.request.queue_s)
        return not row.cancelled.is_set()

    def _reply(self, row: _Row, clock: _Clock) -> FinishReason:
        if row.cancelled.wait(self.script.prefill_s):
            return "cancelled"
        row.emit(Prefill(len(row.request.prompt_ids), len(row.request.prompt_ids)))
        clock.prefill_s = time.monotonic() - clock.submitted - clock.queue_s
        text, reason, stopped_by = self._text_of(row.request)
        for step, character in enumerate(text):
            if row.cancelled.wait(1 / self.script.tokens_per_s if self.script.tokens_per_s else 0):
                return "cancelled"
            self._strike(step)
            if self.script.fault == "wait" and step == self.script.fault_at:
                row.emit(Queued(0))
                time.sleep(1)
            delta = _delta(character, row.request.params)
            clock.count(delta)
            row.emit(delta)
        self._strike(len(text))
        row.stopped_by = stopped_by
        return reason

    def _strike(self, step: int) -> None:
        if not self.script.fault or step != self.script.fault_at:
            return
        if self.script.fault == "raise":
            raise GenerationFailed("The scripted step failed.", remedy="Try again.")
        if self.script.fault == "oom":
            raise OutOfMemory("The scripted step ran out of memory.", remedy="Try a shorter prompt.")
        _strike_process(self.script.fault)

    def _text_of(self, request: GenerationRequest) -> tuple[str, FinishReason, str]:
        """What is still to be said to `request`, cut at its stop strings and its length limit; why it ends, and by
        which stop string."""
        whole = self.decode(request.prompt_ids) if self.script.echo or self.script.quote else self.script.reply
        whole = quoted(whole) if self.script.quote else whole
        rest = whole.removeprefix(self.decode(request.reply_ids))
        limit = request.params.max_new_tokens
        if self.script.endless:
            rest += whole * (limit // max(len(whole.encode()), 1) + 1)
        reason: FinishReason = "stop"
        if len(rest.encode()) > limit:
            rest = rest.encode()[:limit].decode("utf-8", "ignore")
            reason = "length"
        ends = [(rest.find(stop), stop) for stop in request.params.stop if stop in rest]
        return (rest[: min(ends)[0]], "stop", min(ends)[1]) if ends else (rest, reason, "")


@dataclass
class _Clock:
    """The counts and times of one reply."""

    request: GenerationRequest
    submitted: float = field(default_factory=time.monotonic)
    queue_s: float = 0.0
    prefill_s: float = 0.0
    first: float = 0.0
    last: float = 0.0
    tokens: int = 0

    def count(self, delta: Delta) -> None:
        self.last = time.monotonic()
        self.first = self.first or self.last
        self.tokens += len(delta.token_ids)

    def usage(self) -> Usage:
        return Usage(self.request.held_tokens, 0, self.tokens)

    def timings(self) -> Timings:
        first_s = self.first - self.submitted if self.first else 0.0
        return Timings(self.queue_s, self.prefill_s, first_s, self.last - self.first, self.tokens)


def _delta(character: str, params: GenerationParams) -> Delta:
    ids = tuple(character.encode())
    if not params.logprobs:
        return Delta(character, ids)
    top = tuple(
        (token, decode_tokens([token]), -0.1 - rank) for rank, token in enumerate(range(97, 97 + params.logprobs))
    )
    adds = ["" for _ in ids[1:]] + [character]
    others = tuple(bytes([token]) for token, _, _ in top)
    return Delta(
        character, ids,
        tuple(
            TokenLogprob(
                i, decode_tokens([i]), -0.1, top, added, spelt=(bytes([i]), *others) if len(ids) > 1 else ()
            )
            for i, added in zip(ids, adds, strict=True)
        ),
    )  # fmt: skip


def encode_piece(piece: TextPiece) -> list[int]:
    """The byte tokenizer on one piece."""
    if not piece.template:
        return list(piece.text.encode("utf-8", "replace"))
    if piece.picture is not None:
        width, height = piece.picture
        return [CONTROL_IDS[IMAGE_TOKEN]] * (-(-width // 32) * -(-height // 32))
    parts = re.split("(" + "|".join(map(re.escape, CONTROL_TOKENS)) + ")", piece.text)
    return [
        token
        for part in parts
        for token in ([CONTROL_IDS[part]] if part in CONTROL_IDS else part.encode("utf-8", "replace"))
    ]


def decode_tokens(token_ids: Iterable[int]) -> str:
    """The text of bytes and control tokens."""
    raw = b"".join(bytes([token]) if token < 256 else CONTROL_TOKENS[token - 256].encode() for token in token_ids)
    return raw.decode("utf-8", "replace")


def _info(script: Script, plan: Plan, load_s: float) -> ModelInfo:
    return ModelInfo(
        name=plan.spec.name,
        architecture=plan.spec.architecture,
        loop="serial",
        loop_reason="a script needs no batching",
        context_tokens=plan.run.context_tokens,
        vocab_size=VOCAB_SIZE,
        is_encoder_decoder=plan.spec.is_encoder_decoder,
        dtype=plan.run.dtype,
        quantization=plan.run.quantization,
        chat_template=SEEING_TEMPLATE
        if script.sees and script.chat_template == CHAT_TEMPLATE
        else script.chat_template,
        special_tokens={"bos_token": "<bos>", "eos_token": script.end_texts[0]},
        end_texts=script.end_texts,
        placement={"cpu": script.ballast_bytes},
        modules=dict(plan.placement),
        load_s=load_s,
        peak_bytes=script.ballast_bytes,
        lacks=script.lacks,
        sees=script.sees,
        image_token=IMAGE_TOKEN if script.sees else "",
    )


def fake_spec(name: str = "scripted", *, path: Path = Path("models/scripted"), weight_bytes: int = MiB) -> ModelSpec:
    """A small Llama-like model of `weight_bytes`, whose files need not exist."""
    return ModelSpec(
        name=name,
        path=path,
        source="safetensors",
        architecture="LlamaForCausalLM",
        model_type="llama",
        is_encoder_decoder=False,
        tensors=(TensorInfo("model.embed_tokens.weight", (weight_bytes // 2,), "BF16", weight_bytes),),
        layers=2,
        hidden_size=64,
        intermediate_size=128,
        attention_heads=4,
        kv_heads=2,
        head_dim=16,
        vocab_size=VOCAB_SIZE,
        max_context=4096,
        tied_embeddings=True,
        stored_dtype="bfloat16",
    )


def fake_plan(spec: ModelSpec | None = None, *, context_tokens: int = 4096) -> Plan:
    """A Plan that puts all of `spec` on the CPU."""
    run = RunSpec(dtype="bfloat16", context_tokens=context_tokens)
    return Plan(spec=spec or fake_spec(), run=run, loader="transformers", placement={"": "cpu"})


def fake_request(prompt: str = "Hello", *, id: str = "r1", user: str = "", **params: object) -> GenerationRequest:
    """A request for `prompt` in byte tokens, sampled with `params`."""
    ids = tuple(encode_piece(TextPiece(prompt)))
    return GenerationRequest(id=id, user=user, prompt_ids=ids, params=GenerationParams.model_validate(params))


def fake_inventory(
    gpus_gib: Sequence[float] = (), *, ram_gib: float = 16.0, disk_gib: float = 100.0, free_share: float = 1.0
) -> Inventory:
    """A machine with GPUs, RAM and disk of these sizes, of which `free_share` is free."""

    def device(id: str, kind: Literal["cuda", "cpu", "disk"], gib: float) -> Device:
        total = int(gib * GiB)
        return Device(id=id, kind=kind, name=f"fake {kind}", total_bytes=total, free_bytes=int(total * free_share))

    return Inventory(
        gpus=tuple(device(f"cuda:{number}", "cuda", gib) for number, gib in enumerate(gpus_gib)),
        cpu=device("cpu", "cpu", ram_gib),
        disk=device("disk", "disk", disk_gib),
        physical_cores=2,
    )


def make_model_folder(model_dir: Path, name: str, script: Script | None = None) -> Path:
    """A model folder of a few kilobytes that `inspect` accepts as a two-layer Llama; returns its path.

    It holds no tokenizer and no meaning: only the ScriptedEngine can "load" it, with `script` if one is given.
    """
    folder = model_dir / name
    folder.mkdir(parents=True, exist_ok=True)
    spec = fake_spec(name, path=folder)
    config = {
        "architectures": [spec.architecture],
        "model_type": spec.model_type,
        "hidden_size": spec.hidden_size,
        "intermediate_size": spec.intermediate_size,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.attention_heads,
        "num_key_value_heads": spec.kv_heads,
        "head_dim": spec.head_dim,
        "vocab_size": spec.vocab_size,
        "max_position_embeddings": spec.max_context,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "tokenizer.json").write_text("{}", encoding="utf-8")
    save_file(_llama_weights(spec), folder / "model.safetensors")
    if script is not None:
        write_script(folder, script)
    return folder


def write_script(folder: Path, script: Script) -> None:
    """Make the next load of `folder` play `script`."""
    (folder / SCRIPT_FILE).write_text(json.dumps(asdict(script)), encoding="utf-8")


def _llama_weights(spec: ModelSpec) -> dict[str, np.ndarray]:
    hidden, inner, heads = spec.hidden_size, spec.intermediate_size, spec.attention_heads * spec.head_dim
    kv = spec.kv_heads * spec.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (spec.vocab_size, hidden),
        "model.norm.weight": (hidden,),
    }
    for layer in range(spec.layers):
        at = f"model.layers.{layer}."
        shapes |= {
            at + "self_attn.q_proj.weight": (heads, hidden),
            at + "self_attn.k_proj.weight": (kv, hidden),
            at + "self_attn.v_proj.weight": (kv, hidden),
            at + "self_attn.o_proj.weight": (hidden, heads),
            at + "mlp.gate_proj.weight": (inner, hidden),
            at + "mlp.up_proj.weight": (inner, hidden),
            at + "mlp.down_proj.weight": (hidden, inner),
            at + "input_layernorm.weight": (hidden,),
            at + "post_attention_layernorm.weight": (hidden,),
        }
    return {name: np.zeros(shape, dtype=np.float32) for name, shape in shapes.items()}
