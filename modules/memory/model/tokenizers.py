"""Whether a model folder has a tokenizer: without one nothing can be said to the model."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from modules.errors import SnugError
from modules.memory.model.config import read_json

TOKENIZER_REMEDY = "Put tokenizer.json (or tokenizer.model) of the same model beside its weights."
_FILES = frozenset({
    "tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model", "vocab.txt", "sentencepiece.bpe.model",
    "tekken.json", "source.spm",
})  # fmt: skip
# Their tokens are the bytes or characters of the text: there is nothing to store.
_WITHOUT_FILES = frozenset({"ByT5Tokenizer", "CanineTokenizer", "PerceiverTokenizer"})


def lacks_tokenizer(folder: Path) -> bool:
    """Whether `folder` holds no tokenizer file and names no tokenizer that needs none."""
    if any((folder / name).exists() for name in _FILES):
        return False
    try:
        settings = read_json(folder / "tokenizer_config.json")
    except SnugError:
        return True
    return settings.get("tokenizer_class") not in _WITHOUT_FILES


def has_tokenizer_file(names: Iterable[str]) -> bool:
    """Whether one of the file names is a tokenizer's."""
    return not _FILES.isdisjoint(names)
