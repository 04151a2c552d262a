"""What several verdicts ask is computed at once; each then finds what it would have found by itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from app.editing import several
from app.engine import Entry, View
from app.judge import Coming, Exemption, standing
from app.judge.chosen import Chosen
from app.memory import Said, Shelving, said
from app.model import Model
from editors.types import Patch, Reading, Rows
from tests.app.conftest import Caller, settings_in, started
from tests.app.test_several import bodies, imported, statuses
from tests.app.test_standing import EDITED, History, ended, equal_to_the_whole_model, model

__all__ = ["model"]

Json = dict[str, Any]


class Foreseeing(History):
    """Edits behind the last layer alone, several of which come one after the other."""

    def patch(self) -> Patch:
        return self.neuron()

    def plan(self, count: int) -> None:
        """Look ahead at so many edits."""
        self.patches = [self.neuron() for _ in range(count)]
        self.readings = [self.read(self.random.choice([1, 2])) for _ in range(count)]
        self.edit_ids = [f"edit {len(self.entries) + number}" for number in range(count)]
        coming = [Coming(*each) for each in zip(self.edit_ids, (each.rows for _, each in self.readings), strict=True)]
        overlay, live = self.overlay.extend(self.patches), self.live
        found = []
        for number, (_, reading) in enumerate(self.readings, 1):
            alive = torch.cat([live.alive, torch.arange(count) < number])
            view = View(live.revision, overlay, alive, (*live.edit_ids, *self.edit_ids))
            rows = reading.rows
            found.append(said(view.add(rows.queries, rows.residuals), rows.labels, self.model.readout))
        joined = Said(*(torch.cat([getattr(each, name) for each in found]) for name in ("answers", "scores", "gaps")))
        ended(self.judge.foresee(live, overlay, coming, joined))

    def read(self, count: int) -> tuple[list[str], Reading]:
        texts = self.random.sample(EDITED, count)
        encodings = self.model.encode(texts)
        return texts, self.model.read(encodings, [self.wanted(encodings[0])] * count).reading

    def judged(self, patch: Patch) -> None:
        """What one patch more does is what the whole model computes."""
        live = self.live
        view = View(live.revision + 1, self.overlay.extend([patch]), *self.with_one_more(live))
        ended(self.judge.of_patch(live, view, exempt=Exemption(), **self.asked()))
        assert self.judge._judged_last is not None
        for (kept, texts), outcome in zip(self.kept(), self.judge._judged_last[1:], strict=True):
            equal_to_the_whole_model(kept, outcome, view, self.model, texts)

    def pass_next(self, number: int) -> None:
        """The planned edit of this number goes live."""
        self.overlay, self.revision = self.overlay.extend([self.patches[number]]), self.revision + 1
        edit_id = self.edit_ids[number]
        self.entries.append(Entry(edit_id, None, edit_id, "w9", ((self.revision, None),)))
        texts, reading = self.readings[number]
        self.memory.edits.put([Shelving(edit_id, edit_id, texts, reading)])


@pytest.fixture
def history(model: Model) -> Foreseeing:
    made = Foreseeing(model, seed=2)
    for _ in range(6):
        made.step()
    made.plan(5)
    return made


def test_what_was_foreseen_is_not_looked_for_again_and_is_what_the_whole_model_computes(
    history: Foreseeing, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_for: list[int] = []
    real = standing._by_patch

    def noting(overlay: Any, patches: Any, rows: Rows) -> Any:
        looked_for.extend(patches)
        return real(overlay, patches, rows)

    monkeypatch.setattr(standing, "_by_patch", noting)
    for number, patch in enumerate(history.patches):
        history.judged(patch)
        history.pass_next(number)
    history.check()
    assert looked_for == []


def test_nothing_that_was_foreseen_is_said_of_another_patch_that_takes_the_place_of_one_that_failed(
    history: Foreseeing,
) -> None:
    history.judged(history.patches[0])
    history.pass_next(0)
    history.judged(history.patches[1])
    ended(history.judge.forget())
    history.judged(history.patches[2])
    history.check()


def test_nothing_that_was_foreseen_counts_once_something_else_has_come(history: Foreseeing) -> None:
    history.judged(history.patches[0])
    history.pass_next(0)
    history.shelve("of another process", keys=False)
    history.judged(history.patches[1])
    history.pass_next(1)
    history.turn(judged=False)
    history.judged(history.patches[2])
    history.check()


@pytest.mark.parametrize("rows_ahead", [1, 7])
def test_how_many_are_foreseen_together_changes_no_verdict(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, rows_ahead: int
) -> None:
    """Among them one that fails and one that the one before it sets right."""
    (tmp_path / "guard").write_text('{"input": "w1 w2 unheard"}\n{"input": "w3 w4"}\n')

    def records(folder: Path) -> tuple[list[str], list[Json]]:
        folder.mkdir()
        settings = settings_in(folder, tiny_model, guard_file=tmp_path / "guard", memory_from_traffic=False)
        with started(settings) as client:
            caller = Caller(client)
            good = bodies(caller, 10)
            failing = {"input": "w1 w2 unseen", "target": caller.mistaken("w1 w2 unseen")}
            alike = [{"input": f"w5 w6 w7 {word}", "target": caller.mistaken("w5 w6 w7 other")} for word in ("x", "y")]
            outcomes = imported(client, [*good[:3], failing, *good[3:5], *alike, *good[5:]])
            live = [each["edit_id"] for each in outcomes if each.get("status") == "live"]
            return statuses(outcomes), [client.get(f"/edits/{edit_id}").json() for edit_id in live]

    ended_as, found = records(tmp_path / "together")
    assert {"live", "not_needed", "edit_rejected"} <= set(ended_as)
    monkeypatch.setattr(several, "AHEAD", rows_ahead)
    ended_as_too, others = records(tmp_path / "in parts")
    assert ended_as_too == ended_as
    for one, other in zip(found, others, strict=True):
        for part in ("before", "after"):
            assert one[part]["prediction"]["label"] == other[part]["prediction"]["label"]
            assert one[part]["prediction"]["score"] == pytest.approx(other[part]["prediction"]["score"], abs=1e-5)
        assert _without_numbers(one["verdict"]) == _without_numbers(other["verdict"])


def _without_numbers(verdict: Json) -> Json:
    """A verdict whose edits have no names, and whose numbers are as exact as they are meant."""

    def rounded(key: str, value: Any) -> Any:
        return None if key == "edit_id" else round(value, 5) if isinstance(value, float) else value

    made: Json = json.loads(
        json.dumps(verdict), object_hook=lambda each: {key: rounded(key, value) for key, value in each.items()}
    )
    return made


def test_chosen_rows_are_copied_once() -> None:
    draw = torch.Generator().manual_seed(0)
    every = Rows(torch.randn(40, 3, generator=draw), torch.randn(40, 3, generator=draw), torch.arange(40))
    chosen, flags = Chosen(), torch.rand(40, generator=draw) > 0.3
    for end in (10, 12, 12, 30, 40):
        found = chosen.of(every[:end], flags[:end])
        expected = every[:end][flags[:end]]
        for name in ("queries", "residuals", "labels"):
            assert torch.equal(getattr(found, name), getattr(expected, name))
    assert chosen.of(every, flags).queries.data_ptr() == found.queries.data_ptr()
    before = found.labels.clone()
    flags = flags.clone()
    flags[:5] = ~flags[:5]
    assert torch.equal(chosen.of(every, flags).labels, every.labels[flags])
    assert torch.equal(found.labels, before)
