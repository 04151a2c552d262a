"""What a caller of /predict can rely on."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.app.conftest import Caller, sentence


def test_every_answer_names_its_revision_and_its_model(caller: Caller) -> None:
    caller.edit(sentence(1))
    answer = caller.client.post("/predict", json={"inputs": [sentence(2)]})
    assert answer.json()["revision"] == 1
    assert answer.headers["X-Model-Revision"] == "1"
    assert answer.json()["model"] == caller.client.get("/model").json()["fingerprint"]
    assert answer.headers["X-Request-ID"]


def test_scores_are_of_every_label_and_sum_to_one(caller: Caller) -> None:
    (prediction,) = caller.predict(sentence(1))
    assert set(prediction["scores"]) == {"red", "green", "blue", "yellow"}
    assert sum(prediction["scores"].values()) == pytest.approx(1, abs=1e-6)
    assert prediction["scores"][prediction["label"]] == prediction["score"] == max(prediction["scores"].values())


def test_every_former_revision_can_be_asked(caller: Caller) -> None:
    seen = [caller.predict(*map(sentence, range(6)))]
    for number in (1, 2, 3):
        caller.edit(sentence(number))
        seen.append(caller.predict(*map(sentence, range(6))))
    for revision, answers in enumerate(seen):
        assert caller.predict(*map(sentence, range(6)), as_of=revision) == answers


def test_explain_shows_what_the_unedited_model_says(caller: Caller) -> None:
    (bare,) = caller.predict(sentence(1))
    edit = caller.edit(sentence(1))
    (prediction,) = caller.predict(sentence(1), explain=True)
    assert prediction["label"] == edit["target"]
    assert prediction["base"] == {name: bare[name] for name in ("label", "score", "scores")}


def test_an_answer_that_no_edit_took_part_in_is_that_of_the_unedited_model(caller: Caller) -> None:
    caller.edit(sentence(1))
    (prediction,) = caller.predict(sentence(8))
    assert prediction["fired"] == []
    assert caller.predict(sentence(8), edits="off") == [prediction]


def test_answers_in_a_batch_agree_with_answers_alone(caller: Caller) -> None:
    for number in (1, 2, 3):
        caller.edit(sentence(number))
    texts = [sentence(number) for number in range(40)]
    for text, together in zip(texts, caller.predict(*texts), strict=True):
        (alone,) = caller.predict(text)
        assert together["label"] == alone["label"]
        assert together["score"] == pytest.approx(alone["score"], abs=1e-5)
        assert [fired["edit_id"] for fired in together["fired"]] == [fired["edit_id"] for fired in alone["fired"]]


def test_requests_under_different_revisions_can_be_answered_at_once(caller: Caller) -> None:
    seen = [caller.label(sentence(1))]
    for _ in range(2):
        edit = caller.edit(sentence(len(seen)))
        seen.append(edit["target"])
    expected = {revision: caller.label(sentence(1), as_of=revision) for revision in (0, 1, 2)}
    with ThreadPoolExecutor(12) as pool:
        asked = [revision for _ in range(20) for revision in (0, 1, 2)]
        answers = list(pool.map(lambda revision: caller.label(sentence(1), as_of=revision), asked))
    assert answers == [expected[revision] for revision in asked]


def test_a_process_that_is_behind_says_so(caller: Caller) -> None:
    answer = caller.client.post("/predict", json={"inputs": ["w1"], "min_revision": 3})
    assert (answer.status_code, answer.json()["code"]) == (409, "not_caught_up")
    assert answer.headers["Retry-After"] == "1"


def test_own_writes_can_be_read(caller: Caller) -> None:
    edit = caller.edit(sentence(1))
    assert caller.label(sentence(1), min_revision=edit["revision"]) == edit["target"]


def test_a_revision_that_is_not_there_yet_cannot_be_asked(caller: Caller) -> None:
    answer = caller.client.post("/predict", json={"inputs": ["w1"], "as_of": 9})
    assert (answer.status_code, answer.json()["code"]) == (422, "unknown_revision")
    assert answer.json()["detail"] == "There is no revision 9; the newest is 0."


def test_excluding_an_edit_that_was_never_live_is_refused(caller: Caller) -> None:
    body = {"inputs": ["w1"], "exclude": ["01a00000-0000-7000-8000-000000000000"]}
    answer = caller.client.post("/predict", json=body)
    assert (answer.status_code, answer.json()["code"]) == (422, "unknown_edit")


def test_generation_options_are_refused_for_a_classifier(caller: Caller) -> None:
    answer = caller.client.post("/predict", json={"inputs": ["w1"], "generation": {"max_new_tokens": 3}})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")


def test_predictions_change_no_state(caller: Caller) -> None:
    caller.edit(sentence(1))
    before = [caller.predict(sentence(number)) for number in range(10)]
    for number in range(30):
        caller.predict(sentence(number), explain=True)
    assert [caller.predict(sentence(number)) for number in range(10)] == before


def test_the_model_names_its_editors_with_their_options(caller: Caller) -> None:
    model = caller.client.get("/model").json()
    assert [(each["name"], each["default"]) for each in model["editors"]] == [
        ("transformer-patcher", True),
        ("grace", False),
        ("ft", False),
        ("ft-kl", False),
    ]
    options = ("max_neurons", "key_token", "learning_rate", "divergence_weight")
    for editor, option in zip(model["editors"], options, strict=True):
        assert editor["options"]["additionalProperties"] is False
        assert option in editor["options"]["properties"]
    assert model["labels"] == ["red", "green", "blue", "yellow"]
    assert model["limits"]["max_inputs"] == 256


def test_metrics_are_in_the_format_of_prometheus(caller: Caller) -> None:
    caller.edit(sentence(1))
    text = caller.client.get("/metrics").text
    assert "errata_revision 1.0" in text
    assert "errata_edits_live 1.0" in text
    assert 'errata_edits_total{status="live"} 1.0' in text
    assert "errata_predict_seconds_bucket" in text


def test_a_restored_revision_answers_as_the_one_it_restores(caller: Caller) -> None:
    edits = [caller.edit(sentence(number)) for number in (1, 2)]
    held = caller.predict(*map(sentence, range(6)))
    caller.edit(sentence(3))
    caller.client.delete(f"/edits/{edits[0]['id']}")
    answer = caller.client.post("/revisions/2/restore")
    assert (answer.status_code, answer.json()["number"], answer.json()["cause"]) == (201, 5, "restore")
    assert caller.predict(*map(sentence, range(6))) == held
    assert caller.client.get("/revisions/5").json()["live"] == [edit["id"] for edit in edits]
    diff = caller.client.get("/revisions/4/diff/5").json()
    assert diff["added"] == [edits[0]["id"]]
    assert len(diff["removed"]) == 1


def test_clients_that_vanish_do_not_disturb_the_others(caller: Caller) -> None:
    async def vanish() -> None:
        transport = httpx.ASGITransport(caller.client.app)  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="http://errata") as client:
            asking = asyncio.create_task(client.post("/predict", json={"inputs": [sentence(1)] * 64}))
            await asyncio.sleep(0)
            asking.cancel()

    portal = caller.client.portal
    assert portal is not None
    portal.call(vanish)
    assert caller.predict(sentence(1))


def test_predictions_do_not_wait_for_threads_that_wait_for_the_database(caller: Caller) -> None:
    released = threading.Event()

    async def occupy_every_thread() -> None:
        for _ in range(100):
            asyncio.get_running_loop().run_in_executor(None, released.wait)

    portal = caller.client.portal
    assert portal is not None
    portal.call(occupy_every_thread)
    try:
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(caller.predict, sentence(1)).result(timeout=20)
    finally:
        released.set()


BODIES = (
    b'{"inputs": ["w1 w2", "w3"], "explain": true}',
    b'{"inputs": ["w1"], "inputs": ["w2"]}',
    b'\xef\xbb\xbf{"inputs": ["w1"]}',
    '{"inputs": ["w1"]}'.encode("utf-16"),
    b'{"inputs": ["w1"], "as_of": 1}',
    b'{"inputs": ["w1"], "colour": 1}',
    b'{"inputs": ["\\ud800"]}',
    b'{"inputs": ["w1"], "as_of": NaN}',
    b'{"inputs": ["w1"], "generation": {}}',
    b'["w1"]',
    b"{",
    b"",
)


def test_what_is_asked_rightly_is_answered_as_fastapi_would_and_what_is_not_as_well(caller: Caller) -> None:
    def answer(body: bytes, content_type: str) -> tuple[int, str, set[str], bytes]:
        answer = caller.client.post("/predict", content=body, headers={"Content-Type": content_type})
        return answer.status_code, answer.headers["Content-Type"], set(answer.headers), answer.content

    for body in BODIES:
        assert answer(body, "application/json") == answer(body, "application/json; charset=utf-8"), body


def test_a_prediction_that_is_not_sent_as_json_is_refused(caller: Caller) -> None:
    for headers in [
        {"Content-Type": "text/plain"},
        {},
        [("Content-Type", "text/plain"), ("Content-Type", "application/json")],
    ]:
        assert caller.client.post("/predict", content=b'{"inputs": ["w1"]}', headers=headers).status_code == 422
