"""Metrics and logs. Metric names carry base units; no label has a value per edit."""

from __future__ import annotations

import logging
import sys

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """What Prometheus scrapes; one registry a process, made where the parts are joined."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.predict_seconds = Histogram(
            "errata_predict_seconds", "From request to answer.", buckets=_SECONDS, registry=self.registry
        )
        self.queue_seconds = Histogram(
            "errata_queue_seconds", "An input's wait for its forward pass.", buckets=_SECONDS, registry=self.registry
        )
        self.forward_seconds = Histogram(
            "errata_forward_seconds", "One forward pass.", buckets=_SECONDS, registry=self.registry
        )
        self.batch_size = Histogram(
            "errata_batch_size", "Inputs in one forward pass.", buckets=(1, 2, 4, 8, 16, 32, 64), registry=self.registry
        )
        self.edit_seconds = Histogram(
            "errata_edit_seconds", "Stages of an edit.", ["stage"], buckets=_SECONDS, registry=self.registry
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
