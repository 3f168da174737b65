"""LoRA adapters as people name them: NAME, or NAME=SCALE. Names only; the files are memory/model/lora.py's."""

from __future__ import annotations

from modules.errors import BadName
from modules.files import check_name

MOST_LORAS = 8
MOST_SCALE = 100.0


def split_lora(text: str) -> tuple[str, float]:
    """`NAME=SCALE` → (name, scale), with 1 where no scale is named. Raises ValueError in words."""
    name, given, scale = text.rpartition("=")
    if not given:
        name, scale = text, "1"
    try:
        check_name(name)
        number = float(scale)
    except BadName as error:
        raise ValueError(str(error)) from error
    except ValueError as error:
        raise ValueError(
            f"{scale[:20]!r} is not a scale. Write NAME=0.5, or NAME alone for the whole adapter"
        ) from error
    if not abs(number) <= MOST_SCALE:  # NaN compares with nothing
        raise ValueError(f"a scale of {scale[:20]} is not from -{MOST_SCALE:.0f} to {MOST_SCALE:.0f}")
    return name, number


def name_of(text: str) -> str:
    """The adapter that `NAME[=SCALE]` names, its file's ending written or not. Raises ValueError in words."""
    return split_lora(text)[0].removesuffix(".gguf")


def read_loras(value: object) -> object:
    """Adapters as a tuple, from a text or a list of texts; in each, commas part them. Raises ValueError in words."""
    if value is None:
        return ()
    texts = value if isinstance(value, (list, tuple)) else [value]
    if len(texts) > MOST_LORAS:
        raise ValueError(f"at most {MOST_LORAS} adapters can be applied at once")
    items = tuple(item.strip() for text in texts for item in str(text).split(",") if item.strip())
    names = [name_of(item) for item in items]
    if len(set(names)) < len(names):
        raise ValueError("an adapter is named twice")
    if len(names) > MOST_LORAS:
        raise ValueError(f"at most {MOST_LORAS} adapters can be applied at once")
    return items
