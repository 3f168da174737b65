"""Whether a model folder has a tokenizer, without which nothing can be said to the model, and that it is made of files
of that folder."""

from __future__ import annotations

import stat
from collections.abc import Iterable
from pathlib import Path

from modules.errors import BadTokenizer, SnugError
from modules.memory.model.config import read_json

TOKENIZER_REMEDY = "Put tokenizer.json (or tokenizer.model) of the same model beside its weights."
_FILES = frozenset({
    "tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model", "vocab.txt", "sentencepiece.bpe.model",
    "tekken.json", "source.spm",
})  # fmt: skip
# Their tokens are the bytes or characters of the text: there is nothing to store.
_WITHOUT_FILES = frozenset({"ByT5Tokenizer", "CanineTokenizer", "PerceiverTokenizer"})

# Where tokenizer_config.json names these, transformers takes the folder's. Publishers' machines leave them there.
# The last two are texts: of thousands of tokens one may be spelt like a file.
_PASSED_OVER = frozenset({
    "tokenizer_file", "special_tokens_map_file", "added_tokens_file", "tokenizer_config_file", "name_or_path",
    "added_tokens_decoder", "chat_template",
})  # fmt: skip


def refuse_other_vocabularies(folder: Path) -> None:
    """Raise BadTokenizer where the settings of the tokenizer name a file of this machine outside of `folder`.

    transformers hands all settings to the tokenizer's class: its vocabulary could be any file with lines, which who
    chats can have decoded. Raises BadConfig for files that cannot be read.
    """
    for name, passed_over in (("tokenizer_config.json", _PASSED_OVER), ("special_tokens_map.json", frozenset())):
        settings = read_json(folder / name) if (folder / name).exists() else {}
        for key, value in settings.items():
            nameless = key == "init_inputs" and bool(value)  # arguments in the class's order; nobody writes any
            token = key.endswith(("_token", "_tokens"))
            if nameless or (not token and key not in passed_over and _leads_out(folder, value)):
                raise _bad_tokenizer(folder, name, key)


def _leads_out(folder: Path, value: object) -> bool:
    """Whether `value`, or anything inside it, names a file outside of `folder`: seen from here, or from there, where
    a file that lies there may be a link, as the hub's cache has them.
    """
    if isinstance(value, (list, dict)):
        return any(_leads_out(folder, one) for one in (value.values() if isinstance(value, dict) else value))
    if not isinstance(value, str):
        return False
    here, there = Path(value), folder / value
    own = folder.resolve()
    return (_is_file(here) and own not in here.resolve().parents) or (
        _is_file(there) and own not in (there.parent.resolve(), *there.parent.resolve().parents)
    )


def _is_file(path: Path) -> bool:
    try:
        return not stat.S_ISDIR(path.stat().st_mode)
    except (OSError, ValueError):  # no such file, or no name of one
        return False


def _bad_tokenizer(folder: Path, name: str, key: str) -> BadTokenizer:
    return BadTokenizer(
        f"The tokenizer of {folder.name} may be made of files of its folder alone; {key[:40]!r} in {name} "
        "would let it take others.",
        remedy="Fetch the model again, or another copy of it.",
    )


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
