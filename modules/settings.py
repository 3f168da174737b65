"""Every server flag, declared once; settings_reading.py reads them from where people set them.

LoadOptions are those that decide how one model is loaded: the Model tab and the API make them too. Everything in
Settings beyond them is fixed at start-up. `--help`, docs/flags.md and the checks below derive from the declarations.
"""

from __future__ import annotations

import argparse
import ipaddress
import re
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, Union, get_args, get_origin

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.fields import FieldInfo

from modules.errors import BadFlag, NotAvailableHere
from modules.hardware import Inventory
from modules.lora_names import read_loras
from modules.memory.known_gpus import find_gpu
from modules.remote_server import RemoteServer, check_url
from modules.units import format_size, parse_size

Group = Literal["model", "quantization", "placement", "deepspeed", "remote", "page", "plan", "download", "check"]
GROUP_TITLES: dict[Group, str] = {
    "model": "Model",
    "quantization": "Quantization",
    "placement": "Placement on GPU, CPU and disk",
    "deepspeed": "DeepSpeed ZeRO-3",
    "remote": "A model on another server",
    "page": "Page and server",
    "plan": "What fits, before anything is loaded",
    "download": "Models from the Hugging Face hub",
    "check": "Machine test",
}


@dataclass(frozen=True, slots=True)
class Flag:
    """How a field stands on the command line: its `group`, `metavar`, and further spellings."""

    group: Group
    metavar: str = ""
    aliases: tuple[str, ...] = ()


def _sizes(value: object) -> object:
    """`10`, `"10 8722MiB"`, `"10,9"` or a list of such → bytes."""
    if value is None:
        return value
    parts = value if isinstance(value, (list, tuple)) else str(value).replace(",", " ").split()
    return tuple(parse_size(part) for part in parts)


def _words(value: object) -> object:
    """`a b`, `a,b` or a list → words."""
    if value is None:
        return ()
    parts = value if isinstance(value, (list, tuple)) else [value]
    return tuple(word for part in parts for word in str(part).replace(",", " ").split())


def _hosts(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\]", name):
            raise ValueError(f"{name[:60]!r} is no host name: write it without http:// and without a port")
    return tuple(name.lower() for name in names)


def _networks(addresses: tuple[str, ...]) -> tuple[str, ...]:
    for address in addresses:
        try:
            ipaddress.ip_network(address, strict=False)
        except ValueError as error:
            raise ValueError(f"{address[:60]!r} is no address and no network") from error
    return addresses


def _origins(origins: tuple[str, ...]) -> tuple[str, ...]:
    for origin in origins:
        if not re.fullmatch(r"[a-z][a-z0-9+.-]*://([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:\d{1,5})?", origin):
            raise ValueError(f"{origin[:60]!r} is no origin: write it like https://app.example.org, without a path")
    return tuple(origin.lower() for origin in origins)


def _size(value: object) -> object:
    """`10` or `150MiB` → bytes."""
    return value if value is None else parse_size(str(value))


def _gpus(value: object) -> object:
    """Cards as they were given, each a size or a known name; a single one may stand alone."""
    cards = value if isinstance(value, (list, tuple)) else [value]
    for card in cards:
        find_gpu(str(card))
    return tuple(str(card) for card in cards)


def _engine_url(value: object) -> object:
    """An address up to its /v1."""
    return value if value is None else check_url(str(value))


Sizes = Annotated[tuple[int, ...], BeforeValidator(_sizes)]
Size = Annotated[int, BeforeValidator(_size)]
UserPath = Annotated[Path, AfterValidator(Path.expanduser)]


class LoadOptions(BaseModel):
    """How one model is to be loaded. Frozen; sizes are bytes; None means "Snug chooses"."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())

    model: Annotated[str | None, Flag("model", "NAME")] = Field(
        None, description="The model to load: a folder or .gguf file under --model-dir."
    )
    ctx_size: Annotated[int | None, Flag("model", "N")] = Field(
        None,
        ge=16,
        le=2**24,
        description="Context length in tokens. Default: what the model was made for, at most 8192.",
    )
    dtype: Annotated[Literal["auto", "bf16", "fp16", "fp32"], Flag("model")] = Field(
        "auto",
        description="Precision of weights that are not quantized. auto: as stored, bf16 instead of fp16 on a CPU.",
    )
    loader: Annotated[Literal["auto", "transformers", "llamacpp", "vllm"], Flag("model")] = Field(
        "auto",
        description="What runs a .gguf file: llama.cpp, as it is stored, or transformers, unpacked to "
        "16 bits. auto: the faster one that fits; files in other formats run with transformers. "
        "vllm: a vLLM server that Snug starts and ends.",
    )
    bf16: Annotated[bool, Flag("model")] = Field(False, description="The same as --dtype bf16.")
    attn_implementation: Annotated[
        Literal["auto", "sdpa", "eager", "flash_attention_2", "flash_attention_3"], Flag("model")
    ] = Field("auto", description="How attention is computed.")
    kv_cache: Annotated[Literal["auto", "plain", "static", "int8", "int4", "offloaded"], Flag("model")] = Field(
        "auto",
        description="How the conversation's keys and values are kept: as computed, in 8 or 4 bits, or in CPU memory "
        "beside a GPU. static: as computed, in memory of fixed size, with the step for one token compiled and recorded "
        "as a CUDA graph, one request at a time; on a GPU only, where its speed has not been measured yet. auto: as "
        "computed, unless a context that you ask for fits only otherwise.",
    )
    speculate: Annotated[Literal["auto", "off", "ngram"], Flag("model")] = Field(
        "auto",
        description="Guess several tokens ahead and check them at once; the reply stays what it is. ngram: guess what "
        "followed the same words earlier in the conversation. auto: ngram, except for quantized models and llama.cpp, "
        "whose sums over several tokens round otherwise.",
    )
    draft_model: Annotated[str | None, Flag("model", "NAME")] = Field(
        None,
        description="Let this smaller model guess ahead instead: a folder under --model-dir with the same vocabulary, "
        "for a .gguf file such a file.",
    )
    lora: Annotated[tuple[str, ...], BeforeValidator(read_loras), Flag("model", "NAME[=SCALE]")] = Field(
        (),
        description="Apply these LoRA adapters in --lora-dir, with commas between: .gguf files to a .gguf model, "
        "PEFT's folders to one in safetensors. NAME=0.5 applies half of the change.",
    )
    embeddings: Annotated[bool, Flag("model")] = Field(
        False,
        description="Answer /v1/embeddings too, with a .gguf file that llama.cpp runs. What that takes is in the plan.",
    )
    picture_side: Annotated[int, Flag("model", "N")] = Field(
        1536,
        ge=56,
        le=8192,
        description="The longest side, in pixels, of pictures for a model that sees; larger ones are scaled down. More "
        "shows it more, and takes more tokens, memory and time.",
    )
    cpu: Annotated[bool, Flag("model")] = Field(False, description="Use the CPU even where a GPU is.")
    load_in_8bit: Annotated[bool, Flag("quantization")] = Field(
        False, description="Load the model in 8-bit (bitsandbytes int8)."
    )
    load_in_4bit: Annotated[bool, Flag("quantization")] = Field(
        False, description="Load the model in 4-bit (bitsandbytes)."
    )
    quant_type: Annotated[Literal["nf4", "fp4"] | None, Flag("quantization")] = Field(
        None, description="The 4-bit number format. Default: nf4."
    )
    use_double_quant: Annotated[bool, Flag("quantization")] = Field(
        False, description="Quantize the quantization constants too: 0.4 bits less per weight, in 4-bit."
    )
    compute_dtype: Annotated[Literal["bf16", "fp16", "fp32"] | None, Flag("quantization")] = Field(
        None, description="Precision of the arithmetic on 4-bit weights. Default: as --dtype."
    )
    auto_devices: Annotated[bool, Flag("placement")] = Field(
        False, description="Split the model across the available GPUs and the CPU."
    )
    gpu_memory: Annotated[Sizes | None, Flag("placement", "SIZE")] = Field(
        None, description="Most memory for the model on each GPU: 10 is GiB, 8722MiB is exact. One value a GPU."
    )
    gpu_layers: Annotated[int | None, Flag("placement", "N", aliases=("--n-gpu-layers", "-ngl"))] = Field(
        None,
        ge=-1,
        le=10_000,
        description="With llama.cpp: how many layers of a .gguf file the GPUs compute, the last ones first and the "
        "output counted as one; -1 is all, 0 none. Default: as many as fit.",
    )
    cpu_memory: Annotated[Size | None, Flag("placement", "SIZE")] = Field(
        None, description="Most CPU memory for the model's weights. Default: what is free, with a margin."
    )
    disk: Annotated[bool, Flag("placement")] = Field(
        False, description="Send the layers that fit neither GPU nor CPU to a disk cache."
    )
    disk_cache_dir: Annotated[UserPath | None, Flag("placement", "FOLDER")] = Field(
        None, description="Where the disk cache goes. Default: cache/ in the user data folder."
    )
    deepspeed: Annotated[bool, Flag("deepspeed")] = Field(
        False, description="Load with DeepSpeed ZeRO-3. Start with: deepspeed --num_gpus=N server.py --deepspeed"
    )
    nvme_offload_dir: Annotated[UserPath | None, Flag("deepspeed", "FOLDER")] = Field(
        None, description="Keep ZeRO-3 parameters on a fast disk in this folder instead of in CPU memory."
    )


class Settings(LoadOptions):
    """All flags of one start of server.py. Frozen: no request can change what was fixed at start-up."""

    model_dir: Annotated[UserPath, Flag("model", "FOLDER")] = Field(
        Path("models"), description="Where models are kept."
    )
    lora_dir: Annotated[UserPath, Flag("model", "FOLDER")] = Field(
        Path("loras"), description="Where LoRA adapters are kept."
    )
    trust_remote_code: Annotated[bool, Flag("model")] = Field(
        False, description="Let models bring and run Python code of their own. Only for models that you trust."
    )
    vllm_python: Annotated[UserPath | None, Flag("model", "FILE")] = Field(
        None, description="With --loader vllm: the Python of the environment that has vLLM. Default: Snug's own."
    )
    local_rank: Annotated[int | None, Flag("deepspeed", "N", aliases=("--local_rank",))] = Field(
        None, ge=0, description="This process's rank. The deepspeed launcher passes it; do not set it yourself."
    )
    engine_url: Annotated[str | None, BeforeValidator(_engine_url), Flag("remote", "URL")] = Field(
        None,
        description="Use the model of an OpenAI-compatible server: http://host:8000/v1 of vLLM, SGLang, Ray Serve, "
        "llama-server, transformers serve or another Snug.",
    )
    engine_key_file: Annotated[UserPath | None, Flag("remote", "FILE")] = Field(
        None, description="A file that holds that server's API key."
    )
    engine_model: Annotated[str | None, Flag("remote", "NAME")] = Field(
        None, max_length=500, description="Which of that server's models to use. Default: the only one it has."
    )
    chat: Annotated[bool, Flag("page")] = Field(False, description="Open the Chat tab first (the default).")
    notebook: Annotated[bool, Flag("page")] = Field(False, description="Open the Notebook tab first.")
    user_data_dir: Annotated[UserPath, Flag("page", "FOLDER")] = Field(
        Path("user_data"), description="Where conversations, presets of your own and settings are kept."
    )
    read_only: Annotated[bool, Flag("page")] = Field(
        False,
        description="Work on a copy of the user data folder that ends with the program: everything works, and nothing "
        "is kept. For folders that can only be read, and to look at the last backup of conversations that are damaged.",
    )
    listen: Annotated[bool, Flag("page")] = Field(
        False,
        description="Let other machines connect. People log in; without accounts two secret addresses are printed "
        "once: yours, and one for guests.",
    )
    listen_host: Annotated[str | None, Flag("page", "HOST")] = Field(
        None, max_length=253, description="The address to listen on. Default: 127.0.0.1, with --listen 0.0.0.0."
    )
    listen_port: Annotated[int, Flag("page", "PORT")] = Field(
        7860, ge=1, le=65535, description="The port of page and API."
    )
    allowed_host: Annotated[tuple[str, ...], BeforeValidator(_words), AfterValidator(_hosts), Flag("page", "NAME")] = (
        Field(
            (),
            description="Further names under which people open this server, as a reverse proxy passes them on: "
            "chat.example.org. Any other name is refused.",
        )
    )
    trusted_proxy: Annotated[
        tuple[str, ...], BeforeValidator(_words), AfterValidator(_networks), Flag("page", "ADDRESS")
    ] = Field(
        (),
        description="Addresses of reverse proxies whose word counts on who asks and whether by https "
        "(X-Forwarded-For, X-Forwarded-Proto): 127.0.0.1 or 10.0.0.0/24. Nobody else's does.",
    )
    cors_origin: Annotated[
        tuple[str, ...], BeforeValidator(_words), AfterValidator(_origins), Flag("page", "ORIGIN")
    ] = Field(
        (),
        description="Web pages of other origins that may use the API from a browser: https://app.example.org, or "
        "app://obsidian.md and chrome-extension://ID of apps that are pages inside. "
        "They need a key where others do, and never get at the page.",
    )
    auto_launch: Annotated[bool, Flag("page")] = Field(False, description="Open the page in the browser at start.")
    no_stream: Annotated[bool, Flag("page")] = Field(False, description="Show replies only when they are complete.")
    queue_timeout: Annotated[float, Flag("page", "SECONDS")] = Field(
        600.0,
        ge=0,
        le=86_400,
        description="How long a request to the API waits for its turn before it is refused with 504. 0: without end.",
    )
    settings: Annotated[UserPath | None, Flag("page", "FILE")] = Field(
        None, description="A YAML file with these settings. Default: settings.yaml in the user data folder."
    )
    extensions: Annotated[tuple[str, ...], Flag("page", "NAME")] = Field(
        (), description="Extensions to start, by folder name."
    )
    log_format: Annotated[Literal["text", "json"], Flag("page")] = Field(
        "text", description="How the log looks: lines for people, or one JSON object a line, requests included."
    )
    verbose: Annotated[bool, Flag("page")] = Field(False, description="Log more. Prompts are never logged.")
    plan: Annotated[bool, Flag("plan")] = Field(
        False,
        description="Show every way to run --model (or each of your models), what it takes and what to type; load "
        "nothing. --model may be a folder, a config.json, a .gguf file or a name on the hub. Exits with 0 if one fits.",
    )
    gpu: Annotated[tuple[str, ...], BeforeValidator(_gpus), Flag("plan", "GPU")] = Field(
        (),
        description="With --plan: as if the machine had this GPU: a size (24GiB) or a name (3060). Repeat it for more.",
    )
    ram: Annotated[Size | None, Flag("plan", "SIZE")] = Field(
        None, description="With --plan: as if the machine had this much memory. Default: as here."
    )
    mode: Annotated[Literal["infer", "lora", "qlora", "full"], Flag("plan")] = Field(
        "infer", description="With --plan: what is to be done: talk to the model, or train it in one of three ways."
    )
    report: Annotated[bool, Flag("plan")] = Field(
        False, description="With --plan: how far earlier forecasts were from what was measured, to share."
    )
    download: Annotated[str | None, Flag("download", "NAME")] = Field(
        None,
        max_length=500,
        description="Fetch this model from the Hugging Face hub into --model-dir, then exit: organisation/model, with "
        "@branch if you like, or its address. What was broken off goes on where it was.",
    )
    download_file: Annotated[str | None, Flag("download", "PATTERN")] = Field(
        None,
        max_length=500,
        description="With --download: which of its files: a quantization (Q4_K_M), a file's name or a pattern. "
        "Default: the whole model in safetensors, else the usual quantization that fits.",
    )
    hf_token_file: Annotated[UserPath | None, Flag("download", "FILE")] = Field(
        None,
        description="A file that holds your access token of the hub, for private and gated models. "
        "Default: HF_TOKEN, or what `hf auth login` keeps.",
    )
    check: Annotated[bool, Flag("check")] = Field(
        False, description="Test this machine: what it has and what each way of loading does. Then exit."
    )
    json_output: Annotated[bool, Flag("check", aliases=("--json",))] = Field(
        False, description="With --plan or --check: print JSON instead of a table."
    )

    @property
    def host(self) -> str:
        """The address to bind."""
        return self.listen_host or ("0.0.0.0" if self.listen else "127.0.0.1")  # noqa: S104 - asked for by --listen

    @property
    def remote_server(self) -> RemoteServer | None:
        """The server that --engine-url names."""
        if self.engine_url is None:
            return None
        return RemoteServer(self.engine_url, self.engine_key_file, self.engine_model or "", self.ctx_size or 0)

    @property
    def load_options(self) -> LoadOptions:
        """The part that the Model tab and the API may set anew."""
        return LoadOptions.model_construct(**{name: getattr(self, name) for name in LoadOptions.model_fields})


def flag_of(name: str) -> Flag:
    """The Flag metadata of the settings field `name`."""
    return next(item for item in Settings.model_fields[name].metadata if isinstance(item, Flag))


def flag_name(name: str) -> str:
    """`load_in_8bit` → `--load-in-8bit`; a field with a better spelling of its own shows that."""
    return {"local_rank": "--local_rank", "json_output": "--json"}.get(name, "--" + name.replace("_", "-"))


class _Parser(argparse.ArgumentParser):
    """argparse that raises BadFlag, with the nearest known flag as remedy, instead of exiting."""

    def error(self, message: str) -> NoReturn:
        raise BadFlag(message[0].upper() + message[1:] + ".", remedy="See python server.py --help.")


def build_parser() -> argparse.ArgumentParser:
    """The command line, made from Settings."""
    parser = _Parser(
        prog="server.py",
        allow_abbrev=False,
        description="Snug: chat in a browser with a language model on this machine.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    groups = {group: parser.add_argument_group(title) for group, title in GROUP_TITLES.items()}
    for name, field in Settings.model_fields.items():
        flag = flag_of(name)
        spellings = [flag_name(name), *(alias for alias in flag.aliases if alias != flag_name(name))]
        groups[flag.group].add_argument(*spellings, dest=name, help=field.description, **_argparse_kind(field, flag))
    return parser


def _argparse_kind(field: FieldInfo, flag: Flag) -> dict[str, Any]:
    """How argparse is to read a field: switch, choice, one value or several."""
    choices = choices_of(field)
    if field.annotation is bool:
        return {"action": "store_true"}
    if choices:
        return {"metavar": "{" + ",".join(choices) + "}"}
    if takes_several(field):
        return {"nargs": "+", "action": "extend", "metavar": flag.metavar}
    return {"metavar": flag.metavar}


def choices_of(field: FieldInfo) -> tuple[str, ...]:
    """The closed set of a field's values; empty if it is open."""
    for kind in _members(field.annotation):
        if get_origin(kind) is Literal:
            return tuple(str(value) for value in get_args(kind))
    return ()


def takes_several(field: FieldInfo) -> bool:
    """Whether a field holds a tuple of values."""
    return any(get_origin(kind) is tuple for kind in _members(field.annotation))


def _members(annotation: Any) -> tuple[Any, ...]:
    """The members of a union, metadata stripped; the annotation itself if it is none."""
    if get_origin(annotation) is Annotated:
        return _members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(part for member in get_args(annotation) for part in _members(member))
    return (annotation,)


_EXCLUDES: tuple[tuple[str, str, str], ...] = (
    ("load_in_8bit", "load_in_4bit", "Choose one of them."),
    ("deepspeed", "load_in_8bit", "ZeRO-3 splits 16-bit weights; drop one of them."),
    ("deepspeed", "load_in_4bit", "ZeRO-3 splits 16-bit weights; drop one of them."),
    ("deepspeed", "auto_devices", "ZeRO-3 places the weights itself; drop one of them."),
    ("deepspeed", "gpu_memory", "ZeRO-3 places the weights itself; drop one of them."),
    ("deepspeed", "cpu_memory", "ZeRO-3 places the weights itself; drop one of them."),
    ("deepspeed", "draft_model", "Ranks in step read token by token; drop one of them."),
    ("deepspeed", "lora", "llama.cpp applies LoRA adapters; drop one of them."),
    ("deepspeed", "embeddings", "llama.cpp makes embeddings; drop one of them."),
    ("embeddings", "draft_model", "llama.cpp guesses ahead for replies only; drop one of them."),
    ("deepspeed", "disk", "With DeepSpeed, use --nvme-offload-dir FOLDER for the disk."),
    ("cpu", "gpu_memory", "Without the GPU there is nothing to limit; drop one of them."),
    ("cpu", "gpu_layers", "Without the GPU it computes no layers; drop one of them."),
    ("deepspeed", "gpu_layers", "--gpu-layers belongs to llama.cpp; drop one of them."),
    ("disk", "gpu_layers", "llama.cpp sends no layers to disk; drop one of them."),
    ("chat", "notebook", "Only one tab can open first."),
    ("plan", "check", "Choose one of them."),
    ("download", "plan", "--download shows the plan too; drop one of them."),
    ("download", "check", "Choose one of them."),
    ("engine_url", "model", "--model names one on this machine; the server's own is named with --engine-model."),
    ("engine_url", "check", "--check tests this machine; drop one of them."),
    ("engine_url", "vllm_python", "That server is there already; drop one of them."),
    ("engine_url", "lora", "The server has its own model; drop one of them."),
    ("engine_url", "embeddings", "The server makes what it can; drop one of them."),
    ("engine_url", "gpu_layers", "The server places its own model; drop one of them."),
    ("engine_url", "deepspeed", "The model runs elsewhere; drop one of them."),
    ("cpu", "gpu", "Without the GPU there is nothing to plan on it; drop one of them."),
)
_NEEDS: tuple[tuple[str, str, str], ...] = (  # several needed ones, separated by |: any of them will do
    ("quant_type", "load_in_4bit", "It chooses the 4-bit format."),
    ("use_double_quant", "load_in_4bit", "It belongs to 4-bit loading."),
    ("compute_dtype", "load_in_4bit", "It belongs to 4-bit loading."),
    ("disk_cache_dir", "disk", "It says where --disk puts the layers."),
    ("nvme_offload_dir", "deepspeed", "It belongs to ZeRO-3; for the ordinary loader use --disk --disk-cache-dir."),
    ("engine_key_file", "engine_url", "It is that server's key."),
    ("engine_model", "engine_url", "It is one of that server's models; --model names one on this machine."),
    ("json_output", "plan|check", "It is the output format of these."),
    ("gpu", "plan", "It plans for a machine that is not here."),
    ("ram", "plan", "It plans for a machine that is not here."),
    ("download_file", "download", "It says which of its files."),
    ("report", "plan", "It shows how good earlier forecasts were."),
)


def check_together(options: LoadOptions) -> None:
    """Refuse flags that cannot go together. Raises BadFlag naming both and the remedy."""
    for first, second, why in _EXCLUDES:
        if getattr(options, first, False) and getattr(options, second, False):
            raise BadFlag(f"{flag_name(first)} and {flag_name(second)} cannot go together.", remedy=why, param=second)
    for name, needed, why in _NEEDS:
        any_of = needed.split("|")
        if getattr(options, name, None) and not any(getattr(options, other, False) for other in any_of):
            named = " or ".join(map(flag_name, any_of))
            raise BadFlag(f"{flag_name(name)} needs {named}.", remedy=why, param=name)
    if getattr(options, "mode", "infer") != "infer" and not getattr(options, "plan", False):
        raise BadFlag("--mode needs --plan.", remedy="Snug plans training but does not train.", param="mode")
    if options.draft_model and options.speculate != "auto":
        raise BadFlag(
            f"--draft-model and --speculate {options.speculate} cannot go together.",
            remedy="Drop one of them: a draft model is what guesses.",
            param="speculate",
        )
    if options.kv_cache not in ("auto", "plain") and (options.draft_model or options.speculate == "ngram"):
        guessing = "--draft-model" if options.draft_model else "--speculate ngram"
        raise BadFlag(
            f"{guessing} and --kv-cache {options.kv_cache} cannot go together.",
            remedy="The compiled step reads one token: drop one of them."
            if options.kv_cache == "static"
            else "The reply would not stay what it is: drop one of them.",
            param="kv_cache",
        )
    if options.kv_cache == "static" and options.attn_implementation.startswith("flash_attention"):
        raise BadFlag(
            f"--attn-implementation {options.attn_implementation} and --kv-cache static cannot go together.",
            remedy="Flash attention cannot be compiled as a whole: use sdpa.",
            param="kv_cache",
        )
    if options.embeddings and options.speculate == "ngram":
        raise BadFlag(
            "--embeddings and --speculate ngram cannot go together.",
            remedy="llama.cpp guesses ahead for replies only; drop one of them.",
            param="speculate",
        )
    if options.deepspeed and options.speculate == "ngram":
        raise BadFlag(
            "--deepspeed and --speculate ngram cannot go together.",
            remedy="Ranks in step read token by token; drop --speculate.",
            param="speculate",
        )
    if options.bf16 and options.dtype not in ("auto", "bf16"):
        raise BadFlag(f"--bf16 and --dtype {options.dtype} cannot go together.", remedy="Drop one.", param="dtype")


def check_machine(options: LoadOptions, inventory: Inventory) -> None:
    """Refuse what this machine lacks. Raises NotAvailableHere naming the flag, the value and the remedy."""
    gpus = 0 if options.cpu else len(inventory.gpus)
    if options.gpu_memory and not gpus:
        raise NotAvailableHere(
            f"--gpu-memory {' '.join(format_size(size) for size in options.gpu_memory)}: Snug finds no GPU here.",
            remedy="Drop it, or use --cpu-memory to limit the CPU's share.",
            param="gpu_memory",
        )
    if options.gpu_memory and len(options.gpu_memory) > gpus:
        raise NotAvailableHere(
            f"--gpu-memory has {len(options.gpu_memory)} values, but there is {gpus} GPU." if gpus == 1
            else f"--gpu-memory has {len(options.gpu_memory)} values, but there are {gpus} GPUs.",
            remedy="Give one value for each GPU.",
            param="gpu_memory",
        )  # fmt: skip
    if options.gpu_layers and not gpus:
        raise NotAvailableHere(
            f"--gpu-layers {options.gpu_layers}: Snug finds no GPU here.", remedy="Drop it.", param="gpu_layers"
        )
    if options.kv_cache == "offloaded" and not gpus:
        raise NotAvailableHere(
            "--kv-cache offloaded: it keeps what a GPU has no room for in CPU memory, and Snug finds no GPU here.",
            remedy="Use --kv-cache int8 or int4 to save memory.",
            param="kv_cache",
        )
    if options.kv_cache == "static" and not gpus:
        raise NotAvailableHere(
            "--kv-cache static: it compiles the step for a GPU, and Snug finds no GPU here.",
            remedy="Drop it: on a CPU the compiled step was slower than the plain one.",
            param="kv_cache",
        )
    if options.attn_implementation.startswith("flash_attention") and not gpus:
        raise NotAvailableHere(
            f"--attn-implementation {options.attn_implementation}: it runs on GPUs only, and there is none.",
            remedy="Use sdpa.",
            param="attn_implementation",
        )
