"""What is at an address: asked once, at the load. Which kind of server, which model, how long its context, and whether
it lends its tokenizer and its chat template.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from modules.engine.remote.client import RemoteClient
from modules.engine.remote.dialect import TITLES, Kind
from modules.engine.remote.tokens import LlamaServerTokens, RemoteTokens, SnugTokens, VllmTokens
from modules.errors import BadValue, GenerationFailed, ModelNotFound, SnugError
from modules.remote_server import RemoteServer

_OWNERS: dict[str, Kind] = {"vllm": "vllm", "sglang": "sglang", "llamacpp": "llamacpp", "snug": "snug"}
_CONTEXT_NAMES = ("max_model_len", "context_length", "context_window", "max_context_length")
_ROWS: dict[Kind, int] = {"vllm": 64, "sglang": 64, "snug": 32}
_DEFAULT_ROWS = 8
_MOST_NAMED = 8


@dataclass(frozen=True, slots=True)
class Found:
    """What was found out about a server. `context_tokens` and `vocab_size` 0: it does not say.

    With `tokens` prompts travel as ids, made here with `chat_template`; without, as words. `rows` are replies at once.
    """

    kind: Kind
    model: str
    title: str
    context_tokens: int = 0
    longest_context: int = 0
    vocab_size: int = 0
    rows: int = _DEFAULT_ROWS
    chat_template: str = ""
    special_tokens: dict[str, str] = field(default_factory=dict)
    end_texts: tuple[str, ...] = ()
    is_encoder_decoder: bool = False
    tokens: RemoteTokens | None = None


def find_out(client: RemoteClient, server: RemoteServer) -> Found:
    """Ask the server at `client` who it is. Raises SnugError: nothing answers, a key, an unknown or unnamed model."""
    kind, listed = _listed(client)
    card = _choose(listed, server, client.where, kind)
    model = str(card.get("id") or server.model)
    known = _first_number(card, _CONTEXT_NAMES) or server.context_tokens
    plain = Found(kind, model, TITLES[kind], known, known, rows=_ROWS.get(kind, _DEFAULT_ROWS))
    look = {"llamacpp": _llama_server, "vllm": _vllm, "snug": _snug}.get(kind)
    return plain if look is None else look(client, plain, card)


def _listed(client: RemoteClient) -> tuple[Kind, list[Mapping[str, Any]]]:
    """The kind of server and the cards of its models."""
    try:
        listed = _models(client.ask_now("/models"))
    except GenerationFailed:
        kind = _kind_of(client, [])
        if kind != "transformers":  # whose list fails on a machine without a download cache
            raise
        return kind, []
    return _kind_of(client, listed), listed


def _models(answer: Any) -> list[Mapping[str, Any]]:
    """The cards of a server's models."""
    data = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(data, list):
        raise GenerationFailed(
            "What answers at --engine-url lists no models as OpenAI's API does.", remedy="Check the address."
        )
    return [card for card in data if isinstance(card, dict) and isinstance(card.get("id"), str)]


def _kind_of(client: RemoteClient, cards: list[Mapping[str, Any]]) -> Kind:
    """The kind of server, by what it says of itself."""
    for card in cards:
        if kind := _OWNERS.get(str(card.get("owned_by", "")).lower()):
            return kind
    try:
        client.ask_now("//load_model", {})
    except BadValue as error:  # cli/serving/server.py of transformers 5.23; its openapi.json and its list may both fail
        if "Missing `model` field" in error.message:
            return "transformers"
    except SnugError:
        pass
    return "openai"


def _choose(cards: list[Mapping[str, Any]], server: RemoteServer, where: str, kind: Kind) -> Mapping[str, Any]:
    """The card of the model to use; {} for one that is taken on trust. Raises ModelNotFound."""
    names = [str(card["id"]) for card in cards]
    shown = ", ".join(names[:_MOST_NAMED]) + (" …" if len(names) > _MOST_NAMED else "")
    if server.model:
        # transformers serve lists its download cache only, whatever it was started with.
        if server.model in names or kind == "transformers" or not names:
            return next((card for card in cards if card["id"] == server.model), {})
        raise ModelNotFound(
            f"The server at {where} has no model {server.model!r}.", remedy=f"It has: {shown}.", param="engine_model"
        )
    if len(names) == 1:
        return cards[0]
    if not names and kind == "snug":
        raise ModelNotFound(f"The Snug at {where} has no model loaded.", remedy="Load one there.")
    if not names and kind == "transformers":  # it answers with what it was started with
        return {}
    if not names:
        raise ModelNotFound(
            f"The server at {where} names no model.", remedy="Name it: --engine-model NAME.", param="engine_model"
        )
    raise ModelNotFound(
        f"The server at {where} has {len(names)} models.",
        remedy=f"Name one with --engine-model: {shown}.",
        param="engine_model",
    )


def _llama_server(client: RemoteClient, plain: Found, card: Mapping[str, Any]) -> Found:
    """llama-server tells everything."""
    props, meta = _try(client, "//props"), card.get("meta")
    meta = meta if isinstance(meta, dict) else {}
    context = _whole(_path(props, "default_generation_settings", "n_ctx")) or _whole(meta.get("n_ctx"))
    vocab = _whole(meta.get("n_vocab"))
    build = str(_path(props, "build_info") or "")
    named = replace(
        plain,
        title=f"llama-server {build}".strip(),
        context_tokens=context or plain.context_tokens,
        longest_context=_whole(meta.get("n_ctx_train")),
        vocab_size=vocab,
        rows=_whole(_path(props, "total_slots")) or _DEFAULT_ROWS,
    )
    if not (vocab and context and isinstance(_path(props, "chat_template"), str)):
        return named
    try:
        tokens = LlamaServerTokens(client)
    except (SnugError, KeyError, TypeError, ValueError):
        return named
    special = {name: str(props[name]) for name in ("bos_token", "eos_token") if props.get(name)}
    return _with_tokens(named, tokens, str(props["chat_template"]), special)


def _vllm(client: RemoteClient, plain: Found, _: Mapping[str, Any]) -> Found:
    """vLLM lends its tokenizer, and its template where it was started with --enable-tokenizer-info-endpoint."""
    version = str(_path(_try(client, "//version"), "version") or "")
    named = replace(plain, title=f"vLLM {version}".strip())
    info = _try(client, "//tokenizer_info")
    template = _path(info, "chat_template")
    if not isinstance(template, str) or not plain.context_tokens:
        return named
    special = {
        name: info[name]
        for name in ("bos_token", "eos_token", "unk_token", "pad_token")
        if isinstance(info.get(name), str)
    }
    try:
        tokens = VllmTokens(client, plain.model)
    except (SnugError, KeyError, TypeError, ValueError):
        return named
    return _with_tokens(named, tokens, template, special)


def _snug(client: RemoteClient, plain: Found, _: Mapping[str, Any]) -> Found:
    """Another Snug lends what its own pages use."""
    lent = _try(client, "/internal/token/info")
    if not isinstance(lent, dict) or lent.get("takes") != "tokens":
        return plain
    border = (_numbers(lent.get("text_prefix_ids")), _numbers(lent.get("text_suffix_ids")))
    special = lent.get("special_tokens")
    named = replace(
        plain,
        vocab_size=_whole(lent.get("vocab_size")),
        end_texts=tuple(map(str, lent.get("end_texts") or ())),
        is_encoder_decoder=bool(lent.get("is_encoder_decoder")),
    )
    return _with_tokens(named, SnugTokens(client, border), str(lent.get("chat_template") or ""), dict(special or {}))


def _with_tokens(named: Found, tokens: RemoteTokens, template: str, special: dict[str, str]) -> Found:
    ends = named.end_texts or tuple(text for name, text in special.items() if name == "eos_token")
    return replace(
        named,
        vocab_size=named.vocab_size or 2**31,
        chat_template=template,
        special_tokens=special,
        end_texts=ends,
        tokens=tokens,
    )


def _try(client: RemoteClient, path: str) -> Any:
    """What a route answers that not every server has; {} from those."""
    try:
        return client.ask_now(path)
    except SnugError:
        return {}


def _path(value: Any, *names: str) -> Any:
    """`value[name][name]…`, None where that is not there."""
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _whole(value: Any) -> int:
    """A positive number, 0 for anything else."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**31 else 0


def _first_number(card: Mapping[str, Any], names: tuple[str, ...]) -> int:
    return next((number for name in names if (number := _whole(card.get(name)))), 0)


def _numbers(value: Any) -> tuple[int, ...]:
    return tuple(int(item) for item in value) if isinstance(value, list) else ()
