"""modules/engine/loading/library_messages.py: advice becomes news, one flood is stopped, bars become fractions."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator

import pytest
from transformers.utils import logging as transformers_logging

from modules.engine.loading.library_messages import route_library_messages, weights_progress

INT8 = logging.getLogger("bitsandbytes.autograd._functions")


class Kept(logging.Handler):
    """What reaches the root logger, where terminals and log files hang."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[tuple[int, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append((record.levelno, record.getMessage()))


@pytest.fixture
def kept(caplog: pytest.LogCaptureFixture) -> Iterator[Kept]:
    """The root logger's records at INFO and above while library messages are routed."""
    route_library_messages()
    handler = Kept()
    with caplog.at_level(logging.INFO):
        logging.getLogger().addHandler(handler)
        yield handler
        logging.getLogger().removeHandler(handler)


@pytest.mark.parametrize("name", ["transformers.modeling_utils", "accelerate.big_modeling", "bitsandbytes.nn", "torch"])
def test_advice_is_logged_as_news_and_errors_as_errors(name: str, kept: Kept) -> None:
    logging.getLogger(name).warning("you may want %s", "this")
    logging.getLogger(name).error("it broke")
    assert kept.lines == [(logging.INFO, f"{name}: you may want this"), (logging.ERROR, f"{name}: it broke")]


def test_python_warnings_go_into_the_log_too(kept: Kept) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(False)
        logging.captureWarnings(True)
        warnings.warn("old way", FutureWarning, stacklevel=1)
        logging.captureWarnings(False)
    assert [level for level, _ in kept.lines] == [logging.INFO]
    assert "old way" in kept.lines[0][1]


def test_the_int8_flood_is_dropped_and_nothing_else_of_that_logger(kept: Kept) -> None:
    INT8.warning("MatMul8bitLt: inputs will be cast from %s to float16 during quantization", "torch.bfloat16")
    INT8.warning("something new")
    assert kept.lines == [(logging.INFO, f"{INT8.name}: something new")]


def test_routing_twice_says_things_once(kept: Kept) -> None:
    route_library_messages()
    logging.getLogger("transformers").warning("once")
    assert len(kept.lines) == 1


def test_a_bar_becomes_fractions_by_bytes_and_draws_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    seen: list[tuple[str, float]] = []
    sizes = {"small": 100, "large": 900}
    with weights_progress(sizes, lambda title, fraction: seen.append((title, fraction))):
        items = {"small": object(), "large": object()}.items()
        assert [name for name, _ in transformers_logging.tqdm(items, desc="Loading weights")] == ["small", "large"]
        assert list(transformers_logging.tqdm(iter([1, 2]), desc="unknown length")) == [1, 2]
    assert seen == [("Loading weights", 0.1), ("Loading weights", 1.0)]
    assert capfd.readouterr() == ("", "")


def test_the_hook_is_put_back_afterwards_even_if_the_load_fails() -> None:
    before = transformers_logging.set_tqdm_hook(None)
    with pytest.raises(RuntimeError), weights_progress({}, lambda *_: None):
        raise RuntimeError("load failed")
    assert transformers_logging.set_tqdm_hook(before) is None
