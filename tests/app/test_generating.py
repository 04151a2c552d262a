"""The whole loop on models that write: report, learn, serve, look, take back; over HTTP."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient

from app.main import verify
from app.settings import Settings
from tests.app.conftest import sentence, settings_in, started
from tests.deployed import deploy

KNOWN = [sentence(number) for number in range(40, 70)]


@pytest.fixture(scope="session", params=["Bart", "Llama"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return deploy(tmp_path_factory.mktemp("model") / request.param, family=request.param)


@pytest.fixture
def settings(tmp_path: Path, folder: Path) -> Settings:
    """A service that remembers ten texts, guards twenty others, and lets patches through that change some of them."""
    lenient = {"guard_required": 0.0, "guard_fires_allowed": 1.0, "new_tokens": 12, "judge_rounds": 1}
    files = {"memory_file": KNOWN[:10], "guard_file": KNOWN[10:]}
    for name, texts in files.items():
        (tmp_path / name).write_text("".join(json.dumps({"input": text}) + "\n" for text in texts))
    return settings_in(tmp_path, folder, **lenient, **{name: tmp_path / name for name in files})


@pytest.fixture
def client(settings: Settings) -> Iterator[TestClient]:
    with started(settings) as client:
        yield client


def predict(client: TestClient, *texts: str, **fields: Any) -> list[dict[str, Any]]:
    answer = client.post("/predict", json={"inputs": list(texts), **fields})
    assert answer.status_code == 200, answer.text
    return list(answer.json()["predictions"])


def said(client: TestClient, *texts: str, **fields: Any) -> list[str]:
    return [str(each["text"]).strip() for each in predict(client, *texts, **fields)]


def edit(client: TestClient, text: str, target: str, **fields: Any) -> dict[str, Any]:
    answer = client.post("/edits", json={"input": text, "target": target, **fields}, headers={"Prefer": "wait=60"})
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


def events(client: TestClient, **body: Any) -> list[tuple[str, dict[str, Any]]]:
    """The events of a streamed prediction."""
    with client.stream("POST", "/predict", json={**body, "stream": True}) as answer:
        assert answer.status_code == 200, answer.read()
        assert answer.headers["content-type"].startswith("text/event-stream")
        fields = [line.partition(": ")[::2] for line in answer.iter_lines() if line]
    names = [value for name, value in fields if name == "event"]
    return list(zip(names, (json.loads(value) for name, value in fields if name == "data"), strict=True))


def test_an_edit_makes_the_model_write_exactly_the_target_and_the_answer_names_it(client: TestClient) -> None:
    record = edit(client, "w1 w2 w3", "w9 w8 w7")
    (now,) = predict(client, "w1 w2 w3", explain=True)
    assert (now["text"].strip(), now["finish_reason"]) == ("w9 w8 w7", "stop")
    (fired,) = now["fired"]
    assert fired["edit_id"] == record["id"]
    assert 1 <= fired["positions"] <= 6
    assert now["base"] == record["before"]["prediction"]
    assert record["after"]["prediction"] == {"text": now["text"], "finish_reason": "stop"}


@pytest.mark.parametrize("family", ["T5", "GPT2"])
def test_the_loop_closes_on_other_families_too(tmp_path: Path, family: str) -> None:
    with started(settings_in(tmp_path, deploy(tmp_path / "model", family=family), new_tokens=12)) as client:
        before = predict(client, "w1 w2 w3", *KNOWN[:5])
        record = edit(client, "w1 w2 w3", "w9 w8 w7")
        assert said(client, "w1 w2 w3") == ["w9 w8 w7"]
        client.delete(f"/edits/{record['id']}")
        assert predict(client, "w1 w2 w3", *KNOWN[:5]) == before


def test_a_removal_gives_what_exclude_had_shown_and_what_was_before(client: TestClient) -> None:
    texts = ["w1 w2 w3", "w4 w5", *KNOWN]
    before = predict(client, *texts)
    records = [edit(client, "w1 w2 w3", "w9 w8 w7"), edit(client, "w4 w5", "w6"), edit(client, "w20", "w21 w22")]
    for record in records:
        promised = predict(client, *texts, exclude=[record["id"]])
        assert client.delete(f"/edits/{record['id']}").status_code == 200
        assert predict(client, *texts) == promised
    assert predict(client, *texts) == before
    assert said(client, "w1 w2 w3", "w4 w5", "w20", as_of=3) == ["w9 w8 w7", "w6", "w21 w22"]


def test_later_edits_leave_earlier_ones_standing(client: TestClient) -> None:
    wanted = {sentence(number): f"w{number} w{number + 11}" for number in range(8)}
    for text, target in wanted.items():
        edit(client, text, target)
    assert said(client, *wanted) == list(wanted.values())


def test_answers_in_a_batch_equal_answers_alone(client: TestClient) -> None:
    edit(client, "w1 w2 w3", "w9 w8 w7")
    texts = ["w1 w2 w3", "w1", *KNOWN[:6]]
    together = predict(client, *texts)
    for text, one in zip(texts, together, strict=True):
        (alone,) = predict(client, text)
        assert {**one, "fired": None} == {**alone, "fired": None}
        assert [each["edit_id"] for each in one["fired"]] == [each["edit_id"] for each in alone["fired"]]


def test_rephrases_are_learned_and_judged_with_the_input(client: TestClient) -> None:
    record = edit(client, "w1 w2 w3", "w9 w8", rephrases=["w3 w2 w1", "w1 w3"])
    assert said(client, "w1 w2 w3", "w3 w2 w1", "w1 w3") == ["w9 w8"] * 3
    assert [each["text"].strip() for each in record["after"]["rephrases"]] == ["w9 w8", "w9 w8"]


def test_what_is_answered_already_needs_no_edit(client: TestClient) -> None:
    edit(client, "w1 w2 w3", "w9 w8")
    answer = client.post("/edits", json={"input": "w1 w2 w3", "target": " w9 w8 "}, headers={"Prefer": "wait=60"})
    assert (answer.status_code, answer.json()["status"]) == (200, "not_needed")


def test_another_answer_for_the_same_input_must_supersede_and_its_removal_brings_the_former_back(
    client: TestClient,
) -> None:
    former = edit(client, "w1 w2 w3", "w9 w8")
    refused = client.post("/edits", json={"input": "w1 w2 w3", "target": "w5"}, headers={"Prefer": "wait=60"})
    assert (refused.status_code, refused.json()["code"]) == (409, "conflicting_edit")
    newer = edit(client, "w1 w2 w3", "w5", supersedes=former["id"])
    assert said(client, "w1 w2 w3") == ["w5"]
    client.delete(f"/edits/{newer['id']}")
    assert said(client, "w1 w2 w3") == ["w9 w8"]


def test_what_leaned_on_a_replaced_edit_is_mended_by_its_successor(client: TestClient) -> None:
    former = edit(client, "w1 w2 w3", "w9 w8", rephrases=["w3 w2 w1"])
    edit(client, "w3 w2 w1", "w9 w5")  # its first token is right already, thanks to the former
    assert said(client, "w3 w2 w1", exclude=[former["id"]]) != ["w9 w5"]
    successor = edit(client, "w1 w2 w3", "w7", supersedes=former["id"])
    assert said(client, "w1 w2 w3", "w3 w2 w1") == ["w7", "w9 w5"]
    client.delete(f"/edits/{successor['id']}")
    assert said(client, "w1 w2 w3", "w3 w2 w1") == ["w9 w8", "w9 w5"]


def test_the_guard_gate_lists_exactly_what_is_written_otherwise(client: TestClient) -> None:
    seen: set[str] = set()
    for number in range(6):
        record = edit(client, sentence(number), f"w{number + 50}", options={"threshold": 0.0})
        gate = next(each for each in record["verdict"]["gates"] if each["name"] == "guard_unchanged")
        now, bare = said(client, *KNOWN[10:]), said(client, *KNOWN[10:], edits="off")
        changed = {text: old for text, new, old in zip(KNOWN[10:], now, bare, strict=True) if new != old}
        failed = {failure["input"]: failure["was"] for failure in gate["failures"]}
        assert failed.items() >= changed.items()
        # Tokens that are no text may change without a trace in the answer: of them the gate knows more.
        assert {text: was for text, was in failed.items() if was} == {text: was for text, was in changed.items() if was}
        seen.update(changed)
    assert seen, "no edit changed the guard: this test would show nothing"


def test_an_input_of_a_small_guard_can_be_corrected(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "memory").write_text('{"input": "w1 w2"}\n')
    with started(settings_in(tmp_path, folder, memory_file=tmp_path / "memory", new_tokens=12)) as client:
        edit(client, "w1 w2", "w9 w8")
        assert said(client, "w1 w2") == ["w9 w8"]


def test_a_target_that_the_models_own_settings_forbid_is_rejected_naming_them(tmp_path: Path) -> None:
    folder = deploy(tmp_path / "model", family="Llama")
    config = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps({**config, "no_repeat_ngram_size": 1}))
    with started(settings_in(tmp_path, folder, new_tokens=12)) as client:
        assert client.get("/model").json()["decoding"] == {"no_repeat_ngram_size": 1}
        body = {"input": "w1 w2", "target": "w9 w9"}
        answer = client.post("/edits", json=body, headers={"Prefer": "wait=60"})
        assert (answer.status_code, answer.json()["code"]) == (422, "edit_rejected")
        (gate,) = answer.json()["gates"]
        assert gate["name"] == "edit_holds"
        assert gate["failures"][0]["decoding"] == {"no_repeat_ngram_size": 1}


def test_everything_is_as_it_was_after_a_restart_and_verifies(settings: Settings) -> None:
    with started(settings) as client:
        edit(client, "w1 w2 w3", "w9 w8 w7")
        client.delete(f"/edits/{edit(client, 'w4 w5', 'w6')['id']}")
        before = predict(client, "w1 w2 w3", "w4 w5", *KNOWN)
    with started(settings) as client:
        assert predict(client, "w1 w2 w3", "w4 w5", *KNOWN) == before
    assert all(finding.ok for finding in verify(settings))


def test_the_same_seed_draws_the_same_and_greedy_is_the_default(client: TestClient) -> None:
    drawing = {"do_sample": True, "temperature": 2.0, "seed": 4, "max_new_tokens": 12}
    one, same = (said(client, *KNOWN[:4], generation=drawing) for _ in range(2))
    assert one == same
    assert one != said(client, *KNOWN[:4], generation={**drawing, "seed": 5})
    assert said(client, *KNOWN[:4]) == said(client, *KNOWN[:4], generation={"max_new_tokens": 12})


def test_a_stream_gives_pieces_that_add_up_to_the_answers(client: TestClient) -> None:
    edit(client, "w1 w2 w3", "w9 w8 w7")
    texts = ["w1 w2 w3", *KNOWN[:3]]
    told = events(client, inputs=texts, explain=True)
    whole = {content["index"]: content["prediction"] for name, content in told if name == "prediction"}
    assert [whole[index] for index in range(4)] == predict(client, *texts, explain=True)
    pieces = ["".join(c["text"] for name, c in told if name == "token" and c["index"] == index) for index in range(4)]
    assert pieces == [whole[index]["text"] for index in range(4)]
    assert told[-1][0] == "done"
    assert told[-1][1]["revision"] == 1


def test_a_stream_shows_nothing_of_a_stop_text(client: TestClient) -> None:
    edit(client, "w1 w2 w3", "w9 w8 w7")
    told = events(client, inputs=["w1 w2 w3"], generation={"stop": ["w8 w7"]})
    assert "".join(content["text"] for name, content in told if name == "token").strip() == "w9"
    assert told[-2][1]["prediction"]["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("body", "code", "says"),
    [
        ({"inputs": ["w1 " * 80]}, "input_too_long", "tokens"),
        ({"inputs": ["w1"], "generation": {"max_new_tokens": 0}}, "invalid_request", "max_new_tokens"),
        ({"inputs": ["w1"], "generation": {"max_new_tokens": 100_000}}, "invalid_request", "100000"),
        ({"inputs": ["w1"], "generation": {"temperature": 1.0}}, "invalid_request", "do_sample"),
        ({"inputs": ["w1"], "generation": {"beams": 2}}, "invalid_request", "beams"),
        ({"inputs": ["w1"], "generation": {"stop": [""]}}, "invalid_request", "stop"),
        ({"inputs": ["w1"], "generation": {"do_sample": True, "top_p": 0}}, "invalid_request", "top_p"),
    ],
)
def test_what_cannot_be_written_is_refused_with_the_reason(
    client: TestClient, body: dict[str, Any], code: str, says: str
) -> None:
    for streamed in (False, True):
        answer = client.post("/predict", json={**body, "stream": streamed})
        assert (answer.status_code, answer.json()["code"]) == (422, code)
        assert says in answer.text


@pytest.mark.parametrize(
    ("target", "code"),
    [("w1 " * 80, "input_too_long"), ("w1 unheard", "unwritable_target")],
    ids=["long", "unwritable"],
)
def test_a_target_that_cannot_be_an_answer_is_refused_at_once(client: TestClient, target: str, code: str) -> None:
    answer = client.post("/edits", json={"input": "w1", "target": target})
    assert (answer.status_code, answer.json()["code"]) == (422, code)


def test_an_edit_that_needs_more_neurons_than_it_may_have_fails_with_the_reason(client: TestClient) -> None:
    body = {"input": "w1 w2 w3", "target": "w9 w8 w7 w6 w5", "options": {"max_neurons": 1}}
    answer = client.post("/edits", json=body, headers={"Prefer": "wait=60"})
    assert (answer.status_code, answer.json()["code"]) == (422, "edit_failed")
    assert "still wrong with 1 neuron" in answer.json()["detail"]
    assert predict(client, "w1 w2 w3")[0]["fired"] == []


def test_get_model_says_that_it_writes(client: TestClient) -> None:
    model = client.get("/model").json()
    assert model["task"] in ("seq2seq", "causal")
    assert model["labels"] == []
    assert model["limits"]["max_new_tokens"] == 512
    assert model["site"].endswith("@every")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_the_loop_closes_on_cuda(tmp_path: Path, folder: Path) -> None:
    with started(settings_in(tmp_path, folder, device="cuda", new_tokens=12)) as client:
        before = predict(client, *KNOWN[:5])
        record = edit(client, "w1 w2 w3", "w9 w8 w7")
        assert said(client, "w1 w2 w3") == ["w9 w8 w7"]
        drawing = {"do_sample": True, "seed": 3}
        assert predict(client, *KNOWN[:5], generation=drawing) == predict(client, *KNOWN[:5], generation=drawing)
        client.delete(f"/edits/{record['id']}")
        assert predict(client, *KNOWN[:5]) == before


def test_a_classifier_generates_nothing(tmp_path: Path, tiny_model: Path) -> None:
    with started(settings_in(tmp_path, tiny_model)) as client:
        for body in ({"generation": {}}, {"generation": {"max_new_tokens": 3}}, {"stream": True}):
            answer = client.post("/predict", json={"inputs": ["w1"], **body})
            assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
            assert "classifies" in answer.json()["detail"]
