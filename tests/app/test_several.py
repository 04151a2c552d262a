"""Imports: independent edits are learned together, and come out as if each had been worked on by itself."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient

from app.editing.several import Several
from app.errors import Unavailable
from app.judge import Judge
from app.settings import Settings
from app.store import HeadMoved, Ledger
from benchmarks.slices import finish
from tests.app.conftest import Caller, sentence, settings_in, started
from tests.app.test_standing import equal_to_the_whole_model

Json = dict[str, Any]
COUNT = 24


def bodies(caller: Caller, count: int = COUNT) -> list[Json]:
    """Distinct mistakes, some with a rephrase."""
    texts = list(dict.fromkeys(sentence(number) for number in range(3 * count)))[: 2 * count]
    made = []
    for text, other in zip(texts[:count], texts[count:], strict=True):
        rephrases = {"rephrases": [other]} if len(made) % 5 == 0 else {}
        made.append({"input": text, "target": caller.mistaken(text), **rephrases})
    return made


def imported(client: TestClient, lines: Sequence[Json]) -> list[Json]:
    answer = client.post("/edits/import", content="\n".join(map(json.dumps, lines)).encode())
    assert answer.status_code == 200, answer.text
    outcomes = [json.loads(line) for line in answer.text.splitlines()]
    assert [outcome["line"] for outcome in outcomes] == list(range(1, len(lines) + 1))
    return outcomes


def statuses(outcomes: Sequence[Json]) -> list[str]:
    return [outcome.get("status") or outcome["error"]["code"] for outcome in outcomes]


@pytest.fixture
def together(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many edits were made live in each transaction that was for several."""
    real, sizes = Ledger.commit_each, list[int]()

    def counted(ledger: Ledger, learned: Any, *, expected_head: int) -> Any:
        records = real(ledger, learned, expected_head=expected_head)
        sizes.append(len(records))
        return records

    monkeypatch.setattr(Ledger, "commit_each", counted)
    return sizes


@pytest.fixture
def remembering(tmp_path: Path, tiny_model: Path) -> Settings:
    """A service with a memory, which is its guard, too."""
    lines = (json.dumps({"input": f"{sentence(number)} w1"}) for number in range(200, 260))
    (tmp_path / "memory").write_text("\n".join(lines))
    return settings_in(tmp_path, tiny_model, memory_file=tmp_path / "memory", memory_from_traffic=False)


def stands_as_the_whole_model(client: TestClient) -> None:
    """What the judge keeps of all edits is what the model computes of them now."""
    parts = client.app.state.service.parts  # type: ignore[attr-defined]
    shop = parts.editing._shop
    live, texts = parts.engine.live, parts.memory.edits.texts
    finish(shop.judge.look(live))
    equal_to_the_whole_model(shop.judge._edits, shop.judge._edits.now, live.view(), parts.engine.model, texts)


def test_an_import_is_learned_together_and_every_edit_has_its_own_evidence(
    remembering: Settings, together: list[int]
) -> None:
    with started(remembering) as client:
        caller = Caller(client)
        lines = bodies(caller)
        outcomes = imported(client, lines)
        live = [outcome for outcome in outcomes if outcome.get("status") == "live"]
        assert sum(together) > COUNT // 2
        assert max(together) > 1
        assert sorted(outcome["revision"] for outcome in live) == list(range(1, len(live) + 1))
        for line, outcome in zip(lines, outcomes, strict=True):
            if outcome.get("status") != "live":
                continue
            record = client.get(f"/edits/{outcome['edit_id']}").json()
            assert [row["event"] for row in record["history"]] == ["queued", "fitting", "judging", "live"]
            assert record["before"]["prediction"]["label"] != line["target"]
            assert record["after"]["prediction"]["label"] == line["target"]
            assert len(record["after"]["rephrases"]) == len(line.get("rephrases", ()))
            gates = {gate["name"]: gate for gate in record["verdict"]["gates"]}
            assert record["verdict"]["passed"]
            assert gates.keys() >= {"edit_holds", "other_edits_hold", "guard_unchanged", "guard_fires", "finite"}
            assert record["fit"]["memory_rows"] >= 60
            (then,) = caller.predict(line["input"], as_of=outcome["revision"])
            assert then["label"] == line["target"]
            assert then["score"] == pytest.approx(record["after"]["prediction"]["score"], abs=1e-5)
            assert caller.label(line["input"]) == line["target"]
        stands_as_the_whole_model(client)


def test_what_an_import_makes_live_is_what_single_reports_would(
    remembering: Settings, tmp_path: Path, tiny_model: Path
) -> None:
    alone = settings_in(tmp_path / "alone", tiny_model, memory_file=remembering.memory_file, memory_from_traffic=False)
    (tmp_path / "alone").mkdir()
    with started(remembering) as client:
        lines = bodies(Caller(client))
        several = imported(client, lines)
    with started(alone) as client:
        single = [client.post("/edits", json=line, headers={"Prefer": "wait=60"}).json() for line in lines]
    assert statuses(several) == [one.get("status") if "gates" not in one else one["code"] for one in single]


def test_a_line_that_fails_its_gates_is_rejected_and_the_others_go_on(tmp_path: Path, tiny_model: Path) -> None:
    """No edit of a text can leave a guard input unchanged that is the same to the tokenizer."""
    (tmp_path / "guard").write_text('{"input": "w1 w2 unheard"}\n')
    settings = settings_in(tmp_path, tiny_model, guard_file=tmp_path / "guard", memory_from_traffic=False)
    with started(settings) as client:
        caller = Caller(client)
        bad = {"input": "w1 w2 unseen", "target": caller.mistaken("w1 w2 unseen")}
        good = bodies(caller, 8)
        outcomes = imported(client, [*good[:4], bad, *good[4:]])
        alone = imported(client, [{**bad, "reason": "once more"}])
        assert statuses(outcomes)[4] == statuses(alone)[0] == "edit_rejected"
        failed = {gate["name"] for gate in outcomes[4]["error"]["gates"]}
        assert failed == {gate["name"] for gate in alone[0]["error"]["gates"]}
        assert "live" in statuses(outcomes)[5:]
        stands_as_the_whole_model(client)


def test_lines_that_stand_in_each_other_s_way_are_told_apart(caller: Caller) -> None:
    text, other = sentence(1), sentence(2)
    wanted = caller.mistaken(text)
    third = next(label for label in ("label0", *_labels(caller)) if label not in (wanted, caller.label(text), "label0"))
    lines = [
        {"input": text, "target": wanted},
        {"input": other, "target": caller.mistaken(other)},
        {"input": text, "target": wanted},
        {"input": text, "target": third},
    ]
    assert statuses(imported(caller.client, lines)) == ["live", "live", "not_needed", "conflicting_edit"]


def _labels(caller: Caller) -> list[str]:
    return list(caller.client.get("/model").json()["labels"])


def test_more_lines_than_the_queue_takes_are_all_worked_on(tmp_path: Path, tiny_model: Path) -> None:
    with started(settings_in(tmp_path, tiny_model, max_queued_edits=5)) as client:
        outcomes = imported(client, bodies(Caller(client), 17))
        assert set(statuses(outcomes)) <= {"live", "not_needed"}
        assert statuses(outcomes).count("live") > 3


def test_when_the_revision_moves_each_edit_is_worked_on_by_itself(
    remembering: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = Ledger.commit_each, [0]

    def moved_at_first(ledger: Ledger, learned: Any, *, expected_head: int) -> Any:
        calls[0] += 1
        if calls[0] == 1:
            raise HeadMoved(expected_head, expected_head + 1)
        return real(ledger, learned, expected_head=expected_head)

    monkeypatch.setattr(Ledger, "commit_each", moved_at_first)
    with started(remembering) as client:
        lines = bodies(Caller(client))
        outcomes = imported(client, lines)
        assert statuses(outcomes).count("live") > COUNT // 2
        assert calls[0] >= 1
        stands_as_the_whole_model(client)
        again = imported(client, [{"input": f"{line['input']} w3", "target": line["target"]} for line in lines])
        assert set(statuses(again)) <= {"live", "not_needed", "edit_rejected", "edit_failed"}
        stands_as_the_whole_model(client)


def test_one_that_is_cancelled_in_the_midst_ends_so_and_the_others_go_live(
    remembering: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, cancelled = Ledger.commit_each, list[str]()

    def one_cancelled(ledger: Ledger, learned: Any, *, expected_head: int) -> Any:
        if not cancelled and len(learned) > 3:
            cancelled.append(learned[2][0])
            ledger.cancel(learned[2][0], actor="ann", reason="")
        return real(ledger, learned, expected_head=expected_head)

    monkeypatch.setattr(Ledger, "commit_each", one_cancelled)
    with started(remembering) as client:
        outcomes = imported(client, bodies(Caller(client)))
        assert cancelled
        assert client.get(f"/edits/{cancelled[0]}").json()["status"] == "cancelled"
        assert statuses(outcomes).count("edit_cancelled") == 1
        assert statuses(outcomes).count("live") > COUNT // 2
        stands_as_the_whole_model(client)


@pytest.mark.parametrize("method", ["queued", "claim_these", "judging_these", "commit_each"])
def test_an_import_outlives_a_database_that_is_away_for_a_while(
    remembering: Settings, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    real, calls = getattr(Ledger, method), [0]

    def away_at_first(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] <= 2:
            raise Unavailable("The database is away.")
        return real(*args, **kwargs)

    monkeypatch.setattr(Ledger, method, away_at_first)
    with started(remembering) as client:
        assert statuses(imported(client, bodies(Caller(client), 6))).count("live") > 3
        stands_as_the_whole_model(client)


def test_an_unforeseen_error_in_the_judge_leaves_it_where_it_stood(
    remembering: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = Judge.of_patch, [0]

    def broken_once(judge: Judge, *args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == 4:
            raise KeyError("surprise")
        return real(judge, *args, **kwargs)

    monkeypatch.setattr(Judge, "of_patch", broken_once)
    with started(remembering) as client:
        assert statuses(imported(client, bodies(Caller(client)))).count("live") > COUNT // 2
        stands_as_the_whole_model(client)


def test_edits_that_ask_for_more_are_worked_on_by_themselves(remembering: Settings, together: list[int]) -> None:
    with started(remembering) as client:
        lines = [{**line, "keep": [sentence(90)]} for line in bodies(Caller(client), 5)]
        assert "live" in statuses(imported(client, lines))
        assert together == []


def test_a_revert_after_an_import_is_exact(remembering: Settings) -> None:
    with started(remembering) as client:
        caller = Caller(client)
        lines = bodies(caller)
        bare = caller.predict(*(line["input"] for line in lines), edits="off")
        live = [outcome["edit_id"] for outcome in imported(client, lines) if outcome.get("status") == "live"]
        for edit_id in live:
            assert client.delete(f"/edits/{edit_id}").status_code == 200
        now = caller.predict(*(line["input"] for line in lines))
        assert [each["scores"] for each in now] == [each["scores"] for each in bare]
        assert not torch.any(client.app.state.service.parts.engine.live.alive)  # type: ignore[attr-defined]


def test_an_entry_that_came_after_edits_were_chosen_has_each_worked_on_by_itself(
    remembering: Settings, together: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    with started(remembering) as client:
        caller = Caller(client)
        lines = bodies(caller, 4)
        assert caller.edit(sentence(90), editor="grace")["status"] == "live"
        monkeypatch.setattr(Several, "_simple", lambda several, record: True)
        ends = set(statuses(imported(client, lines)))
        assert "live" in ends <= {"live", "not_needed"}  # the entry may have mended one of them
        assert together == []
        stands_as_the_whole_model(client)
