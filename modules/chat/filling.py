"""Prompts for a gap in a text: for models whose tokenizer has tokens for it (fill in the middle).

Left out: CodeLlama, which ends with a token that its configuration does not name, and Mistral's, whose tokenizers
have the tokens whether the model was taught them or not.
"""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakKeyDictionary

from modules.chat.prompts import LONGEST_TOKEN_CHARACTERS, BuiltPrompt, Ids, PromptEngine, free_tokens, whole_characters
from modules.engine.base import TextPiece

AFTER_SHARE = 4  # of the context, at most, goes to what stands after the gap where not all of it fits


@dataclass(frozen=True, slots=True)
class GapTokens:
    """What stands before the text before the gap, before the text after it, and before what fills it."""

    before: str
    after: str
    middle: str

    @property
    def all(self) -> tuple[str, str, str]:
        """All of them."""
        return self.before, self.after, self.middle


KNOWN = (
    GapTokens("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen, CodeGemma, Yi-Coder
    GapTokens("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder, Granite
    GapTokens("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),  # SantaCoder
    GapTokens("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # DeepSeek
    GapTokens("<|code_prefix|>", "<|code_suffix|>", "<|code_middle|>"),  # CodeGeeX
)
_ENDS = ("<|fim_pad|>", "<fim_pad>", "<|file_separator|>", "<|file_sep|>", "<file_sep>", "<|repo_name|>")


class Filling:
    """Builds such prompts. Safe to use from any thread."""

    def __init__(self) -> None:
        self._known: WeakKeyDictionary[PromptEngine, tuple[GapTokens | None]] = WeakKeyDictionary()

    def tokens_of(self, engine: PromptEngine) -> GapTokens | None:
        """The tokens that this model's tokenizer has for a gap, if it has them."""
        if engine.info.takes == "words" or engine.info.is_encoder_decoder:
            return None
        if engine not in self._known:
            self._known[engine] = (next((gap for gap in KNOWN if _has(engine, gap)), None),)
        return self._known[engine][0]

    def prompt(
        self, engine: PromptEngine, gap: GapTokens, before: str, after: str, *, max_new_tokens: int, behind: int = 0
    ) -> BuiltPrompt:
        """The prompt for what stands between two texts, of which so many tokens may follow it already.

        Where they do not fit, the end of what follows and the beginning of what precedes are left out.
        """
        info = engine.info
        limit = max(16, info.context_tokens - free_tokens(info, max_new_tokens) - behind)
        before, after = whole_characters(before), whole_characters(after)
        most = limit * LONGEST_TOKEN_CHARACTERS
        kept = before[max(0, len(before) - most) :], after[:most]
        share, ids = 1.0, _read(engine, gap, *kept)
        shares = _shares(engine, *kept, room=limit - len(gap.all) - len(info.text_prefix_ids))
        while len(ids) > limit and share > 0:
            first, second = int(len(kept[0]) * shares[0] * share), int(len(kept[1]) * shares[1] * share)
            ids = _read(engine, gap, kept[0][len(kept[0]) - first :], kept[1][:second])
            share = share * 0.9 if first or second else 0.0
        stop = tuple(dict.fromkeys((*gap.all, *_ENDS)))
        cut = share < 1 or len(kept[0]) < len(before) or len(kept[1]) < len(after)
        return BuiltPrompt(ids, stop=stop, notice="Not all of the text fits into the model's context." if cut else "")


def _read(engine: PromptEngine, gap: GapTokens, before: str, after: str) -> Ids:
    text = f"{gap.before}{before}{gap.after}{after}{gap.middle}"
    ids, prefix = tuple(engine.encode([TextPiece(text, template=True)])), engine.info.text_prefix_ids
    return ids if ids[: len(prefix)] == prefix else (*prefix, *ids)


def _shares(engine: PromptEngine, before: str, after: str, *, room: int) -> tuple[float, float]:
    """How much of each text to keep in so many tokens: of what follows a part, the rest of what precedes."""
    first, second = (len(engine.encode([TextPiece(text, template=True)])) if text else 0 for text in (before, after))
    for_after = min(second, max(room // AFTER_SHARE, room - first))
    for_before = min(first, room - for_after)
    return (for_before / first if first else 1.0), (for_after / second if second else 1.0)


def _has(engine: PromptEngine, gap: GapTokens) -> bool:
    return all(len(engine.encode([TextPiece(text, template=True)])) == 1 for text in gap.all)
