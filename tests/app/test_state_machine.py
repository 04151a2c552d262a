"""Edits, reverts, re-applies, restores and restarts in any order, against lists that a person would keep."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from app.settings import Settings
from tests.app.conftest import Caller, sentence, settings_in, started

TEXTS = tuple(sentence(number) for number in range(5))
EDITORS = st.sampled_from(["transformer-patcher", "grace"])
PROBES = (*TEXTS, sentence(11), sentence(12))


class Loop(RuleBasedStateMachine):
    """`live`: what is live, in the order of first going live. `revisions`: that list, for every revision."""

    new_settings: ClassVar[Callable[[Path], Settings]]

    def __init__(self) -> None:
        super().__init__()
        self.process = ExitStack()
        self.folder = self.process.enter_context(tempfile.TemporaryDirectory())
        self.edits: list[dict[str, Any]] = []
        self.live: list[str] = []
        self.reverted: list[str] = []
        self.superseded: dict[str, str] = {}  # by which edit
        self.revisions: list[list[str]] = [[]]
        self.answers: dict[tuple[str, ...], list[dict[str, Any]]] = {}

    @initialize()
    def start(self) -> None:
        self.settings = type(self).new_settings(Path(self.folder))
        self.service = ExitStack()
        self.caller = Caller(self.service.enter_context(started(self.settings)))

    def teardown(self) -> None:
        if hasattr(self, "service"):
            self.service.close()
        self.process.close()

    @rule(text=st.sampled_from(TEXTS), wanted=st.sampled_from(["red", "green", "blue"]), editor=EDITORS)
    def report(self, text: str, wanted: str, editor: str) -> None:
        """Report a mistake; where a live edit stands against it, the report must name it."""
        present = self._live_edit_of(text)
        body = {"input": text, "target": wanted, "editor": editor}
        answer = self.caller.client.post("/edits", json=body, headers={"Prefer": "wait=60"})
        if present is not None and self._edit(present)["target"] != wanted:
            assert (answer.status_code, answer.json()["conflicts"]) == (409, [present])
        elif answer.status_code == 201:
            self.edits.append(answer.json())
            self._became([*self.live, answer.json()["id"]])
        else:
            assert came_to_nothing(answer)

    @precondition(lambda self: self.live)
    @rule(data=st.data(), wanted=st.sampled_from(["red", "green", "blue", "yellow"]), editor=EDITORS)
    def supersede(self, data: st.DataObject, wanted: str, editor: str) -> None:
        former = data.draw(st.sampled_from(self.live))
        text = self._edit(former)["input"]
        if self._edit(former)["target"] == wanted:
            return
        body = {"input": text, "target": wanted, "supersedes": former, "editor": editor}
        answer = self.caller.client.post("/edits", json=body, headers={"Prefer": "wait=60"})
        if answer.status_code != 201:
            assert came_to_nothing(answer)
            return
        edit = answer.json()
        self.edits.append(edit)
        self.superseded[former] = edit["id"]
        self._became([*(each for each in self.live if each != former), edit["id"]])

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def revert(self, data: st.DataObject) -> None:
        """What is served afterwards is what `exclude` had shown."""
        victim = data.draw(st.sampled_from(self.live))
        shown = self.caller.predict(*PROBES, exclude=[victim])
        assert self.caller.client.delete(f"/edits/{victim}").status_code == 200
        assert self.caller.predict(*PROBES) == shown
        self.reverted.append(victim)
        live = [each for each in self.live if each != victim]
        former = self._edit(victim)["supersedes"]
        if former is not None and self.superseded.get(former) == victim:
            del self.superseded[former]
            live.append(former)
        self._became(live)

    @precondition(lambda self: self.reverted)
    @rule(data=st.data())
    def reapply(self, data: st.DataObject) -> None:
        edit = data.draw(st.sampled_from(self.reverted))
        former = self._edit(edit)["supersedes"]
        others = [each for each in self._live_edits_of(self._edit(edit)["input"]) if each != former]
        answer = self.caller.client.post(f"/edits/{edit}/reapply")
        if any(self._edit(other)["target"] != self._edit(edit)["target"] for other in others):
            assert (answer.status_code, answer.json()["code"]) in [(409, "conflicting_edit"), (422, "edit_rejected")]
            return
        if answer.status_code != 200:  # it was learned beside other patches than those live now
            assert came_to_nothing(answer)
            return
        self.reverted.remove(edit)
        live = [*self.live, edit]
        if former in live:
            live.remove(former)
            self.superseded[former] = edit
        self._became(live)

    @rule(data=st.data())
    def restore(self, data: st.DataObject) -> None:
        number = data.draw(st.integers(0, len(self.revisions) - 1))
        assert self.caller.client.post(f"/revisions/{number}/restore").status_code == 201
        self._became(self.revisions[number])
        self._read_standing()

    @rule()
    def restart(self) -> None:
        self.service.close()
        self.service = ExitStack()
        self.caller = Caller(self.service.enter_context(started(self.settings)))

    @rule(data=st.data())
    def answer_as_of(self, data: st.DataObject) -> None:
        number = data.draw(st.integers(0, len(self.revisions) - 1))
        assert self._answers(self.revisions[number], as_of=number)

    @invariant()
    def serves_a_function_of_the_live_patches(self) -> None:
        if hasattr(self, "caller"):
            self._answers(self.live)
            revision = self.caller.client.get(f"/revisions/{len(self.revisions) - 1}").json()
            assert revision["live"] == self.live

    def _became(self, live: list[str]) -> None:
        self.live = sorted(live, key=self._first_revision)
        self.revisions.append(self.live)

    def _first_revision(self, edit_id: str) -> int:
        return int(next(place for place, edit in enumerate(self.edits) if edit["id"] == edit_id))

    def _answers(self, live: list[str], **options: Any) -> list[dict[str, Any]]:
        """The same set of live patches gives the same answers to the last bit, whenever and however it came about."""
        answers = self.caller.predict(*PROBES, **options)
        assert self.answers.setdefault(tuple(live), answers) == answers
        return answers

    def _read_standing(self) -> None:
        """After a restore, who is reverted and who superseded is read back, and must fit what is live."""
        records = {edit["id"]: self.caller.client.get(f"/edits/{edit['id']}").json() for edit in self.edits}
        assert [each for each in records if records[each]["status"] == "live"] == self.live
        self.reverted = [each for each in records if records[each]["status"] == "reverted"]
        self.superseded = {}
        for each, record in records.items():
            if record["status"] == "superseded":
                successors = [edit["id"] for edit in self.edits if edit["supersedes"] == each]
                self.superseded[each] = next((one for one in successors if one in self.live), successors[-1])

    def _edit(self, edit_id: str) -> dict[str, Any]:
        return next(edit for edit in self.edits if edit["id"] == edit_id)

    def _live_edits_of(self, text: str) -> list[str]:
        return [each for each in self.live if self._edit(each)["input"] == text]

    def _live_edit_of(self, text: str) -> str | None:
        return next(iter(self._live_edits_of(text)), None)


def came_to_nothing(answer: Any) -> bool:
    """The judge did not let it live, or there was nothing to learn; either way nothing has changed."""
    return answer.json().get("code") == "edit_rejected" or answer.json().get("status") == "not_needed"


MODEST = settings(
    max_examples=7,
    stateful_step_count=25,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],  # to shrink means to run the service a thousand times
    suppress_health_check=list(HealthCheck),
)


def test_any_history_on_sqlite_serves_what_the_lists_say(tiny_model: Path) -> None:
    class OnSqlite(Loop):
        new_settings = staticmethod(lambda folder: settings_in(folder, tiny_model))

    run_state_machine_as_test(OnSqlite, settings=MODEST)


def test_any_history_on_postgresql_serves_what_the_lists_say(tiny_model: Path, postgresql: Callable[[], str]) -> None:
    class OnPostgresql(Loop):
        new_settings = staticmethod(lambda folder: settings_in(folder, tiny_model, database_url=postgresql()))

    run_state_machine_as_test(OnPostgresql, settings=MODEST)
