"""What Snug counts of its own work, for Prometheus: requests, replies, tokens, times, loads. Numbers only.

One Meter belongs to one server and is told of things as they happen; nothing in it says who asked or what was said.
Thread-safe. api/metrics.py writes it out, together with how things stand at that moment.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.process_collector import ProcessCollector

from modules.engine.base import Degraded, Delta, Event, Finished, GenerationRequest

Listen = Callable[[Event], None]
_FIRST_TOKEN_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_BETWEEN_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
_LOAD_S = (0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)
_REQUEST_S = (0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 300, 600)
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Meter:
    """Counters and histograms in a `registry` of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        own = self.registry
        self._requests = Counter(
            "snug_http_requests", "HTTP requests answered.", ("method", "route", "status"), registry=own
        )  # fmt: skip
        self._request_s = Histogram(
            "snug_http_request_seconds", "Time from a request to the end of its answer.", ("route",),
            buckets=_REQUEST_S, registry=own,
        )  # fmt: skip
        self._open = Gauge("snug_http_requests_open", "HTTP requests being answered now.", registry=own)
        self._replies = Counter("snug_replies", "Replies that ended, by why.", ("reason",), registry=own)
        self._read = Counter("snug_prompt_tokens", "Tokens of prompts, those in a cache included.", registry=own)
        self._cached = Counter("snug_cached_prompt_tokens", "Tokens of prompts not computed again.", registry=own)
        self._written = Counter("snug_reply_tokens", "Tokens that models wrote.", registry=own)
        self._queue_s = Histogram(
            "snug_queue_seconds", "Time that a reply waited for its turn.", buckets=_FIRST_TOKEN_S, registry=own
        )
        self._first_s = Histogram(
            "snug_first_token_seconds", "Time from a request to its first token.", buckets=_FIRST_TOKEN_S, registry=own
        )
        self._between_s = Histogram(
            "snug_between_tokens_seconds", "Time between two tokens of a reply.", buckets=_BETWEEN_S, registry=own
        )
        self._degraded = Counter("snug_degradations", "Times that a reply went on with less.", registry=own)
        self._rescues = Counter("snug_rescues", "Loads with less memory because it had run out.", registry=own)
        self._loads = Counter("snug_loads", "Loads of models, by how they ended.", ("result",), registry=own)
        self._load_s = Histogram("snug_load_seconds", "Time that a load took.", buckets=_LOAD_S, registry=own)

    def request_begins(self) -> None:
        """A request came."""
        self._open.inc()

    def request_ends(self, method: str, route: str, status: int, seconds: float) -> None:
        """Its answer is complete, or broke off. `route` is a template, never a path that somebody made up."""
        self._open.dec()
        self._requests.labels(method if method in _METHODS else "other", route, str(status)).inc()
        self._request_s.labels(route).observe(seconds)

    def summary(self) -> dict[str, float]:
        """The most telling sums since the start, by name; averages of seconds where there is something to average."""

        def value(name: str) -> float:
            return self.registry.get_sample_value(name) or 0.0

        def mean(name: str) -> float | None:
            return value(f"{name}_sum") / value(f"{name}_count") if value(f"{name}_count") else None

        sums = {
            "prompt_tokens": value("snug_prompt_tokens_total"),
            "cached_prompt_tokens": value("snug_cached_prompt_tokens_total"),
            "reply_tokens": value("snug_reply_tokens_total"),
            "degradations": value("snug_degradations_total"),
            "rescues": value("snug_rescues_total"),
            "mean_first_token_s": mean("snug_first_token_seconds"),
            "mean_between_tokens_s": mean("snug_between_tokens_seconds"),
        }
        return {name: found for name, found in sums.items() if found is not None}

    def follow(self, request: GenerationRequest) -> Listen:
        """What to tell of the events of one reply, which begins now."""
        return (lambda _: None) if request.embed else _Reply(self).hear

    def load_ends(self, result: str, seconds: float) -> None:
        """A load ended: `result` is "ok" or an error's code."""
        self._loads.labels(result).inc()
        self._load_s.observe(seconds)

    def rescued(self) -> None:
        """A model was loaded with less memory than planned."""
        self._rescues.inc()

    def degraded(self) -> None:
        """A reply goes on with less."""
        self._degraded.inc()

    def waited(self, seconds: float, tokens: int, *, first: bool) -> None:
        """`tokens` came together, `seconds` after the ones before them, or after the request."""
        if first:
            self._first_s.observe(seconds)
            return
        for _ in range(tokens):
            self._between_s.observe(seconds / tokens)

    def reply_ends(self, finished: Finished) -> None:
        """A reply ended."""
        self._replies.labels(finished.reason).inc()
        self._read.inc(finished.usage.prompt_tokens)
        self._cached.inc(finished.usage.cached_tokens)
        self._written.inc(finished.usage.completion_tokens)
        self._queue_s.observe(max(0.0, finished.timings.queue_s))


class _Reply:
    """The clock of one reply."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._last = time.monotonic()
        self._first = True

    def hear(self, event: Event) -> None:
        """Count what happened."""
        if isinstance(event, Delta) and event.token_ids:
            now = time.monotonic()
            self._meter.waited(now - self._last, len(event.token_ids), first=self._first)
            self._last, self._first = now, False
        elif isinstance(event, Degraded):
            self._meter.degraded()
        elif isinstance(event, Finished):
            self._meter.reply_ends(event)
