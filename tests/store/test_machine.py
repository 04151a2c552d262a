"""Whatever is done to a ledger, in whatever order, it stands where a person with pencil and paper would say it does."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from app.errors import Conflict, ConflictingEdit, NotLive, NotReverted
from app.store import IN_WORK, Evidence, HeadMoved, Ledger, Status, Store
from tests.store.samples import IDENTITY, draft, learned

TEXTS = st.sampled_from(["one", "two"])
LABELS = st.sampled_from(["a", "b", "c"])
ENDS = st.sampled_from([Status.REJECTED, Status.FAILED, Status.NOT_NEEDED, Status.DRY_RUN])
CHOICE = st.integers(min_value=0, max_value=10**6)
_numbers = count()


@dataclass(slots=True, eq=False)
class Noted:
    """An edit as noted on paper."""

    id: str
    text: str
    target: str
    supersedes: Noted | None
    status: Status = Status.QUEUED

    def conflicts_with(self, other: Noted) -> bool:
        return self.text == other.text and self.target != other.target


class LedgerOnPaper(RuleBasedStateMachine):
    """The ledger beside a list of edits and a list of what was live in each revision."""

    url: str

    def __init__(self) -> None:
        super().__init__()
        self.identity = replace(IDENTITY, fingerprint=f"sha256:{next(_numbers)}")
        self.edits: list[Noted] = []
        self.order: list[Noted] = []  # of first going live
        self.revisions: list[list[Noted]] = [[]]
        self.store: Store
        self.ledger: Ledger

    @initialize()
    def open(self) -> None:
        self.store = Store.open(self.url)
        self.ledger = self.store.ledger(self.identity)

    def teardown(self) -> None:
        assert self.ledger.verify() == []
        for number, live in enumerate(self.revisions):
            assert list(self.ledger.live_edits(number)) == [edit.id for edit in live]
        self.store.close()

    @property
    def live(self) -> list[Noted]:
        return self.revisions[-1]

    @property
    def head(self) -> int:
        return len(self.revisions) - 1

    @rule(text=TEXTS, label=LABELS, choice=CHOICE, replacing=st.booleans())
    def accept(self, text: str, label: str, choice: int, replacing: bool) -> None:
        self.accepted(text, label, choice, replacing)

    def accepted(self, text: str, label: str, choice: int, replacing: bool) -> Noted | None:
        noted = Noted("", text, label, None)
        in_the_way = [edit for edit in self.live if edit.conflicts_with(noted)] or self.live
        if replacing and in_the_way:
            noted.supersedes = in_the_way[choice % len(in_the_way)]
        superseded = noted.supersedes
        report = draft(text, label, supersedes=superseded.id if superseded else None)
        with expected(ConflictingEdit, if_=self.conflict(noted)):
            noted.id = self.ledger.accept(report, actor="ann", limit=10_000).edit_id
            self.edits.append(noted)
            return noted
        return None

    @rule()
    def claim(self) -> None:
        record = self.ledger.claim()
        queued = [edit for edit in self.edits if edit.status is Status.QUEUED]
        assert (record.id if record else None) == (queued[0].id if queued else None)
        if queued:
            queued[0].status = Status.FITTING

    @rule(text=TEXTS, label=LABELS, choice=CHOICE, replacing=st.booleans())
    def go_live(self, text: str, label: str, choice: int, replacing: bool) -> None:
        """All the way in one step: chance alone would seldom get there."""
        edit = self.accepted(text, label, choice, replacing)
        while edit is not None and edit.status is Status.QUEUED:
            self.claim()
        if edit is not None:
            self.commit(self.in_work().index(edit), late=False)

    @precondition(lambda self: self.edits)
    @rule(choice=CHOICE)
    def judge(self, choice: int) -> None:
        edit = self.edits[choice % len(self.edits)]
        assert self.ledger.judging(edit.id) == (edit.status is Status.FITTING)
        if edit.status is Status.FITTING:
            edit.status = Status.JUDGING

    @precondition(lambda self: self.edits)
    @rule(choice=CHOICE, end=ENDS)
    def finish(self, choice: int, end: Status) -> None:
        pool = self.in_work() or self.edits
        edit = pool[choice % len(pool)]
        finished = self.ledger.finish(edit.id, end, Evidence(failure="No."), detail={})
        assert finished == (edit.status in (Status.FITTING, Status.JUDGING))
        if finished:
            edit.status = end

    @precondition(lambda self: self.in_work())
    @rule(choice=CHOICE, late=st.booleans())
    def commit(self, choice: int, late: bool) -> None:
        edit = self.in_work()[choice % len(self.in_work())]
        superseded = edit.supersedes
        with (
            expected(ConflictingEdit, if_=self.conflict(edit)),
            expected(HeadMoved, if_=late and not self.conflict(edit)),
        ):
            self.ledger.commit(edit.id, learned(edit.text.encode()), expected_head=self.head - late)
            self.order.append(edit)
            edit.status = Status.LIVE
            gone = [superseded] if superseded in self.live else []
            for each in gone:
                each.status = Status.SUPERSEDED
            self.revise([each for each in self.live if each not in gone] + [edit])

    @precondition(lambda self: self.edits)
    @rule(choice=CHOICE)
    def cancel(self, choice: int) -> None:
        edit = self.edits[choice % len(self.edits)]
        cancellable = edit.status in IN_WORK or edit.status is Status.CANCELLED
        with expected(Conflict, if_=not cancellable):
            self.ledger.cancel(edit.id, actor="bob", reason="")
            edit.status = Status.CANCELLED

    @rule()
    def die(self) -> None:
        """The process is killed, and the next one starts."""
        self.store.close()
        self.open()
        abandoned = self.in_work()
        assert self.ledger.requeue_abandoned() == len(abandoned)
        for edit in abandoned:
            edit.status = Status.QUEUED

    @precondition(lambda self: self.edits)
    @rule(choice=CHOICE, late=st.booleans())
    def revert(self, choice: int, late: bool) -> None:
        replacements = [edit for edit in self.live if edit.supersedes is not None]
        pool = replacements or self.live or self.edits
        edit = pool[choice % len(pool)]
        live = edit in self.live
        returning = self.returning(edit) if live else None
        assert not live or self.ledger.returning(edit.id) == (returning.id if returning else None)
        with expected(NotLive, if_=not live), expected(HeadMoved, if_=live and late):
            self.ledger.revert(edit.id, actor="bob", reason="", verdict={}, expected_head=self.head - late)
            edit.status = Status.REVERTED
            remaining = [each for each in self.live if each is not edit]
            if returning is not None:
                returning.status = Status.LIVE
                remaining.append(returning)
            self.revise(remaining)
            for each in below(edit):
                if each.status is not Status.SUPERSEDED or self.covered(each):
                    break
                each.status = Status.REVERTED

    @precondition(lambda self: self.order)
    @rule(choice=CHOICE)
    def reapply(self, choice: int) -> None:
        pool = [edit for edit in self.order if edit.status is Status.REVERTED] or self.order
        edit = pool[choice % len(pool)]
        reverted = edit.status is Status.REVERTED
        superseded = edit.supersedes
        with (
            expected(NotReverted, if_=not reverted),
            expected(ConflictingEdit, if_=reverted and self.conflict(edit)),
        ):
            self.ledger.reapply(edit.id, actor="bob", verdict={}, after={}, expected_head=self.head)
            edit.status = Status.LIVE
            gone = [superseded] if superseded in self.live else []
            for each in gone:
                each.status = Status.SUPERSEDED
            self.revise([each for each in self.live if each not in gone] + [edit])

    @rule(choice=CHOICE)
    def restore(self, choice: int) -> None:
        number = choice % len(self.revisions)
        self.ledger.restore(number, actor="bob", reason="", expected_head=self.head)
        self.revise(self.revisions[number])
        for edit in self.order:
            dead = Status.SUPERSEDED if self.covered(edit) else Status.REVERTED
            edit.status = Status.LIVE if edit in self.live else dead

    @invariant()
    def statuses_are_as_noted(self) -> None:
        page = self.ledger.edits(limit=10_000)
        assert [(item.id, item.status) for item in reversed(page.items)] == [
            (edit.id, edit.status) for edit in self.edits
        ]
        assert self.ledger.waiting() == sum(edit.status is Status.QUEUED for edit in self.edits)

    @invariant()
    def the_ledger_is_as_noted(self) -> None:
        changes = self.ledger.changes(-1)
        assert changes.head == self.head
        assert [patch.edit_id for patch in changes.patches] == [edit.id for edit in self.order]
        live = [span.patch for span in changes.spans if span.until is None]
        assert live == [self.order.index(edit) for edit in self.live]

    def in_work(self) -> list[Noted]:
        return [edit for edit in self.edits if edit.status in (Status.FITTING, Status.JUDGING)]

    def conflict(self, edit: Noted) -> bool:
        return any(edit.conflicts_with(other) for other in self.live if other not in (edit, edit.supersedes))

    def covered(self, edit: Noted, *, without: Noted | None = None) -> bool:
        """A live edit supersedes this one, directly or through others."""
        return any(edit in below(other) for other in self.live if other is not without)

    def returning(self, edit: Noted) -> Noted | None:
        lower = edit.supersedes
        if lower is None or lower.status is not Status.SUPERSEDED or self.covered(lower, without=edit):
            return None
        blocked = any(lower.conflicts_with(other) for other in self.live if other is not edit)
        return None if blocked else lower

    def revise(self, live: list[Noted]) -> None:
        self.revisions.append([edit for edit in self.order if edit in live])


def below(edit: Noted) -> list[Noted]:
    """What the edit supersedes, what that superseded, and so on."""
    found = []
    lower = edit.supersedes
    while lower is not None:
        found.append(lower)
        lower = lower.supersedes
    return found


@contextlib.contextmanager
def expected(error: type[Exception], *, if_: bool) -> Iterator[None]:
    """The block raises `error` exactly if `if_`; the rest of it is left out then."""
    if not if_:
        yield
        return
    with pytest.raises(error):
        yield


def test_a_ledger_stands_where_a_list_on_paper_says(url: str) -> None:
    machine = type("Machine", (LedgerOnPaper,), {"url": url})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=12,
            stateful_step_count=40,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
