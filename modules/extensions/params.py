"""An extension's params on the disk: one JSON file each, read again at the next start."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)


def restore(params: dict[str, Any], path: Path) -> None:
    """Params as they were kept: values of the same kind, for names that the script still has."""
    if not path.is_file():
        return
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        log.warning("The settings of an extension in %s cannot be read: %s", path.name, error)
        return
    for name, value in kept.items() if isinstance(kept, dict) else ():
        usual = params.get(name)
        numbers = isinstance(usual, int | float) and isinstance(value, int | float)
        if name in params and (usual is None or numbers or isinstance(value, type(usual))):
            params[name] = value


def plain(params: dict[str, Any]) -> dict[str, Any]:
    """What of `params` JSON can hold."""
    kept = {}
    for name, value in tuple(params.items()):
        try:
            kept[str(name)] = json.loads(json.dumps(value))
        except (TypeError, ValueError, RecursionError):
            continue
    return kept
