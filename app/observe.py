"""Metrics and logs. Metric names carry base units; no label has a value per edit."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from types import MappingProxyType

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector, generate_latest

from app.errors import REFUSALS, ServiceError

_ANSWERS = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
"""Seconds: from one short text on an accelerator to a long one that is written on processors."""
_PASSES = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_STAGES = (0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_BATCHES = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256)

ANSWERING = ("/predict", "/v1/completions", "/v1/chat/completions")
"""The routes that answer."""


class Metrics:
    """What Prometheus scrapes; one registry a process, made where the parts are joined."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._info = Info("errata", "What is served.", registry=self.registry)
        predict_seconds = Histogram(
            "errata_predict_seconds",
            "From the receipt of a request to the end of its answer.",
            ["route"],
            buckets=_ANSWERS,
            registry=self.registry,
        )
        self.predict_seconds: Mapping[str, Histogram] = MappingProxyType(
            {route: predict_seconds.labels(route) for route in ANSWERING}
        )
        self.queue_seconds = Histogram(
            "errata_queue_seconds", "An input's wait for its forward pass.", buckets=_PASSES, registry=self.registry
        )
        self.forward_seconds = Histogram(
            "errata_forward_seconds",
            "One batch: a forward pass, or all that write its texts.",
            buckets=_PASSES,
            registry=self.registry,
        )
        self.batch_size = Histogram(
            "errata_batch_size", "Inputs in one batch.", buckets=_BATCHES, registry=self.registry
        )
        self.input_tokens = Counter("errata_input_tokens", "Tokens of inputs that began.", registry=self.registry)
        self.output_tokens = Counter(
            "errata_output_tokens", "Tokens written; none of a classifier.", registry=self.registry
        )
        self.waiting_inputs = Gauge(
            "errata_waiting_inputs", "Inputs of callers accepted and not answered yet.", registry=self.registry
        )
        self.requests_in_flight = Gauge(
            "errata_http_requests_in_flight", "Requests at once, beside those of operators.", registry=self.registry
        )
        self._refused = Counter(
            "errata_refused", "Requests that were refused or given up, by code.", ["reason"], registry=self.registry
        )
        for refusal in REFUSALS:
            self._refused.labels(refusal.code)
        self.edit_seconds = Histogram(
            "errata_edit_seconds", "Stages of an edit.", ["stage"], buckets=_STAGES, registry=self.registry
        )
        self.edits = Counter("errata_edits", "Edits by how they ended.", ["status"], registry=self.registry)
        self.edits_live = Gauge("errata_edits_live", "Edits that are live.", registry=self.registry)
        self.revision = Gauge("errata_revision", "The revision this process serves.", registry=self.registry)
        self.queue_depth = Gauge("errata_edit_queue_depth", "Edits waiting.", registry=self.registry)
        self.requests = Counter(
            "errata_http_requests",
            "Requests by route and status.",
            ["method", "route", "status"],
            registry=self.registry,
        )
        self._requests_of: dict[tuple[str, str, int], Counter] = {}

    def serves(self, model: str, fingerprint: str, waiting: Callable[[], int]) -> None:
        """Say what is served, and who knows how many inputs of callers are in the house."""
        self._info.info({"version": metadata.version("errata"), "model": model, "fingerprint": fingerprint})
        self.waiting_inputs.set_function(waiting)

    def batch_begins(self, waits: Sequence[float], tokens: int) -> None:
        """One batch begins. waits: seconds, one an input. tokens: of all inputs."""
        self.batch_size.observe(len(waits))
        self.input_tokens.inc(tokens)
        for seconds in waits:
            self.queue_seconds.observe(seconds)

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one request, and take its time if it was given an answer. method, route: of few, never a caller's."""
        counter = self._requests_of.get((method, route, status))
        if counter is None:  # to look it up by its labels takes longer than to count
            counter = self._requests_of[method, route, status] = self.requests.labels(method, route, str(status))
        counter.inc()
        if status == 200 and route in self.predict_seconds:
            self.predict_seconds[route].observe(seconds)

    def refused(self, error: ServiceError) -> None:
        """Count an error that says that more is asked than the service does; others are not counted here."""
        if isinstance(error, REFUSALS):
            self._refused.labels(error.code).inc()

    def exposition(self) -> bytes:
        """The text that GET /metrics answers."""
        return generate_latest(self.registry)


def set_up_logging(level: str, log_format: str) -> None:
    """Structured logs on standard error, also of the libraries."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if log_format == "json"
        else structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
    )
    structlog.configure(
        processors=[
            *shared,
            structlog.processors.format_exc_info,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
    )
    handler = logging.StreamHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for noisy in ("httpx", "alembic", "sqlalchemy", "filelock", "urllib3"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
