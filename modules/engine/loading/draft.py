"""Load the draft model that a plan names, beside the model that it drafts for. Both must have the same vocabulary."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from modules.engine.loops.loaded import LoadedModel
from modules.memory.planning.drafts import draft_run, other_vocabulary
from modules.memory.planning.planner import Plan


def draft_plan(plan: Plan) -> Plan | None:
    """How to load the draft model of `plan`, on the device where the model computes; None where it names none."""
    if plan.draft is None:
        return None
    gpus = sorted(device for device in set(plan.placement.values()) if device.startswith("cuda"))
    return Plan(
        spec=plan.draft,
        run=draft_run(plan.draft, plan.run),
        loader="transformers",
        placement={"": gpus[0] if gpus else "cpu"},
        trust_remote_code=plan.trust_remote_code,
    )


def load_draft(
    plan: Plan, tokenizer: Any, load_tokenizer: Callable[[Plan], Any], load_model: Callable[[Plan, Any], LoadedModel]
) -> LoadedModel | None:
    """The draft model of `plan`, ready to be run; None where it names none. Raises what loading raises, and BadValue
    where its vocabulary is not that of `tokenizer`.
    """
    own = draft_plan(plan)
    if own is None:
        return None
    its_tokenizer = load_tokenizer(own)
    check_same_vocabulary(plan, tokenizer, its_tokenizer)
    return load_model(own, its_tokenizer)


def check_same_vocabulary(plan: Plan, tokenizer: Any, draft_tokenizer: Any) -> None:
    """Raise BadValue where a token id does not mean the same to both."""
    ours, its = tokenizer.get_vocab(), draft_tokenizer.get_vocab()
    if ours != its:
        raise other_vocabulary(plan.spec, plan.draft or plan.spec, len(ours.items() ^ its.items()))
