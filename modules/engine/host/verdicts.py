"""Why an engine process ended, in words, from its exit code and what was seen of its memory."""

from __future__ import annotations

import signal
from collections.abc import Sequence

import psutil

from modules.engine.base import EXIT_GPU_LOST, EXIT_SERVER_GONE
from modules.engine.host.deaths import MemoryWatch
from modules.engine.host.patience import TRY_AGAIN
from modules.engine.llamacpp.shortage import find_shortage
from modules.errors import EngineDied, LoadFailed, OutOfMemory, SnugError
from modules.memory.planning.planner import Plan
from modules.units import format_size

__all__ = ["death_of", "exit_words", "stopped"]


def stopped(*, loading: bool) -> SnugError:
    """The end of an engine that its host closed."""
    if loading:
        return LoadFailed("The load was stopped.")
    return EngineDied("The model was unloaded.", remedy="Load a model on the Model tab.")


def death_of(
    plan: Plan, exit_code: int | None, watch: MemoryWatch, *, loading: bool, said: Sequence[str] = ()
) -> tuple[SnugError, bool]:
    """Why an engine ended that nobody closed, and whether want of memory is the likely cause in mid-use.

    `said` is what its process printed last: llama.cpp says there why it aborts.
    """
    short = find_shortage(said) if plan.loader == "llamacpp" and exit_code else ""
    if short:
        told = f"llama.cpp ended{' while it was loading' if loading else ''}, because memory ran out: {short}."
        if loading:
            return OutOfMemory(
                told, remedy="Close other programs, or use fewer --gpu-layers or a shorter context."
            ), False
        return EngineDied(told, remedy=TRY_AGAIN), True
    killed = exit_code is not None and exit_code == -getattr(signal, "SIGKILL", 9)
    if loading and killed:
        error = OutOfMemory(
            f"The engine process was killed while it was loading{_guess(plan)}.",
            remedy="Close other programs, or load with fewer bits, a shorter context or --disk.",
        )
        return error, False
    if killed:
        starved = watch.was_memory()
        seen = f" ({seen})" if (seen := watch.evidence()) else ""
        why = f"because memory ran out{seen}" if starved else "by another program or a person"
        death = EngineDied(f"The engine process was killed (SIGKILL), most likely {why}.", remedy=TRY_AGAIN)
        return death, starved
    if exit_code == EXIT_GPU_LOST:
        return EngineDied("The GPU failed, and the engine process ended with it.", remedy=TRY_AGAIN), False
    if exit_code == EXIT_SERVER_GONE:
        return EngineDied("vLLM, which ran the model, ended.", remedy=f"{TRY_AGAIN} The log says more."), False
    again = "Try again; the log says more." if loading else TRY_AGAIN
    when = " while it was loading" if loading else ""
    return EngineDied(f"The engine process ended{when} ({exit_words(exit_code)}).", remedy=again), False


def exit_words(code: int | None) -> str:
    """How a process ended: `SIGSEGV`, `exit code 1`."""
    if code is None:
        return "no exit code"
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def _guess(plan: Plan) -> str:
    """Memory as the likely cause, with the plan's need and what is free now."""
    needed = plan.budgets["cpu"].total if "cpu" in plan.budgets else 0
    need = f"the plan needs {format_size(needed)}, " if needed else ""
    free = format_size(int(psutil.virtual_memory().available))
    return f", most likely because memory ran out ({need}{free} are free now)"
