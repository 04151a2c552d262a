"""What a caller of /guard can rely on."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

from app.engine import Engine
from app.main import verify
from app.settings import Settings
from tests.app.conftest import Caller, sentence, settings_in, started
from tests.deployed import deploy

WAIT = {"Prefer": "wait=60"}
REMEMBERED = [sentence(number) for number in range(60, 66)]
OF_THE_FILE = [sentence(number) for number in range(70, 73)]


def jsonl(*lines: dict[str, Any]) -> bytes:
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def inputs(*texts: str) -> bytes:
    return jsonl(*({"input": text} for text in texts))


@pytest.fixture
def settings(tmp_path: Path, tiny_model: Path) -> Settings:
    """A service with a guard of three inputs from a file, that lets through what changes them."""
    for name, texts in (("memory", REMEMBERED), ("guard", OF_THE_FILE)):
        (tmp_path / name).write_bytes(inputs(*texts))
    files = {"memory_file": tmp_path / "memory", "guard_file": tmp_path / "guard"}
    lenient = {"guard_required": 0.0, "guard_fires_allowed": 1.0, "judge_rounds": 1, "memory_from_traffic": False}
    return settings_in(tmp_path, tiny_model, **files, **lenient)


def put(client: TestClient, content: bytes, **headers: str) -> dict[str, Any]:
    answer = client.put("/guard", content=content, headers={**WAIT, **headers})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def guard_of(client: TestClient) -> dict[str, Any]:
    answer = client.get("/guard")
    assert answer.status_code == 200, answer.text
    assert "X-Model-Revision" in answer.headers
    return dict(answer.json())


def report(client: TestClient, text: str, target: str, **fields: Any) -> httpx.Response:
    return client.post("/edits", json={"input": text, "target": target, **fields}, headers=WAIT)


def test_what_is_put_is_shown_goes_before_the_file_and_gives_way_to_it_when_withdrawn(client: TestClient) -> None:
    of_the_file = guard_of(client)
    assert (of_the_file["source"], of_the_file["number"], of_the_file["inputs"]) == ("guard file", 0, 3)
    assert client.get("/guard/inputs").content == b""
    right = Caller(client).label(sentence(10))
    content = jsonl(
        {"input": sentence(10), "target": right},
        {"input": sentence(11), "target": Caller(client).mistaken(sentence(11))},
        {"input": sentence(12)},
    )
    shown = put(client, content)
    assert shown == guard_of(client)
    assert shown["sha256"] == hashlib.sha256(content).hexdigest()
    assert {name: shown[name] for name in ("source", "number", "in_use", "ready", "actor")} == {
        "source": "put",
        "number": 1,
        "in_use": 1,
        "ready": True,
        "actor": "local",
    }
    assert (shown["inputs"], shown["right"], shown["wrong"], shown["left_out"]) == (3, 2, 1, 0)
    assert client.get("/guard/inputs").content == content
    answer = client.delete("/guard")
    assert answer.status_code == 200
    assert {**answer.json(), "in_use": 0} == {**of_the_file, "in_use": 0}
    assert client.get("/guard/inputs").content == b""


def test_the_next_edit_is_measured_on_what_was_put(client: TestClient) -> None:
    assert Caller(client).edit(sentence(1))["verdict"]["guard"]["number"] == 0
    put(client, inputs(sentence(10)))
    first = Caller(client).edit(sentence(2))["verdict"]["guard"]
    assert (first["number"], first["inputs"]) == (1, 1)
    put(client, inputs(sentence(10), sentence(11)))
    second = Caller(client).edit(sentence(3))["verdict"]["guard"]
    assert (second["number"], second["inputs"]) == (2, 2)
    client.delete("/guard")
    last = Caller(client).edit(sentence(4))["verdict"]["guard"]
    assert last["inputs"] == len(OF_THE_FILE)


def test_an_edit_waits_for_a_guard_that_nobody_waited_for(client: TestClient) -> None:
    answer = client.put("/guard", content=inputs(*map(sentence, range(10, 60))))
    assert answer.status_code == 200
    guard = Caller(client).edit(sentence(1))["verdict"]["guard"]
    assert (guard["number"], guard["inputs"]) == (1, 50)


def test_an_edit_that_breaks_what_was_put_is_rejected_and_lists_it(client: TestClient) -> None:
    """Words that the tokenizer does not know are all the same to the model."""
    target = Caller(client).mistaken("w1 w2 unseen")
    was = Caller(client).label("w1 w2 unheard")
    put(client, inputs("w1 w2 unheard", sentence(10)))
    strict = {"guard_unchanged": 1.0}
    answer = report(client, "w1 w2 unseen", target, required=strict)
    assert (answer.status_code, answer.json()["code"]) == (422, "edit_rejected")
    (gate,) = answer.json()["gates"]
    assert (gate["name"], gate["measured"]) == ("guard_unchanged", 0.5)
    (failure,) = gate["failures"]
    assert (failure["input"], failure["was"], failure["now"]) == ("w1 w2 unheard", was, target)
    client.delete("/guard")
    assert report(client, "w1 w2 unseen", target, required=strict).status_code == 201


def test_a_removal_is_measured_on_what_was_put_too(client: TestClient) -> None:
    edit = Caller(client).edit(sentence(1))
    put(client, inputs(sentence(10), sentence(11)))
    guard = client.delete(f"/edits/{edit['id']}").json()["verdict"]["guard"]
    assert (guard["number"], guard["right"]) == (1, 2)


def test_what_was_put_outlives_a_restart_and_so_does_its_withdrawal(settings: Settings) -> None:
    with started(settings) as client:
        shown = put(client, inputs(sentence(10), sentence(11)))
    with started(settings) as client:
        wait_until(lambda: guard_of(client)["ready"])
        assert guard_of(client) == shown
        assert Caller(client).edit(sentence(1))["verdict"]["guard"]["number"] == 1
        client.delete("/guard")
    with started(settings) as client:
        assert guard_of(client)["source"] == "guard file"
        assert Caller(client).edit(sentence(2))["verdict"]["guard"]["inputs"] == len(OF_THE_FILE)
    assert all(finding.ok for finding in verify(settings))


def test_the_same_guard_put_twice_is_one(client: TestClient) -> None:
    first, second = (put(client, inputs(sentence(10))) for _ in range(2))
    assert first == second
    assert put(client, inputs(sentence(11)))["number"] == 2
    assert put(client, inputs(sentence(10)))["number"] == 3


@pytest.mark.parametrize("nothing", [b"", b"\n \n"])
def test_a_guard_of_nothing_is_refused_since_it_would_guard_nothing(client: TestClient, nothing: bytes) -> None:
    answer = client.put("/guard", content=nothing, headers=WAIT)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    assert "DELETE /guard" in answer.json()["detail"]
    assert (guard_of(client)["source"], guard_of(client)["inputs"]) == ("guard file", len(OF_THE_FILE))


def test_a_byte_order_mark_is_no_part_of_the_first_line(client: TestClient) -> None:
    assert put(client, b"\xef\xbb\xbf" + inputs(sentence(4)))["inputs"] == 1


def test_an_input_longer_than_texts_may_be_is_refused(client: TestClient, settings: Settings) -> None:
    long = "w " * settings.max_input_characters
    answer = client.put("/guard", content=inputs(sentence(4), long), headers=WAIT)
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith("line 2: the input has ")


GOOD = inputs(sentence(10))


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (b"{\n", "line 3"),
        (b"[]\n", "line 3"),
        (b'{"input": "w1", "colour": "red"}\n', "colour"),
        (b'{"target": "red"}\n', "input"),
        (b'{"input": ""}\n', "input"),
        (b'{"input": " \\t "}\n', "input"),
        (b'{"input": "a\\u0000b"}\n', "input"),
        (b'{"input": 7}\n', "input"),
        (b'{"input": "w1", "target": "mauve"}\n', "mauve"),
        (b'{"input": "w1", "target": ""}\n', "label"),
        (inputs("w1 " * 80), "tokens"),
        (b'{"input": "\xff\xfe"}\n', "line 3"),
        (b'{"input": "\\ud800"}\n', "line 3"),
    ],
    ids=[
        "cut",
        "no object",
        "unknown field",
        "no input",
        "empty input",
        "blank input",
        "NUL",
        "number",
        "unknown label",
        "empty target",
        "too long",
        "not UTF-8",
        "surrogate",
    ],
)
def test_one_bad_line_is_named_and_nothing_is_kept(shared: TestClient, bad: bytes, says: str) -> None:
    before = guard_of(shared)
    answer = shared.put("/guard", content=GOOD + b"\n" + bad + GOOD)
    assert answer.status_code == 422, answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert "line 3" in answer.json()["detail"]
    assert says in answer.json()["detail"]
    assert guard_of(shared) == before


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[TestClient]:
    """One service for every guard that it must refuse."""
    with started(settings_in(tmp_path_factory.mktemp("service"), tiny_model, max_guard_rows=20)) as client:
        yield client


def test_more_inputs_than_are_taken_are_refused(shared: TestClient) -> None:
    before = guard_of(shared)
    answer = shared.put("/guard", content=inputs(*(f"w{number}" for number in range(21))))
    assert answer.status_code == 422
    assert "21" in answer.json()["detail"]
    assert "20" in answer.json()["detail"]
    assert guard_of(shared) == before


def test_a_guard_may_be_as_long_as_an_import_and_no_longer(tmp_path: Path, tiny_model: Path) -> None:
    with started(settings_in(tmp_path, tiny_model, max_body_bytes=1024, max_import_bytes=4096)) as client:
        assert client.put("/guard", content=inputs("w1") * 150).status_code == 200
        refused = client.put("/guard", content=inputs("w1") * 400)
        assert (refused.status_code, guard_of(client)["inputs"]) == (413, 150)


def test_two_services_on_one_database_measure_on_the_same_guard(settings: Settings, tmp_path: Path) -> None:
    with ExitStack() as services:
        one = services.enter_context(started(settings))
        other = services.enter_context(started(settings.model_copy(update={"cache_dir": tmp_path / "other"})))
        put(one, inputs(sentence(10), sentence(11)))
        wait_until(lambda: guard_of(other)["ready"] and guard_of(other)["in_use"] == 1)
        assert guard_of(other) == guard_of(one)
        assert Caller(other).edit(sentence(1))["verdict"]["guard"]["number"] == 1
        other.delete("/guard")
        wait_until(lambda: guard_of(one)["source"] == "guard file" and guard_of(one)["ready"])


def test_what_the_model_computed_for_a_guard_is_kept_on_disk(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[int] = []
    read = Engine.read

    async def counted(engine: Engine, encodings: Sequence[Any], *args: Any, **options: Any) -> Any:
        runs.append(len(encodings))
        return await read(engine, encodings, *args, **options)

    monkeypatch.setattr(Engine, "read", counted)
    kept = settings.cache_dir / "activations"
    with started(settings) as client:
        assert sorted(runs) == [len(OF_THE_FILE), len(REMEMBERED)]
        first = put(client, inputs(sentence(10), sentence(11)))
        assert runs[2:] == [2]
        files = sorted(kept.iterdir())
        client.delete("/guard")
        assert {**put(client, inputs(sentence(10), sentence(11))), "at": None, "number": 1, "in_use": 1} == {
            **first,
            "at": None,
        }
        assert runs[3:] == []
    with started(settings) as client:
        wait_until(lambda: guard_of(client)["ready"])
        assert runs[3:] == []
        assert sorted(kept.iterdir()) == files
        put(client, inputs(sentence(11), sentence(12)))
        assert runs[3:] == [2]


def test_a_writing_model_is_guarded_by_what_it_writes(tmp_path: Path) -> None:
    folder = deploy(tmp_path / "model", family="Llama")
    strict = {"guard_required": 1.0, "guard_fires_allowed": 1.0, "judge_rounds": 1, "new_tokens": 6}
    with started(settings_in(tmp_path, folder, **strict)) as client:
        refused = client.put("/guard", content=jsonl({"input": "w1", "target": "unwritable"}))
        assert (refused.status_code, guard_of(client)["source"]) == (422, "none")
        assert "line 1" in refused.json()["detail"]
        shown = put(client, jsonl({"input": "w1 w2 unheard"}, {"input": "w4 w5", "target": "w1 w2"}))
        assert (shown["right"], shown["wrong"]) == (1, 1)
        (gate,) = report(client, "w1 w2 unseen", "w9 w8").json()["gates"]
        assert (gate["name"], gate["failures"][0]["input"]) == ("guard_unchanged", "w1 w2 unheard")


def wait_until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.05)


def test_a_guard_that_live_edits_change_already_lets_edits_pass_that_leave_it_as_it_is(settings: Settings) -> None:
    strict = settings.model_copy(update={"guard_required": 0.9, "guard_fires_allowed": 0.6})
    with started(strict) as client:
        caller = Caller(client)
        caller.edit("w1 w2 unseen")
        put(client, inputs("w1 w2 unheard", "w5 w6 w7"))  # the tokenizer reads both unknown words alike
        unrelated = report(client, "w80 w81 w82", caller.mistaken("w80 w81 w82"), editor="grace")
        assert unrelated.status_code == 201
        (gate,) = [each for each in unrelated.json()["verdict"]["gates"] if each["name"] == "guard_unchanged"]
        assert (gate["measured"], gate["required"], gate["passed"]) == (0.5, 0.5, True)
        assert [failure["input"] for failure in gate["failures"]] == ["w1 w2 unheard"]


def test_a_guard_whose_sender_breaks_off_is_not_taken_for_a_shorter_one(settings: Settings) -> None:
    async def broken_off(receive_count: list[int]) -> dict[str, Any]:
        receive_count.append(1)
        if len(receive_count) == 1:
            return {"type": "http.request", "body": inputs(sentence(4)), "more_body": True}
        return {"type": "http.disconnect"}

    with started(settings) as client:
        before, counted, sent = guard_of(client), list[int](), list[Any]()
        scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "PUT", "path": "/guard"}
        headers = [(b"content-length", b"5000"), (b"content-type", b"application/jsonl")]
        whole = scope | {"raw_path": b"/guard", "query_string": b"", "headers": headers, "server": ("t", 80)}

        async def send(message: Any) -> None:
            sent.append(message)

        assert client.portal is not None
        client.portal.call(client.app, whole, lambda: broken_off(counted), send)
        assert (len(counted), sent) == (2, [])
        assert guard_of(client) == before


def test_predictions_and_a_stop_do_not_wait_for_a_guard_that_is_read(settings: Settings) -> None:
    """Nor does the withdrawal of such a guard, nor another guard that takes its place."""
    many = inputs(*(f"{sentence(number)} w{number % 97}" for number in range(3_000)))
    with started(settings) as client:
        assert client.put("/guard", content=many).json()["ready"] is False
        seconds = []
        for number in range(5):
            began = time.monotonic()
            Caller(client).label(sentence(number))
            seconds.append(time.monotonic() - began)
        assert not guard_of(client)["ready"], "the guard was read at once: this test would show nothing"
        assert max(seconds) < 2
        began = time.monotonic()
        assert client.delete("/guard").json()["ready"] is True
        assert put(client, inputs(sentence(4)))["ready"] is True
        assert time.monotonic() - began < 5
        assert client.put("/guard", content=many).json()["ready"] is False
        client.post("/edits", json={"input": sentence(1), "target": Caller(client).mistaken(sentence(1))})
        began = time.monotonic()
    assert time.monotonic() - began < 5, "the service did not stop while a guard was read and an edit waited for it"
