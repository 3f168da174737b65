"""How attached files are told to a model: as marked blocks before the message's text, cut to a share of the context.

A file's name and text are content like all that people write: no sign in them is read as a control token, and a fence
longer than any in the text holds them together. How much a model is told follows from the files of that one message
and the model alone, so what was told once is told alike in the next turn, and the KV cache stays good.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from modules.attachments.extracted import cut_at_line
from modules.messages import Attachment

CONTEXT_SHARE = 2  # of the context, one part in so many is for the files of one message
_MOST_CHARACTERS_A_TOKEN = 16  # on average over a text that is cut, generously
_FENCES = re.compile("`{3,}")
_TRIES = 12
_HEAD_TOKENS = 40  # of a block's first line, at least

Count = Callable[[str], int]


@dataclass(frozen=True, slots=True)
class ToldFile:
    """A file as a model gets it: the block, what that costs, and in a sentence what had to be cut for this model."""

    attachment: Attachment
    block: str
    tokens: int
    cut: str = ""


def tell(files: Sequence[Attachment], texts: dict[str, str], count: Count, context_tokens: int) -> tuple[ToldFile, ...]:
    """The files of one message for a model with such a context (0: not known, then nothing is cut).

    `texts` are the files' by id; a file without one is told by its name alone. Small files are told whole and the rest
    share what is left.
    """
    budget = context_tokens // CONTEXT_SHARE
    given = [texts.get(item.id, "") for item in files]
    whole = [_block(item, text, "") for item, text in zip(files, given, strict=True)]
    costs = [_cost(block, count, budget) for block in whole]
    if not budget or sum(costs) <= budget:
        return tuple(ToldFile(*parts) for parts in zip(files, whole, costs, strict=True))
    shares = share_out(budget, costs)
    return tuple(
        ToldFile(item, block, cost) if cost <= allowed else _shortened(item, text, allowed, count)
        for item, text, block, cost, allowed in zip(files, given, whole, costs, shares, strict=True)
    )


def with_files(told: Sequence[ToldFile], content: str) -> str:
    """A message's text with its files before it."""
    return "\n\n".join(part for part in (*(file.block for file in told), content) if part.strip())


def share_out(budget: int, costs: Sequence[int]) -> list[int]:
    """What each may cost: the small ones all that they want, the others equal parts of the rest."""
    shares = [0] * len(costs)
    left, waiting = budget, len(costs)
    for at in sorted(range(len(costs)), key=lambda at: costs[at]):
        shares[at] = min(costs[at], left // waiting)
        left -= shares[at]
        waiting -= 1
    return shares


def _cost(block: str, count: Count, budget: int) -> int:
    """Tokens of a block; for one that is far too long, just more than the budget, so that nobody tokenizes a book."""
    return budget + 1 if budget and len(block) > budget * _MOST_CHARACTERS_A_TOKEN else count(block)


def _shortened(item: Attachment, text: str, allowed: int, count: Count) -> ToldFile:
    """The file with as much of its beginning as costs no more than `allowed` tokens."""
    characters = min(len(text), allowed * _MOST_CHARACTERS_A_TOKEN)
    for _ in range(_TRIES):
        kept = cut_at_line(text, characters)
        part = f"first {len(kept):,} of {len(text):,} characters"
        block = _block(item, kept, f"Only its {part} are given here." if kept else "Its text is not given here.")
        cost = count(block)
        if cost <= allowed or not kept:
            break
        characters = min(len(kept) - 1, int(len(kept) * max(0.0, allowed - _HEAD_TOKENS) / cost * 0.98))
    read = f"its {part}" if kept else "nothing of it"
    return ToldFile(item, block, cost, f"This model reads {read}, for files may take half of its context.")


def _block(item: Attachment, text: str, cut: str) -> str:
    """A name as data, what was left out, and the text between fences longer than any in it."""
    name = json.dumps(item.name, ensure_ascii=False)
    head = " ".join(part for part in (f"Attached file {name} ({item.about}).", item.cut, cut) if part)
    if not text:
        return head
    fence = "`" * (max((len(found) for found in _FENCES.findall(text)), default=2) + 1)
    return f"{head}\n{fence}\n{text}\n{fence}"
