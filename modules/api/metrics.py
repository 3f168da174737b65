"""GET /metrics for Prometheus: what the Meter counted, and how things stand at this moment."""

from __future__ import annotations

from collections.abc import Iterator

from fastapi import APIRouter, Request
from fastapi.responses import Response
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from modules.models.manager import ModelManager
from modules.services import Services


def metrics_routes(services: Services) -> APIRouter:
    """The one route."""
    router = APIRouter()
    meter = services.models.meter
    meter.registry.register(Standing(services.models))

    @router.get("/metrics")
    def metrics(request: Request) -> Response:
        """Counters, histograms and gauges in Prometheus' text format."""
        write, kind = choose_encoder(request.headers.get("accept", ""))
        return Response(write(meter.registry), headers={"Content-Type": kind})

    return router


class Standing(Collector):
    """How the one model stands when somebody looks."""

    def __init__(self, models: ModelManager) -> None:
        self._models = models

    def describe(self) -> list[Metric]:
        """Nothing ahead of time: a look asks the engine."""
        return []

    def collect(self) -> Iterator[Metric]:
        """The gauges of now."""
        state, stats = self._models.state, self._models.stats()
        ready = state.info is not None and state.status != "died"
        yield GaugeMetricFamily("snug_ready", "Whether a model answers.", value=int(ready))
        if state.info is not None:
            model = GaugeMetricFamily("snug_model_info", "The model that answers.", labels=["model", "loop"])
            model.add_metric([state.info.name, state.info.loop], 1)
            yield model
        yield GaugeMetricFamily("snug_replies_running", "Replies being written.", value=stats.active)
        yield GaugeMetricFamily("snug_replies_waiting", "Replies that wait for their turn.", value=stats.queued)
        yield GaugeMetricFamily("snug_kv_tokens_used", "Tokens in the KV cache.", value=stats.kv_tokens_used)
        yield GaugeMetricFamily("snug_kv_tokens_total", "Tokens that it holds at most.", value=stats.kv_tokens_total)
        memory = GaugeMetricFamily(
            "snug_memory_bytes", "Memory of the engine by device: measured now, at its most, and forecast.",
            labels=["device", "kind"],
        )  # fmt: skip
        held = {"cpu": stats.rss_bytes, **stats.gpu_bytes} if ready else {}
        forecast = {device: budget.total for device, budget in state.plan.budgets.items()} if state.plan else {}
        for kind, figures in (("measured", held), ("peak", stats.peak_bytes), ("forecast", forecast)):
            for device, size in sorted(figures.items()):
                memory.add_metric([device, kind], size)
        yield memory
