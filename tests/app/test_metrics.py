"""What Prometheus is told: names, units, labels, and that the numbers move."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from starlette.types import Message, Receive, Scope, Send

from app.engine import Engine, Live
from app.errors import REFUSALS
from app.model import Decoding, load
from app.observe import ANSWERING, Metrics
from app.routes.middleware import RequestContext
from editors.composition import Composition
from editors.registry import editors
from tests.app.conftest import Caller, sentence, settings_in, started
from tests.app.test_answering import in_a_loop
from tests.app.test_pressure import eventually
from tests.deployed import deploy

TYPES = {
    "errata_predict_seconds": "histogram",
    "errata_queue_seconds": "histogram",
    "errata_forward_seconds": "histogram",
    "errata_batch_size": "histogram",
    "errata_input_tokens": "counter",
    "errata_output_tokens": "counter",
    "errata_waiting_inputs": "gauge",
    "errata_http_requests": "counter",
    "errata_http_requests_in_flight": "gauge",
    "errata_refused": "counter",
    "errata_edit_seconds": "histogram",
    "errata_edits": "counter",
    "errata_edits_live": "gauge",
    "errata_edit_queue_depth": "gauge",
    "errata_revision": "gauge",
    "errata_info": "gauge",
}
LABELS = {"le", "route", "method", "status", "stage", "reason", "version", "model", "fingerprint"}


def families(caller: Caller) -> dict[str, Metric]:
    answer = caller.client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    found = text_string_to_metric_families(answer.text)
    return {family.name: family for family in found if not family.name.endswith("_created")}


def value(caller: Caller, name: str, **labels: str) -> float:
    """Of one sample; 0 if there is none yet."""
    samples = [sample for family in families(caller).values() for sample in family.samples if sample.name == name]
    return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())


def test_every_metric_has_its_name_and_its_type(caller: Caller) -> None:
    found = {name: family.type for name, family in families(caller).items()}
    assert {name: kind for name, kind in found.items() if name.startswith("errata_")} == TYPES


def test_every_metric_of_ours_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    assert [name for name in TYPES if f"`{name}" not in page] == []


def test_no_label_has_a_value_per_edit_and_none_is_unbounded(caller: Caller) -> None:
    edits = [caller.edit(sentence(number))["id"] for number in (1, 2)]
    for edit_id in edits:
        caller.client.get(f"/edits/{edit_id}", headers={"X-Request-ID": edit_id})
    caller.client.get("/nothing/of/the/kind")
    samples = [sample for family in families(caller).values() for sample in family.samples]
    ours = [sample for sample in samples if sample.name.startswith("errata_")]
    assert {label for sample in ours for label in sample.labels} <= LABELS
    values = {text for sample in ours for text in sample.labels.values()}
    assert not [text for text in values for edit_id in edits if edit_id in text]
    assert "/nothing/of/the/kind" not in values


def test_a_prediction_moves_what_it_should(caller: Caller) -> None:
    caller.predict(sentence(1), sentence(2), sentence(3))
    assert value(caller, "errata_predict_seconds_count", route="/predict") == 1
    assert value(caller, "errata_queue_seconds_count") == 3
    assert value(caller, "errata_batch_size_sum") == 3
    eventually(lambda: value(caller, "errata_forward_seconds_count") >= 1)  # a batch ends after its answers
    assert value(caller, "errata_input_tokens_total") >= 9
    assert value(caller, "errata_output_tokens_total") == 0
    assert value(caller, "errata_waiting_inputs") == 0
    assert value(caller, "errata_http_requests_total", route="/predict", status="200") == 1


def test_the_time_of_an_answer_holds_all_that_it_waited_for(caller: Caller) -> None:
    caller.predict(*map(sentence, range(64)))
    eventually(lambda: value(caller, "errata_forward_seconds_sum") > 0)
    inside = value(caller, "errata_forward_seconds_sum")
    assert value(caller, "errata_predict_seconds_sum", route="/predict") > inside


def test_refused_requests_are_no_answers(caller: Caller) -> None:
    assert caller.client.post("/predict", json={"inputs": []}).status_code == 422
    assert value(caller, "errata_predict_seconds_count") == 0
    assert value(caller, "errata_http_requests_total", route="/predict", status="422") == 1


def test_every_reason_of_a_refusal_is_there_from_the_start(caller: Caller) -> None:
    refused = {sample.labels["reason"]: sample.value for sample in families(caller)["errata_refused"].samples}
    assert {reason: count for reason, count in refused.items() if count == 0} == {each.code: 0 for each in REFUSALS}
    assert value(caller, "errata_predict_seconds_count") == 0
    routes = {sample.labels["route"] for sample in families(caller)["errata_predict_seconds"].samples}
    assert routes == set(ANSWERING)


def test_an_edit_moves_what_it_should(caller: Caller) -> None:
    caller.edit(sentence(1))
    assert value(caller, "errata_edits_live") == value(caller, "errata_revision") == 1
    eventually(lambda: value(caller, "errata_edits_total", status="live") == 1)  # whoever waits may see it first
    assert value(caller, "errata_edit_queue_depth") == 0
    for stage in ("capture", "fit", "judge", "commit"):
        assert value(caller, "errata_edit_seconds_count", stage=stage) >= 1, stage


def test_the_process_and_what_it_serves_are_named(caller: Caller) -> None:
    model = caller.client.get("/model").json()
    assert value(caller, "errata_info", model=model["id"], fingerprint=model["fingerprint"]) == 1
    assert value(caller, "process_resident_memory_bytes") > 2**20
    assert value(caller, "process_cpu_seconds_total") > 0
    assert value(caller, "process_open_fds") <= len(os.listdir("/proc/self/fd")) + 5  # noqa: PTH208


@pytest.mark.parametrize("path", ["/v1/completions", "/predict"])
def test_written_tokens_are_counted_on_every_route(tmp_path: Path, path: str) -> None:
    with started(settings_in(tmp_path, deploy(tmp_path / "llama", family="Llama"))) as client:
        caller = Caller(client)
        body = {"model": "llama", "prompt": "w1 w2", "max_tokens": 3}
        if path == "/predict":
            body = {"inputs": ["w1 w2"], "generation": {"max_new_tokens": 3}}
        assert client.post(path, json=body).status_code == 200
        assert 1 <= value(caller, "errata_output_tokens_total") <= 3
        assert value(caller, "errata_predict_seconds_count", route=path) == 1


@in_a_loop
async def test_whoever_has_the_whole_answer_finds_it_counted() -> None:
    metrics = Metrics()
    found: list[list[float | None]] = []

    async def answering(scope: Scope, receive: Receive, send: Send) -> None:
        scope["route"] = SimpleNamespace(path="/predict")
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"one ", "more_body": True})
        await send({"type": "http.response.body", "body": b"two"})

    async def send(message: Message) -> None:
        sample = metrics.registry.get_sample_value
        requests = {"method": "POST", "route": "/predict", "status": "200"}
        counted = sample("errata_http_requests_total", requests)
        found.append([counted, sample("errata_predict_seconds_count", {"route": "/predict"})])

    async def receive() -> Message:
        raise AssertionError

    scope = {"type": "http", "method": "POST", "path": "/predict", "headers": []}
    await RequestContext(answering, metrics)(scope, receive, send)
    assert found == [[None, 0], [None, 0], [1, 1]]


@in_a_loop
async def test_tokens_are_counted_before_the_answer_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics, model = Metrics(), load(deploy(tmp_path / "llama", family="Llama"), device="cpu")
    engine = Engine(
        model, Live(0, Composition(editors(), model.sites, model.device), ()), metrics, max_batch=4, fit_share=0.3
    )
    loop, counted_when_told = asyncio.get_running_loop(), []
    tell = loop.call_soon_threadsafe

    def telling(callback: Callable[..., object], *given: Any, **options: Any) -> asyncio.Handle:
        counted_when_told.append(metrics.registry.get_sample_value("errata_output_tokens_total"))
        return tell(callback, *given, **options)

    monkeypatch.setattr(loop, "call_soon_threadsafe", telling)
    try:
        (answer,) = await engine.answer(model.encode(["w1 w2"]), engine.live.bare(), decoding=Decoding(1))
        assert counted_when_told == [answer.output.positions] == [1]
    finally:
        monkeypatch.undo()
        engine.close()
