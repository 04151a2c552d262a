"""The whole loop with entries of a codebook, alone and beside neurons: report, learn, serve, take back; over HTTP."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient
from safetensors.torch import load, save
from torch import Tensor

from app.engine.patched import Patched
from app.judge import Judge
from app.main import verify
from app.model import Ask, Decoding, Output
from app.settings import Settings
from tests.app.conftest import Caller, sentence, settings_in, started
from tests.app.running import run
from tests.deployed import deploy

FAMILIES = ("Bert", "Starcoder2", "Bart", "Llama")
KNOWN = [sentence(number) for number in range(40, 60)]
TEXTS = ["w1 w2 w3", "w4 w5", "w20 w21 w22 w23", "w30"]
PROBES = [*TEXTS, *KNOWN[:6]]
EDITORS = ("grace", "transformer-patcher", "grace", "transformer-patcher")


class Reporter(Caller):
    """Says what it wants to be answered, whatever the model answers with."""

    def __init__(self, client: TestClient) -> None:
        super().__init__(client)
        self.labels = client.get("/model").json()["labels"]

    def said(self, *texts: str, **options: Any) -> list[str]:
        return [str(each.get("label", each.get("text"))).strip() for each in self.predict(*texts, **options)]

    def mistaken(self, text: str) -> str:
        """A wrong answer to a text: what it should have said."""
        (now,) = self.said(text)
        number = PROBES.index(text) if text in PROBES else 0
        return next(each for each in (self.labels or [f"w{number + 60}", "w70"]) if each != now)

    def grace(self, text: str, target: str | None = None, **fields: Any) -> dict[str, Any]:
        return self.edit(text, target, editor="grace", **fields)

    def bits(self, **options: Any) -> list[dict[str, Any]]:
        """What is answered to the probes, with every score."""
        return self.predict(*PROBES, **options)


@pytest.fixture(scope="session", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return deploy(tmp_path_factory.mktemp("model") / request.param, family=request.param)


@pytest.fixture
def settings(tmp_path: Path, folder: Path) -> Settings:
    """A service that remembers twenty texts."""
    return remembering(tmp_path, folder)


@pytest.fixture
def bert(tmp_path: Path, tiny_model: Path) -> Settings:
    return remembering(tmp_path, tiny_model)


def remembering(folder: Path, model: Path, **changes: Any) -> Settings:
    (folder / "memory").write_text("".join(json.dumps({"input": text}) + "\n" for text in KNOWN))
    lenient = {
        "rephrases_required": 0.0,
        "guard_required": 0.5,
        "guard_fires_allowed": 1.0,
        "new_tokens": 8,
        "memory_from_traffic": False,
    }
    return settings_in(folder, model, **{**lenient, "memory_file": folder / "memory", **changes})


@pytest.fixture
def caller(settings: Settings) -> Iterator[Reporter]:
    with started(settings) as client:
        yield Reporter(client)


def parts(client: TestClient) -> Any:
    """The joined parts of the service."""
    return client.app.state.service.parts  # type: ignore[attr-defined]


def as_formerly(settings: Settings) -> None:
    """Make the rows that are stored such as the format before keys had them."""
    with sqlite3.connect(settings.database_url.removeprefix("sqlite:///")) as database:
        for edit_id, data in database.execute("SELECT edit_id, bytes FROM activations").fetchall():
            tensors = {name: tensor for name, tensor in load(data).items() if not name.startswith("keys ")}
            former = save(tensors, metadata={"errata": json.dumps({"format": "errata-rows/2"})})
            database.execute("UPDATE activations SET bytes = ? WHERE edit_id = ?", (former, edit_id))


def fired(answer: dict[str, Any]) -> list[str]:
    return [each["edit_id"] for each in answer["fired"]]


def test_an_entry_makes_the_model_answer_as_wanted_and_the_answer_names_it(caller: Reporter) -> None:
    edit = caller.grace(TEXTS[0])
    answer, *others = caller.predict(TEXTS[0], *KNOWN, explain=True)
    assert (caller.said(TEXTS[0]), fired(answer)) == ([edit["target"]], [edit["id"]])
    assert edit["editor"] == "grace"
    assert 0 < answer["fired"][0]["strength"] <= 1
    bare = caller.predict(*KNOWN, edits="off")
    assert [{**each, "base": None} for each in others] == [{**each, "base": None} for each in bare]


def test_a_removal_gives_the_former_bits_and_a_return_the_later_ones(caller: Reporter) -> None:
    before = caller.bits()
    edit = caller.grace(TEXTS[0])
    with_it = caller.bits()
    assert caller.bits(exclude=[edit["id"]]) == caller.bits(edits="off") == before
    assert caller.client.delete(f"/edits/{edit['id']}").status_code == 200
    assert caller.bits() == before
    assert caller.bits(as_of=1) == with_it
    assert caller.client.post(f"/edits/{edit['id']}/reapply").status_code == 200
    assert caller.bits() == with_it
    assert caller.bits(as_of=2) == before


def test_entries_and_neurons_live_side_by_side_and_leave_in_any_order(caller: Reporter) -> None:
    answers = {(): caller.bits()}
    edits = [
        caller.edit(text, editor=editor, rephrases=[f"{text} w9"]) for text, editor in zip(TEXTS, EDITORS, strict=True)
    ]
    assert caller.said(*TEXTS) == [edit["target"] for edit in edits]
    for edit, answer in zip(edits, caller.predict(*TEXTS), strict=True):
        assert edit["id"] in fired(answer)
    ids = [edit["id"] for edit in edits]
    for leaving in ([1, 2, 0, 3], [3, 0, 2, 1], [0, 1, 2, 3]):
        live = set(ids)
        for number in leaving:
            live.remove(ids[number])
            promised = caller.bits(exclude=[each for each in ids if each not in live])
            assert caller.client.delete(f"/edits/{ids[number]}").status_code == 200
            assert caller.bits() == answers.setdefault(tuple(sorted(live)), promised) == promised
        for edit_id in ids:
            assert caller.client.post(f"/edits/{edit_id}/reapply").status_code == 200
    assert caller.said(*TEXTS) == [edit["target"] for edit in edits]


def test_an_answer_names_edits_of_both_kinds(caller: Reporter) -> None:
    neuron = caller.edit(TEXTS[0], editor="transformer-patcher")
    caller.client.delete(f"/edits/{neuron['id']}")
    entry = caller.grace(TEXTS[0], neuron["target"])
    alone = caller.bits()
    assert caller.client.post(f"/edits/{neuron['id']}/reapply").status_code == 200
    (answer,) = caller.predict(TEXTS[0])
    assert set(fired(answer)) == {neuron["id"], entry["id"]}
    assert caller.said(TEXTS[0]) == [entry["target"]]
    assert caller.bits(exclude=[neuron["id"]]) == alone
    assert caller.bits(exclude=[entry["id"]]) == caller.bits(as_of=1)


@pytest.mark.parametrize("folder", ["Starcoder2", "Llama"], indirect=True)
def test_another_answer_supersedes_an_entry_and_its_removal_brings_the_former_back(caller: Reporter) -> None:
    former = caller.grace(TEXTS[0])
    held = caller.bits()
    target = caller.mistaken(TEXTS[0])
    body = {"input": TEXTS[0], "target": target, "editor": "grace"}
    refused = caller.client.post("/edits", json=body, headers={"Prefer": "wait=60"})
    assert (refused.status_code, refused.json()["code"]) == (409, "conflicting_edit")
    newer = caller.grace(TEXTS[0], target, supersedes=former["id"])
    assert caller.said(TEXTS[0]) == [target]
    assert fired(caller.predict(TEXTS[0])[0]) == [newer["id"]]
    assert caller.bits(exclude=[newer["id"]]) == held
    caller.client.delete(f"/edits/{newer['id']}")
    assert caller.bits() == held


@pytest.mark.parametrize("folder", ["Bart"], indirect=True)
def test_a_dry_run_reports_everything_and_changes_nothing(caller: Reporter) -> None:
    before = caller.bits()
    body = {"input": TEXTS[0], "target": caller.mistaken(TEXTS[0]), "editor": "grace", "dry_run": True}
    record = caller.client.post("/edits", json=body, headers={"Prefer": "wait=60"}).json()
    assert (record["status"], record["verdict"]["passed"]) == ("dry_run", True)
    assert caller.bits() == before


def test_a_restart_reads_the_keys_back_and_everything_verifies(settings: Settings) -> None:
    with started(settings) as client:
        caller = Reporter(client)
        caller.grace(TEXTS[0], rephrases=["w3 w2 w1"])
        caller.edit(TEXTS[1])
        caller.client.delete(f"/edits/{caller.grace(TEXTS[2])['id']}")
        before = caller.bits()
    with started(settings) as client:
        assert Reporter(client).bits() == before
        texts, (site,) = parts(client).memory.edits.texts, parts(client).engine.live.overlay.layer_sites()
        assert len(texts) == 4
        assert len(texts._missing(site, len(texts))) == 0
    assert all(finding.ok for finding in verify(settings))


def test_rows_stored_without_keys_get_them_when_they_are_first_needed(bert: Settings) -> None:
    with started(bert) as client:
        Caller(client).edit(TEXTS[0], rephrases=["w3 w2 w1"])  # nobody has asked for keys yet
    as_formerly(bert)
    with started(bert) as client:
        caller = Reporter(client)
        texts = parts(client).memory.edits.texts
        assert texts._keys == {}
        edit = caller.grace(TEXTS[1])
        (keys,) = texts._keys.values()
        assert keys["there"][:3].all()
        assert caller.said(TEXTS[1]) == [edit["target"]]
    assert all(finding.ok for finding in verify(bert))


def test_the_default_editor_is_a_setting_and_every_editor_shows_the_defaults_of_this_family(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ERRATA_EDITOR", "grace")
    chosen = Settings(**settings.model_dump(exclude={"editor"}))
    with started(chosen) as client:
        caller = Reporter(client)
        shown = {each["name"]: each for each in client.get("/model").json()["editors"] if not each["baseline"]}
        assert [name for name, each in shown.items() if each["default"]] == ["grace"]
        edit = caller.edit(TEXTS[0])
        assert edit["editor"] == "grace"
        for name in EDITORS[:2]:
            each, record = shown[name], edit if name == "grace" else caller.edit(TEXTS[1], editor=name)
            defaults = {option: schema["default"] for option, schema in each["options"]["properties"].items()}
            assert record["options"] == defaults


@pytest.mark.parametrize("folder", ["Bert"], indirect=True)
def test_what_is_no_option_of_the_editor_or_no_layer_of_the_model_is_refused_at_once(caller: Reporter) -> None:
    def refusal(**options: Any) -> str:
        body = {"input": TEXTS[0], "target": caller.mistaken(TEXTS[0]), "editor": "grace", "options": options}
        answer = caller.client.post("/edits", json=body)
        assert (answer.status_code, answer.json()["code"]) == (422, "bad_options"), answer.text
        return str(answer.json()["detail"])

    assert "max_neurons" in refusal(max_neurons=3)
    assert "radius" in refusal(radius=0)
    assert "key_token" in refusal(key_token="middle")
    for layer in (2, -3):
        assert f"'layer' is {layer}" in refusal(layer=layer)
    assert caller.client.get("/edits").json()["items"] == []


def test_rephrases_widen_a_ball_but_never_over_a_guard_text(tmp_path: Path, tiny_model: Path) -> None:
    """Rephrases that share no word with the input lie farther away than some text of the guard."""
    (tmp_path / "guard").write_text("".join(json.dumps({"input": text}) + "\n" for text in KNOWN))
    settings = remembering(tmp_path, tiny_model, guard_file=tmp_path / "guard", rephrases_required=0.0)
    with started(settings.model_copy(update={"memory_file": None})) as client:
        caller = Reporter(client)
        widened = 0
        for text in TEXTS:
            record = caller.grace(text, rephrases=[f"{text} w1", "w80 w81 w82", "w70"])
            gates = {gate["name"]: gate["measured"] for gate in record["verdict"]["gates"]}
            assert (gates["guard_fires"], gates["guard_unchanged"]) == (0.0, 1.0)
            assert not any(fired(answer) for answer in caller.predict(*KNOWN))
            widened += record["id"] in fired(caller.predict(f"{text} w1")[0])
        assert widened, "no ball held a rephrase: this test would show nothing"


def test_guard_texts_in_a_ball_are_counted_and_listed_when_they_change(tmp_path: Path, tiny_model: Path) -> None:
    """Words that the tokenizer does not know are all the same to the model, not to the guard."""
    guard = ["w1 w2 unheard", *KNOWN[:9]]
    (tmp_path / "guard").write_text("".join(json.dumps({"input": text}) + "\n" for text in guard))
    settings = remembering(tmp_path, tiny_model, guard_file=tmp_path / "guard")
    with started(settings) as client:
        caller = Reporter(client)
        record = caller.grace("w1 w2 unseen")
        gates = {gate["name"]: gate for gate in record["verdict"]["gates"]}
        assert gates["guard_fires"]["measured"] == pytest.approx(0.1)
        assert [failure["input"] for failure in gates["guard_unchanged"]["failures"]] == guard[:1]
        assert [bool(fired(answer)) for answer in caller.predict(*guard)] == [True] + [False] * 9
    strict = {"guard_fires_allowed": 0.05, "database_url": f"sqlite:///{tmp_path}/strict.db"}
    with started(settings.model_copy(update=strict)) as client:
        body = {"input": "w1 w2 unseen", "target": record["target"], "editor": "grace"}
        refused = client.post("/edits", json=body, headers={"Prefer": "wait=60"}).json()
        assert (refused["code"], [gate["name"] for gate in refused["gates"]]) == ("edit_rejected", ["guard_fires"])


def test_a_fit_of_an_entry_ends_when_its_edit_is_cancelled_and_predictions_run_between_its_steps(
    bert: Settings,
) -> None:
    endless = {"steps": 10_000, "margin": 100.0, "learning_rate": 1e-4}
    with started(bert) as client, ThreadPoolExecutor(1) as pool:
        caller = Reporter(client)
        before = caller.bits()
        body = {"input": TEXTS[0], "target": caller.mistaken(TEXTS[0]), "editor": "grace", "options": endless}
        edit_id = client.post("/edits", json=body).json()["id"]
        told = pool.submit(client.get, f"/edits/{edit_id}/events")
        eventually(lambda: client.get(f"/edits/{edit_id}").json()["status"] == "fitting")
        for _ in range(5):
            assert caller.bits() == before
        assert client.get(f"/edits/{edit_id}").json()["status"] == "fitting"
        assert client.delete(f"/edits/{edit_id}").json()["status"] == "cancelled"
        assert caller.grace(TEXTS[1])["status"] == "live"
        assert client.get(f"/edits/{edit_id}").json()["status"] == "cancelled"
    contents = [json.loads(line[6:]) for line in told.result().text.splitlines() if line.startswith("data: ")]
    steps = [content["step"] for content in contents if "step" in content]
    assert steps == sorted(steps)
    assert 5 < steps[-1] < 50_000


def test_how_the_judge_keeps_edits_and_guard_to_stand_is_how_they_stand_computed_anew(caller: Reporter) -> None:
    shop, portal = parts(caller.client).editing._shop, caller.client.portal
    assert portal is not None

    def check() -> None:
        kept, anew = shop.judge, Judge(shop.memory, shop.engine.model, shop.judge.required)
        for judge in (kept, anew):
            portal.call(shop.judged, judge._stand(shop.engine.live))
        for one, other in ((kept._edits, anew._edits), (kept._guard, anew._guard)):
            assert torch.equal(one.now.answers, other.now.answers)
            assert torch.equal(one.now.entered, other.now.entered)
            torch.testing.assert_close(one.all_rows().queries, other.all_rows().queries, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(one.all_rows().residuals, other.all_rows().residuals, atol=1e-4, rtol=1e-4)

    first = caller.grace(TEXTS[0], rephrases=["w3 w2 w1"])
    check()
    caller.edit(TEXTS[1], editor="transformer-patcher")
    check()
    newer = caller.edit(TEXTS[0], supersedes=first["id"], editor="transformer-patcher")
    check()
    last = caller.grace(TEXTS[2])
    caller.client.delete(f"/edits/{newer['id']}")
    check()
    caller.client.delete(f"/edits/{last['id']}")
    assert caller.client.post(f"/edits/{last['id']}/reapply").status_code == 200
    check()
    assert caller.client.post("/revisions/1/restore").status_code == 201
    check()


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"


def test_rows_of_one_batch_are_answered_each_under_its_own_view(caller: Reporter) -> None:
    """Rows of five views, with edits of both kinds, in one batch; those in which nothing took part are bit for bit what
    the same batch gets from the unedited model.
    """
    ids = [caller.edit(text, editor=editor)["id"] for text, editor in zip(TEXTS, EDITORS, strict=True)]
    engine, portal = parts(caller.client).engine, caller.client.portal
    assert portal is not None
    asked: list[dict[str, Any]] = [{}, {"edits": "off"}, {"as_of": 2}, {"exclude": ids[:1]}, {"exclude": ids[1:3]}]
    live = engine.live
    views = [live.view(), live.bare(), live.view(as_of=2), live.view(exclude=ids[:1]), live.view(exclude=ids[1:3])]
    rows = [(encoding, view) for view in views for encoding in engine.model.encode(PROBES)]
    decoding = Decoding(8) if engine.model.writes else None
    asks = [Ask(encoding, decoding, remember=True) for encoding, _ in rows]
    patched = Patched([view for _, view in rows], engine.model.device)
    outputs = portal.call(engine.call, lambda: run(engine.model, asks, patched))
    unedited = portal.call(engine.call, lambda: run(engine.model, asks))
    took_part = [[each.edit_id for each in patched.fired(row, output.positions)] for row, output in enumerate(outputs)]
    expected = [answer for options in asked for answer in caller.bits(**options)]
    said = [answer.said for answer in engine.model.decode(asks, outputs)]
    assert said == [str(answer.get("label", answer.get("text"))).strip() for answer in expected]
    assert took_part == [fired(answer) for answer in expected]
    assert {edit_id for each in took_part for edit_id in each} == set(ids)
    for row, now, bare in zip(took_part, outputs, unedited, strict=True):
        if not row:
            assert torch.equal(now.raw, bare.raw)
            assert torch.equal(rows_seen(now), rows_seen(bare))


def rows_seen(output: Output) -> Tensor:
    assert output.seen is not None
    return torch.cat([output.seen.queries, output.seen.residuals])


@pytest.mark.parametrize("layer", [0, 1])
def test_streamed_answers_are_the_whole_ones_with_an_entry_too(tmp_path: Path, layer: int) -> None:
    folder = deploy(tmp_path / "model", family="Llama")
    with started(remembering(tmp_path, folder)) as client:
        caller = Reporter(client)
        edit = caller.grace(TEXTS[0], "w60", options={"layer": layer})
        (whole,) = caller.predict(TEXTS[0])
        body = {"inputs": [TEXTS[0]], "stream": True}
        told = [
            json.loads(line[6:]) for line in client.post("/predict", json=body).text.splitlines() if "data: " in line
        ]
        assert [each["prediction"] for each in told if "prediction" in each] == [whole]
        assert "".join(each["text"] for each in told if "text" in each) == whole["text"]
        completion = {"model": client.get("/v1/models").json()["data"][0]["id"], "prompt": TEXTS[0], "max_tokens": 8}
        unstreamed = client.post("/v1/completions", json=completion).json()["choices"][0]["text"]
        lines = client.post("/v1/completions", json={**completion, "stream": True}).text.splitlines()
        pieces = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
        assert "".join(choice["text"] for piece in pieces for choice in piece["choices"]) == unstreamed == whole["text"]
        assert (whole["text"].strip(), fired(whole)) == ("w60", [edit["id"]])


@pytest.mark.parametrize("family", ["Bart", "Llama"])
def test_decoding_with_a_cache_and_without_one_agree_with_an_entry_in_place(tmp_path: Path, family: str) -> None:
    with started(remembering(tmp_path, deploy(tmp_path / "model", family=family))) as client:
        caller = Reporter(client)
        caller.grace(TEXTS[0])
        cached = caller.bits()
        parts(client).engine.model._model.generation_config.use_cache = False
        assert [each["text"] for each in caller.bits()] == [each["text"] for each in cached]
