"""A comparison as it is asked for and as it looks at one moment: one prompt, two or three columns. Values only."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from modules.engine.base import Progress
from modules.errors import SnugError
from modules.memory.planning.planner import Plan
from modules.sampling import GenerationParams
from modules.settings import LoadOptions

LEAST_COLUMNS, MOST_COLUMNS = 2, 3
MOST_NEW_TOKENS = 2048

Stage = Literal["waiting", "loading", "reading", "writing", "done", "stopped", "failed"]


@dataclass(frozen=True, slots=True)
class Asked:
    """One column: a model, how it is to be loaded, how tokens are chosen.

    `flags` None: the way it is loaded already if it is, else the one that Snug would choose; `options` hold what they
    say. `sampling` is what people call `params`.
    """

    model: str
    flags: tuple[str, ...] | None
    options: LoadOptions
    sampling: str
    params: GenerationParams


@dataclass(frozen=True, slots=True)
class Trial:
    """What is to be compared. `in_turn`: one after the other even where all fits, so that speeds are those alone."""

    prompt: str
    columns: tuple[Asked, ...]
    max_new_tokens: int
    seed: int
    in_turn: bool = False

    @property
    def tokens(self) -> int:
        """Context enough for it: no tokenizer makes more tokens of a text than it has bytes, and few make half."""
        wanted = len(self.prompt.encode("utf-8", "replace")) * 2 // 3 + 256 + self.max_new_tokens
        return -(-wanted // 512) * 512


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes on one device: as forecast for as much context as was used, and as measured; 0 where nobody says."""

    device: str
    forecast: int
    measured: int


@dataclass(frozen=True, slots=True)
class ColumnView:
    """One look at a column. `forecast_tokens_per_s` is (low, high), (0, 0) if unknown.

    `vocabulary` tells equal ones by equal texts, "" where nothing tells. `ended` is "" while it goes on, else why the
    reply ended. `note` is a sentence for people.
    """

    model: str
    way: str
    sampling: str
    stage: Stage = "waiting"
    progress: Progress | None = None
    text: str = ""
    tokens: tuple[int, ...] = ()
    count: int = 0
    ended: str = ""
    first_token_s: float = 0.0
    tokens_per_s: float = 0.0
    prompt_tokens: int = 0
    load_s: float = 0.0
    forecast_tokens_per_s: tuple[float, float] = (0.0, 0.0)
    memory: tuple[Memory, ...] = ()
    vocabulary: str = ""
    note: str = ""
    error: SnugError | None = None

    @property
    def over(self) -> bool:
        """Whether nothing of it will change any more."""
        return self.stage in ("done", "stopped", "failed")


@dataclass(frozen=True, slots=True)
class View:
    """One look at a comparison; `words` say how it runs and why so, `phase` what is being done just now."""

    id: str
    trial: Trial
    words: tuple[str, ...]
    columns: tuple[ColumnView, ...]
    phase: str = ""
    finished: bool = False
    problem: SnugError | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """An engine that writes some columns, by their numbers from 0; `loaded`: the one that answers in the chat."""

    columns: tuple[int, ...]
    plan: Plan
    loaded: bool = False


@dataclass(frozen=True, slots=True)
class Batch:
    """Engines that run at the same time; `instead` of the chat's model, which is unloaded for them."""

    jobs: tuple[Job, ...]
    instead: bool = False


@dataclass(frozen=True, slots=True)
class Arrangement:
    """What runs with what, in this order; columns that cannot run at all, with the reason; all of it in words."""

    batches: tuple[Batch, ...]
    refused: dict[int, SnugError] = field(default_factory=dict)
    words: tuple[str, ...] = ()
