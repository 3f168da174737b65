"""The plan of a model that runs on another server: nothing of it is on this machine, so nothing is to be planned."""

from __future__ import annotations

from pathlib import Path

from modules.memory.forecasting.forecast import RunSpec
from modules.memory.model.model_spec import ModelSpec
from modules.memory.planning.planner import Plan
from modules.remote_server import RemoteServer

TITLE = "Runs elsewhere"


def plan_elsewhere(server: RemoteServer) -> Plan:
    """A Plan that puts nothing anywhere."""
    flags = ["--engine-url", server.url]
    if server.key_file is not None:
        flags += ["--engine-key-file", str(server.key_file)]
    if server.model:
        flags += ["--engine-model", server.model]
    return Plan(
        spec=_unknown(server),
        run=RunSpec("bfloat16", context_tokens=server.context_tokens),
        loader="remote",
        placement={},
        reasons=(
            f"It runs at {server.url}: nothing of it takes memory on this machine, so there is nothing to plan.",
            "Which server that is, which model it has and how long a text may be is asked when it is loaded.",
        ),
        title=TITLE,
        flags=tuple(flags),
        remote=server,
    )


def _unknown(server: RemoteServer) -> ModelSpec:
    """A model of which nothing is known but where it is."""
    return ModelSpec(
        name=server.name,
        path=Path(server.url),
        source="remote",
        architecture="",
        model_type="",
        is_encoder_decoder=False,
        tensors=(),
        tied_embeddings=False,
        stored_dtype="",
        layers=0,
        hidden_size=0,
        intermediate_size=0,
        attention_heads=0,
        kv_heads=0,
        head_dim=0,
        vocab_size=0,
        max_context=server.context_tokens,
        weights_here=False,
    )
