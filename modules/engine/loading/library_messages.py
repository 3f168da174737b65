"""What the libraries under us print while they load and run: advice goes into the log, progress to a callback.

Errors stay errors. It filters messages, never output: nothing is done to stdout or stderr themselves.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from transformers import modeling_gguf_pytorch_utils
from transformers.utils import logging as transformers_logging

log = logging.getLogger(__name__)

_ADVISERS = (
    "transformers",
    "accelerate",
    "bitsandbytes",
    "torch",
    "py.warnings",
    "DeepSpeed",
    "ContinuousBatchingLogger",
)
# bitsandbytes' int8 says this once for every layer of every forward pass (autograd/_functions.py).
_INT8_LOGGER = "bitsandbytes.autograd._functions"
_INT8_CAST = "MatMul8bitLt: inputs will be cast from"
_LEAST_STEP_S = 0.05

OnFraction = Callable[[str, float], None]


class _AsAdvice(logging.Handler):
    """Repeats warnings at level INFO, so that they show with --verbose only; errors as they are."""

    def emit(self, record: logging.LogRecord) -> None:
        level = record.levelno if record.levelno >= logging.ERROR else min(record.levelno, logging.INFO)
        log.log(level, "%s: %s", record.name, record.getMessage())


def route_library_messages() -> None:
    """Send the libraries' log records and Python warnings through `_AsAdvice`. For this process; once is enough."""
    logging.captureWarnings(True)
    transformers_logging.disable_default_handler()
    for name in _ADVISERS:
        logger = logging.getLogger(name)
        if not any(isinstance(handler, _AsAdvice) for handler in logger.handlers):
            logger.handlers = [_AsAdvice()]
            logger.propagate = False
    int8 = logging.getLogger(_INT8_LOGGER)
    if _is_news not in int8.filters:
        int8.addFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith(_INT8_CAST)


@contextmanager
def weights_progress(sizes: Mapping[str, int], on_fraction: OnFraction) -> Iterator[None]:
    """Report transformers' progress bars as `on_fraction(title, 0 to 1)` instead of drawing them.

    `sizes` are bytes of tensors by name: a large one counts for more. Bars are made by `transformers.utils.logging`
    (core_model_loading.py), which has a hook for this, and by the GGUF reader, which takes tqdm's own and has none:
    there the name is replaced. Both hold for the whole process until the end of the `with`.
    """

    def make_bar(_factory: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        items = args[0] if args else kwargs.get("iterable")
        if items is None or not hasattr(items, "__len__"):
            silent: Any = transformers_logging.EmptyTqdm
            return silent(*args, **kwargs)
        return _counted(list(items), str(kwargs.get("desc") or ""), sizes, on_fraction)

    def make_gguf_bar(*args: Any, **kwargs: Any) -> Any:
        return make_bar(None, args, kwargs)

    gguf_reader: Any = modeling_gguf_pytorch_utils
    previous, gguf_bar = transformers_logging.set_tqdm_hook(make_bar), gguf_reader.tqdm
    gguf_reader.tqdm = make_gguf_bar
    try:
        yield
    finally:
        transformers_logging.set_tqdm_hook(previous)
        gguf_reader.tqdm = gguf_bar


def _counted(items: list[Any], title: str, sizes: Mapping[str, int], on_fraction: OnFraction) -> Iterable[Any]:
    """`items` one by one, telling how large a share of their bytes is done; at most 20 times a second."""
    usual = sum(sizes.values()) // len(sizes) if sizes else 1
    weights = [sizes.get(item[0], usual) if isinstance(item, tuple) else usual for item in items]
    total, done, told = sum(weights) or 1, 0, 0.0
    for item, weight in zip(items, weights, strict=True):
        yield item
        done += weight
        if (now := time.monotonic()) - told >= _LEAST_STEP_S or done == total:
            told = now
            on_fraction(title, done / total)
