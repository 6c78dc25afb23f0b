"""What Prometheus reads at ``/metrics``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from edgesmith.sdk.board.sensors import Board
from edgesmith.sdk.serve.engine import BatchReport
from edgesmith.sdk.serve.served import Change, Served

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Counters of one service. ``board`` is this machine's sensors; what it lacks is left out."""

    def __init__(self, board: Board | None = None) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "edgesmith_requests",
            "Requests answered, by model, interface and status.",
            ("model", "interface", "status"),
            registry=self._registry,
        )
        self.request_seconds = Histogram(
            "edgesmith_request_seconds",
            "From a request's head to its answer.",
            ("model", "interface"),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.stage_seconds = Histogram(
            "edgesmith_stage_seconds",
            "The queue of each request; preprocess, infer and postprocess of each batch.",
            ("model", "stage"),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.batch_size = Histogram(
            "edgesmith_batch_size", "Images in a run.", ("model",), buckets=_ROWS, registry=self._registry
        )
        self.changes = Counter(
            "edgesmith_model_changes",
            "Bundles that took the place of another, or were refused.",
            ("model", "outcome"),
            registry=self._registry,
        )
        ProcessCollector(registry=self._registry)
        self._registry.register(_BoardCollector(board or Board()))

    def watch(self, models: Callable[[], Mapping[str, Served]], used_bytes: Callable[[], int]) -> None:
        """Show what the models are at, and the bytes that requests hold, at the moment of reading."""
        self._registry.register(_ModelCollector(models, used_bytes))

    def batch(self, model: str, report: BatchReport) -> None:
        """Count one run."""
        self.batch_size.labels(model).observe(report.rows)
        for wait_ns in report.queue_ns:
            self.stage_seconds.labels(model, "queue").observe(wait_ns / 1e9)
        for stage, ns in report.stages_ns.items():
            self.stage_seconds.labels(model, stage).observe(ns / 1e9)

    def change(self, model: str, change: Change) -> None:
        """Count a change of a model."""
        self.changes.labels(model, "taken" if change.taken else "refused").inc()

    def text(self) -> bytes:
        """All of it in Prometheus's text format."""
        return generate_latest(self._registry)


class _BoardCollector(Collector):
    def __init__(self, board: Board) -> None:
        self._board = board

    def collect(self) -> Iterable[Metric]:
        heat = GaugeMetricFamily("edgesmith_celsius", "Temperature by thermal zone.", labels=("zone",))
        for zone, degrees in self._board.temperatures().items():
            heat.add_metric((zone,), degrees)
        power = GaugeMetricFamily("edgesmith_watts", "Power by rail.", labels=("rail",))
        for rail, watts in self._board.rails().items():
            power.add_metric((rail,), watts)
        return [heat, power]


class _ModelCollector(Collector):
    def __init__(self, models: Callable[[], Mapping[str, Served]], used_bytes: Callable[[], int]) -> None:
        self._models, self._used_bytes = models, used_bytes

    def describe(self) -> Iterable[Metric]:
        return []  # the models are not there yet when it is registered

    def collect(self) -> Iterable[Metric]:
        admitted = GaugeMetricFamily("edgesmith_images_under_way", "Admitted images.", labels=("model",))
        queued = GaugeMetricFamily("edgesmith_queue", "Requests that wait for a batch.", labels=("model",))
        info = InfoMetricFamily("edgesmith_model", "The bundle that answers.", labels=("model",))
        for name, served in self._models().items():
            admitted.add_metric((name,), served.current.engine.admitted)
            queued.add_metric((name,), served.current.engine.queued)
            backend = served.model.backend
            about = {"bundle": served.current.sha256, "backend": backend.name, "variant": backend.variant}
            info.add_metric((name,), {**about, "version": str(served.current.version)})
        held = GaugeMetricFamily("edgesmith_held_bytes", "Uploads and pixels that requests hold.")
        held.add_metric((), self._used_bytes())
        return [admitted, queued, info, held]
