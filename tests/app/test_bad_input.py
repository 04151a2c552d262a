"""Bad input gets its code and a clear sentence, never a 500, and never changes anything."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.app.conftest import Caller, sentence, settings_in, started

EDIT = {"input": "w1", "target": "red"}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[TestClient]:
    """One service for all of them: that is what they must not change."""
    with started(settings_in(tmp_path_factory.mktemp("service"), tiny_model)) as client:
        yield client


@pytest.fixture(autouse=True)
def _nothing_changes(client: TestClient) -> Iterator[None]:
    """Whatever a test of this file sends, nothing of it may be kept."""
    yield
    assert client.get("/edits").json()["items"] == []
    assert [item["number"] for item in client.get("/revisions").json()["items"]] == [0]


@pytest.mark.parametrize(
    "body, where",
    [
        ({"inputs": []}, "body.inputs"),
        ({"inputs": [""]}, "body.inputs.0"),
        ({"inputs": ["fine", "  \n "]}, "body.inputs.1"),
        ({"inputs": ["a\x00b"]}, "body.inputs.0"),
        ({"inputs": "w1"}, "body.inputs"),
        ({"inputs": [7]}, "body.inputs.0"),
        ({"inputs": [None]}, "body.inputs.0"),
        ({"inputs": ["w1"], "explain": "yes"}, "body.explain"),
        ({"inputs": ["w1"], "edits": "maybe"}, "body.edits"),
        ({"inputs": ["w1"], "as_of": -1}, "body.as_of"),
        ({"inputs": ["w1"], "as_of": 1.5}, "body.as_of"),
        ({"inputs": ["w1"], "as_of": "1"}, "body.as_of"),
        ({"inputs": ["w1"], "as_of": 10**30}, "body.as_of"),
        ({"inputs": ["w1"], "exclude": ["nonsense"]}, "body.exclude.0"),
        ({"inputs": ["w1"], "exclude": "x"}, "body.exclude"),
        ({"inputs": ["w1"], "temperature": 1}, "body.temperature"),
        ({"inputs": ["w" * 20_001]}, "body.inputs.0"),
        ({"inputs": ["w1"] * 257}, "body.inputs"),
        ({"inputs": ["w1"] * 10_000}, "body.inputs"),
        ({}, "body.inputs"),
        ([], "body"),
        ("w1", "body"),
        (None, "body"),
    ],
)
def test_a_prediction_asked_wrongly_is_refused_where_it_is_wrong(client: TestClient, body: Any, where: str) -> None:
    answer = client.post("/predict", content=json.dumps(body), headers={"Content-Type": "application/json"})
    assert_problem(answer, 422, "invalid_request")
    assert [".".join(map(str, error["loc"])) for error in answer.json()["errors"]] == [where]
    assert answer.json()["detail"].startswith(where)


@pytest.mark.parametrize(
    "change, code",
    [
        ({"input": ""}, "invalid_request"),
        ({"input": " "}, "invalid_request"),
        ({"input": None}, "invalid_request"),
        ({"input": ["w1"]}, "invalid_request"),
        ({"input": "a\x00b"}, "invalid_request"),
        ({"input": "w" * 20_001}, "invalid_request"),
        ({"input": "w1 " * 50}, "input_too_long"),
        ({"rephrases": ["w1 " * 50]}, "input_too_long"),
        ({"keep": ["w1 " * 50]}, "input_too_long"),
        ({"target": "mauve"}, "unknown_label"),
        ({"target": ""}, "invalid_request"),
        ({"target": 1}, "invalid_request"),
        ({"rephrases": "w2"}, "invalid_request"),
        ({"rephrases": [""]}, "invalid_request"),
        ({"rephrases": ["w2"] * 65}, "invalid_request"),
        ({"keep": [1]}, "invalid_request"),
        ({"editor": "rome"}, "unknown_editor"),
        ({"editor": ""}, "unknown_editor"),
        ({"editor": 3}, "invalid_request"),
        ({"editor": "ft"}, "baseline_editor"),
        ({"editor": "ft-kl"}, "baseline_editor"),
        ({"editor": "ft", "dry_run": True, "options": {"learning_rate": 0}}, "bad_options"),
        ({"options": {"colour": 1}}, "bad_options"),
        ({"options": {"max_neurons": 0}}, "bad_options"),
        ({"options": {"max_neurons": "three"}}, "bad_options"),
        ({"options": {"max_neurons": True}}, "bad_options"),
        ({"options": {"max_neurons": None}}, "bad_options"),
        ({"options": {"max_neurons": [1]}}, "bad_options"),
        ({"options": {"fit": "magic"}}, "bad_options"),
        ({"options": []}, "invalid_request"),
        ({"reason": "a\x00"}, "invalid_request"),
        ({"reason": "x" * 10_001}, "invalid_request"),
        ({"dry_run": "true"}, "invalid_request"),
        ({"supersedes": "the former"}, "invalid_request"),
        ({"supersedes": "01a00000-0000-7000-8000-000000000000"}, "unknown_edit"),
        ({"colour": "red"}, "invalid_request"),
    ],
)
def test_a_report_made_wrongly_is_refused(client: TestClient, change: dict[str, Any], code: str) -> None:
    assert_problem(client.post("/edits", json={**EDIT, **change}), 422, code)


def test_an_unknown_label_is_answered_with_those_there_are(client: TestClient) -> None:
    answer = client.post("/edits", json={"input": "w1", "target": "mauve"})
    assert answer.json()["labels"] == ["red", "green", "blue", "yellow"]
    assert "'mauve'" in answer.json()["detail"]


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_none_are_refused(client: TestClient, number: str) -> None:
    body = f'{{"input": "w1", "target": "red", "options": {{"lr": {number}}}}}'
    answer = client.post("/edits", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 422)
    assert answer.json()["code"] in ("malformed_request", "invalid_request", "bad_options")


@pytest.mark.parametrize("path", ["/predict", "/edits"])
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff\xfe\x00",
        b'{"inputs": ["\xff"]}',
        b'{"inputs": ["w1"]',
        b'{"input": "\\ud800", "target": "red", "inputs": ["\\ud800"]}',
        b"[" * 100_000,
        b'{"inputs": ["w1"], "as_of": ' + b"9" * 5000 + b"}",
    ],
    ids=["empty", "cut", "binary", "not UTF-8", "open", "surrogate", "deep", "huge number"],
)
def test_a_body_that_cannot_be_read_is_refused(client: TestClient, path: str, body: bytes) -> None:
    answer = client.post(path, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 422), answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"


@pytest.mark.parametrize("path", ["/predict", "/edits"])
def test_a_body_of_ten_megabytes_is_refused(client: TestClient, path: str) -> None:
    assert_problem(client.post(path, content=b"x" * 10 * 2**20), 413, "body_too_large")


@pytest.mark.parametrize("path", ["/predict", "/edits"])
def test_a_body_of_ten_megabytes_in_pieces_is_refused(client: TestClient, path: str) -> None:
    assert_problem(client.post(path, content=(b"x" * 2**20 for _ in range(10))), 413, "body_too_large")


@pytest.mark.parametrize("path", ["/edits/{}", "/edits/{}/patch", "/edits/{}/events"])
@pytest.mark.parametrize("edit_id", ["7", "nonsense", "01A00000-0000-7000-8000-00000000000G", "%00", "..%2f..", "é"])
def test_malformed_ids_are_refused(client: TestClient, path: str, edit_id: str) -> None:
    answer = client.get(path.format(edit_id))
    assert answer.status_code in (404, 422)
    assert answer.headers["Content-Type"] == "application/problem+json"


@pytest.mark.parametrize("number", ["x", "-1", "1.5", "9" * 40])
def test_malformed_revisions_are_refused(client: TestClient, number: str) -> None:
    assert_problem(client.get(f"/revisions/{number}"), 422, "invalid_request")


@pytest.mark.parametrize(
    "method, path",
    [("GET", "/predict"), ("PUT", "/edits"), ("POST", "/model"), ("DELETE", "/revisions/0"), ("PATCH", "/livez")],
)
def test_wrong_methods_are_answered_with_the_right_ones(client: TestClient, method: str, path: str) -> None:
    answer = client.request(method, path)
    assert_problem(answer, 405, "method_not_allowed")
    assert answer.headers["Allow"]


@pytest.mark.parametrize(
    "params",
    [
        {"limit": 0},
        {"limit": "many"},
        {"status": "lively"},
        {"cursor": "nonsense"},
        {"cursor": "\x00"},
        {"q": "\x00"},
    ],
)
def test_a_listing_asked_wrongly_is_refused(client: TestClient, params: dict[str, Any]) -> None:
    assert_problem(client.get("/edits", params=params), 422, "invalid_request")


@pytest.mark.parametrize("value", ["r0", '"0"', '"r"', '"r-1"', '"r' + "9" * 30 + '"'])
def test_an_if_match_that_names_no_revision_is_refused(client: TestClient, value: str) -> None:
    answer = client.post("/edits", json=EDIT, headers={"If-Match": value})
    assert_problem(answer, 400, "malformed_request")
    assert value in answer.json()["detail"]


@pytest.mark.parametrize("key", ["", "k" * 256])
def test_an_idempotency_key_of_no_use_is_refused(client: TestClient, key: str) -> None:
    assert_problem(client.post("/edits", json=EDIT, headers={"Idempotency-Key": key}), 422, "invalid_request")


def test_a_last_event_id_that_is_none_is_refused(caller: Caller) -> None:
    answer = caller.client.get(
        "/edits/01a00000-0000-7000-8000-000000000000/events", headers={"Last-Event-ID": "latest"}
    )
    assert answer.status_code in (400, 404)


def test_a_text_of_words_the_model_has_never_seen_is_answered(caller: Caller) -> None:
    assert caller.predict("🚲 Fahrräder, 自転車 \u202e reversed", sentence(1))


def assert_problem(answer: Any, status: int, code: str) -> None:
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.json()["status"] == status
    assert answer.json()["detail"].endswith((".", "*."))
    assert set(answer.json()) >= {"type", "title", "status", "detail", "code"}
