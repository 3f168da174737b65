"""(llama.cpp) Conversations that wait for their next message, kept beside the KV cache where there is room for them.

All conversations share one cache, and what idle ones left there is attended to, masked, with every token of those that
run. llama.cpp moves them out as soon as another conversation starts, and back when they go on. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from modules.memory.forecasting.budget import Budget, Figure
from modules.memory.forecasting.forecast import kv_cache_bytes
from modules.memory.planning.drafts import draft_run
from modules.memory.planning.problem import Problem, Solution, is_close, lacks_bytes
from modules.units import MiB

# A saved conversation keeps each token's place beside its keys and values: 0.2 % of them in the starter model.
_WITH_PLACES = 1.005


def with_idle_cache(problem: Problem, solution: Solution) -> Solution:
    """The solution with room for idle conversations; as it is where llama.cpp does not run, or the fit would be close
    with it: what nobody asked for leaves as much free as a comfortable fit does.

    They may hold as many tokens as the cache itself. llama.cpp drops the oldest before it saves one for which there is
    no room (server_prompt_cache::alloc), and counts its limit in MiB.
    """
    budgets, run = solution.budgets, solution.run
    if run.runtime != "llamacpp" or not solution.fits:
        return solution
    whole = sum(budget.kv_cache for budget in budgets.values())
    if problem.draft is not None:
        own = draft_run(problem.draft, run)
        whole += kv_cache_bytes(problem.draft, own, own.context_tokens)
    limit = -(-int(whole * _WITH_PLACES) // MiB) * MiB
    text = f"idle conversations, at most: as many tokens as the KV cache, {whole:,} B, and where each stood"
    roomier = budgets["cpu"].with_figure("idle_cache", Figure(limit, "formula", text))
    free, widened = problem.cpu.free_bytes, max(1.0, problem.widened.get("cpu", 1.0))
    if lacks_bytes(free, roomier.total, widened) or is_close(free, int(roomier.total * widened)):
        return solution
    return replace(solution, budgets=budgets | {"cpu": roomier})


def idle_limit_bytes(budgets: Mapping[str, Budget]) -> int:
    """What idle conversations may hold; 0 where there is no room for any."""
    return budgets["cpu"].idle_cache if "cpu" in budgets else 0
