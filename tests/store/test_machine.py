"""Whatever is done to a ledger, in whatever order, it stands where a person with pencil and paper would say it does."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import cast

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

from app.engine import Entry, Live
from app.errors import Conflict, ConflictingEdit, NotLive, NotReverted
from app.store import IN_WORK, Accepted, Changes, Evidence, HeadMoved, Learned, Ledger, Status, Store
from editors.composition import Composition
from tests.store.samples import IDENTITY, draft, learned

TEXTS = st.sampled_from(["one", "two"])
LABELS = st.sampled_from(["a", "b", "c"])
ENDS = st.sampled_from([Status.REJECTED, Status.FAILED, Status.NOT_NEEDED, Status.DRY_RUN])
CHOICE = st.integers(min_value=0, max_value=10**6)
DATA = st.sampled_from([b"x", b"y"])
_numbers = count()


@dataclass(slots=True, eq=False)
class Noted:
    """An edit as noted on paper."""

    id: str
    text: str
    target: str
    supersedes: Noted | None
    status: Status = Status.QUEUED
    patch: Laid | None = None  # with which it is, or was last, live
    due: bool = False

    def conflicts_with(self, other: Noted) -> bool:
        return self.text == other.text and self.target != other.target


@dataclass(slots=True, eq=False)
class Laid:
    """A patch as noted on paper, with what the edit's record says while it has this one."""

    edit: Noted
    brought: Learned
    after: object


class LedgerOnPaper(RuleBasedStateMachine):
    """The ledger beside a list of edits and a list of what was live in each revision.

    promised: for each revision, what a process that served it said would be live without each of its edits.
    """

    url: str

    def __init__(self) -> None:
        super().__init__()
        self.identity = replace(IDENTITY, fingerprint=f"sha256:{next(_numbers)}")
        self.edits: list[Noted] = []
        self.order: list[Laid] = []  # of first going live
        self.revisions: list[list[Laid]] = [[]]
        self.promised: list[dict[str, list[int]]] = [{}]
        self.store: Store
        self.ledger: Ledger

    @initialize()
    def open(self) -> None:
        self.store = Store.open(self.url)
        self.ledger = self.store.ledger(self.identity)

    def teardown(self) -> None:
        assert self.ledger.verify() == []
        served = served_from(self.ledger.changes(-1))
        for number, live in enumerate(self.revisions):
            assert list(self.ledger.live_edits(number)) == [patch.edit.id for patch in live]
            assert alive(served, as_of=number) == self.numbers(live)
        for number, promised in enumerate(self.promised):
            for edit_id, remaining in promised.items():
                assert alive(served, as_of=number, exclude=[edit_id]) == remaining
        self.store.close()

    @property
    def live(self) -> list[Noted]:
        return [patch.edit for patch in self.revisions[-1]]

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
            self.commit(self.in_work().index(edit), late=False, data=edit.text.encode())

    @rule(reports=st.lists(st.tuples(TEXTS, LABELS), min_size=2, max_size=2))
    def accept_together(self, reports: list[tuple[str, str]]) -> None:
        noted = [Noted("", text, label, None) for text, label in reports]
        drafts = [draft(text, label) for text, label in reports]
        for edit, outcome in zip(noted, self.ledger.accept_each(drafts, actor="ann", limit=10_000), strict=True):
            assert isinstance(outcome, ConflictingEdit) == self.conflict(edit)
            if isinstance(outcome, Accepted):
                edit.id = outcome.edit_id
                self.edits.append(edit)

    @rule(count=st.integers(1, 2))
    def claim_together(self, count: int) -> None:
        queued = [edit for edit in self.edits if edit.status is Status.QUEUED]
        shown = [record.id for record in self.ledger.queued(count)]
        assert shown == [edit.id for edit in queued[:count]]
        assert [record.id for record in self.ledger.claim_these([edit.id for edit in self.edits[:1]] + shown)] == shown
        for edit in queued[:count]:
            edit.status = Status.FITTING

    @precondition(lambda self: self.edits)
    @rule(choice=CHOICE, backwards=st.booleans(), late=st.booleans(), data=DATA)
    def commit_together(self, choice: int, backwards: bool, late: bool, data: bytes) -> None:
        some = self.in_work()[:: -1 if backwards else 1][:2] or self.edits[choice % len(self.edits) :][:2]
        with expected(HeadMoved, if_=late):
            brought = [self.brought(edit, data, after=number) for number, edit in enumerate(some)]
            records = self.ledger.commit_each(
                [(patch.edit.id, patch.brought) for patch in brought], expected_head=self.head - late
            )
            expected_head = self.head
            for patch in brought:
                if patch.edit.status not in (Status.FITTING, Status.JUDGING) or self.conflict(patch.edit):
                    break
                self.enters(patch)
            assert [record.number for record in records] == list(range(expected_head + 1, self.head + 1))

    @precondition(lambda self: self.edits)
    @rule(choice=CHOICE)
    def judge(self, choice: int) -> None:
        edit = self.edits[choice % len(self.edits)]
        assert self.ledger.judging(edit.id) == (edit.status in (Status.FITTING, Status.JUDGING))
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
    @rule(choice=CHOICE, late=st.booleans(), data=DATA)
    def commit(self, choice: int, late: bool, data: bytes) -> None:
        edit = self.in_work()[choice % len(self.in_work())]
        with (
            expected(ConflictingEdit, if_=self.conflict(edit)),
            expected(HeadMoved, if_=late and not self.conflict(edit)),
        ):
            patch = self.brought(edit, data)
            self.ledger.commit(edit.id, patch.brought, expected_head=self.head - late)
            self.enters(patch)

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
    @rule(choice=CHOICE, late=st.booleans(), breaks=st.integers(0, 2**8 - 1), refit=st.booleans())
    def revert(self, choice: int, late: bool, breaks: int, refit: bool) -> None:
        replacements = [edit for edit in self.live if edit.supersedes is not None]
        pool = replacements or self.live or self.edits
        edit = pool[choice % len(pool)]
        live = edit in self.live
        returning = self.returning(edit) if live else None
        assert not live or self.ledger.returning(edit.id) == (returning.id if returning else None)
        # A process knows when patches were live, not how their edits stand: an edit that was reverted before another
        # replaced it is to the process like one that was replaced.
        gone_before = edit.supersedes is not None and edit.supersedes.status is Status.REVERTED
        promised = None if gone_before else self.promised[-1].get(edit.id)
        broken = [each for number, each in enumerate(self.edits) if breaks >> number % 8 & 1]
        moved = late and (live or edit.status is Status.REVERTED)  # it may be that move that has reverted it
        with expected(NotLive, if_=not live and not moved), expected(HeadMoved, if_=moved):
            self.ledger.revert(
                edit.id,
                actor="bob",
                reason="",
                verdict={},
                expected_head=self.head - late,
                broken=[each.id for each in broken],
                refit=refit,
            )
            edit.status = Status.REVERTED
            remaining = [each for each in self.live if each is not edit]
            if returning is not None:
                returning.status = Status.LIVE
                remaining.append(returning)
            self.revise(remaining)
            assert gone_before or promised == self.numbers(self.revisions[-1])
            for each in below(edit):
                if each.status is not Status.SUPERSEDED or self.covered(each):
                    break
                each.status = Status.REVERTED
            for each in broken:
                each.due = each.due or (refit and each in self.live)

    @precondition(lambda self: self.order)
    @rule(choice=CHOICE, late=st.booleans(), data=DATA)
    def refit(self, choice: int, late: bool, data: bytes) -> None:
        pool = [edit for edit in self.edits if edit.due] or self.edits
        edit = pool[choice % len(pool)]
        with expected(HeadMoved, if_=edit.due and late):
            patch = self.brought(edit, data)
            record = self.ledger.refit(edit.id, patch.brought, expected_head=self.head - late)
            assert (record is not None) == edit.due
            if edit.due:
                live = self.live
                self.lay(patch)
                self.revise(live)

    @precondition(lambda self: self.order)
    @rule(choice=CHOICE)
    def give_up(self, choice: int) -> None:
        edit = self.edits[choice % len(self.edits)]
        assert self.ledger.refit_failed(edit.id, reason="No.", verdict=None) == edit.due
        edit.due = False

    @precondition(lambda self: self.order)
    @rule(choice=CHOICE)
    def reapply(self, choice: int) -> None:
        once_live = [edit for edit in self.edits if edit.patch is not None]
        pool = [edit for edit in once_live if edit.status is Status.REVERTED] or once_live
        edit = pool[choice % len(pool)]
        reverted = edit.status is Status.REVERTED
        superseded = edit.supersedes
        with (
            expected(NotReverted, if_=not reverted),
            expected(ConflictingEdit, if_=reverted and (self.conflict(edit) or self.covered(edit))),
        ):
            after = {"again": self.head}
            self.ledger.reapply(edit.id, actor="bob", verdict={}, after=after, expected_head=self.head)
            assert edit.patch is not None
            edit.patch.after = after
            edit.status = Status.LIVE
            gone = [superseded] if superseded in self.live else []
            for each in gone:
                each.status = Status.SUPERSEDED
            self.revise([each for each in self.live if each not in gone] + [edit])

    @rule(choice=CHOICE)
    def restore(self, choice: int) -> None:
        number = choice % len(self.revisions)
        self.ledger.restore(number, actor="bob", reason="", expected_head=self.head)
        for patch in self.revisions[number]:
            self.enter(patch)
        self.revise([patch.edit for patch in self.revisions[number]])
        for edit in self.edits:
            if edit.patch is None:
                continue
            dead = Status.SUPERSEDED if self.covered(edit) else Status.REVERTED
            edit.status = Status.LIVE if edit in self.live else dead

    @invariant()
    def edits_are_as_noted(self) -> None:
        """Each with its status, with its patch and the evidence of that patch, and waiting for another or not."""
        page = self.ledger.edits(limit=10_000)
        for edit, item in zip(self.edits, reversed(page.items), strict=True):
            assert (item.id, item.status, item.refit_due is not None) == (edit.id, edit.status, edit.due)
            if edit.patch is not None:
                brought = edit.patch.brought
                assert item.patch is not None
                assert (item.patch.sha256, item.fit, item.after) == (brought.sha256, brought.fit, edit.patch.after)
        assert self.ledger.waiting() == sum(edit.status is Status.QUEUED for edit in self.edits)
        claimed = self.ledger.claim_refit()
        assert (claimed.id if claimed else None) == next((edit.id for edit in self.edits if edit.due), None)

    @invariant()
    def the_ledger_is_as_noted(self) -> None:
        changes = self.ledger.changes(-1)
        assert changes.head == self.head
        assert [patch.edit_id for patch in changes.patches] == [patch.edit.id for patch in self.order]
        live = [span.patch for span in changes.spans if span.until is None]
        assert live == self.numbers(self.revisions[-1])
        served = served_from(changes)
        for edit in self.edits:
            assert served.patch_of(edit.id) == (None if edit.patch is None else self.order.index(edit.patch))
        for number in range(len(self.promised), len(self.revisions)):  # two, where edits went live together
            edit_ids = [patch.edit.id for patch in self.revisions[number]]
            self.promised.append({each: alive(served, as_of=number, exclude=[each]) for each in edit_ids})

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

    def enters(self, patch: Laid) -> None:
        """The patch goes live for the first time, and with it its edit, which may take another's place."""
        edit = patch.edit
        self.lay(patch)
        edit.status = Status.LIVE
        gone = [edit.supersedes] if edit.supersedes in self.live else []
        for each in gone:
            each.status = Status.SUPERSEDED
        self.revise([each for each in self.live if each not in gone] + [edit])

    def brought(self, edit: Noted, data: bytes, *, after: int = 0) -> Laid:
        """A patch for an edit, whose fit is like no other's; that many others are brought before it."""
        brought = replace(learned(data), fit={"steps": len(self.order) + after})
        return Laid(edit, brought, brought.after)

    def lay(self, patch: Laid) -> None:
        self.order.append(patch)
        self.enter(patch)

    def enter(self, patch: Laid) -> None:
        """It becomes its edit's patch; whatever the edit waited for, it waits no more if that is another one."""
        if patch.edit.patch is not patch:
            patch.edit.due = False
        patch.edit.patch = patch

    def revise(self, live: list[Noted]) -> None:
        self.revisions.append([patch for patch in self.order if patch.edit in live and patch.edit.patch is patch])
        for edit in self.edits:
            edit.due = edit.due and edit in live

    def numbers(self, live: list[Laid]) -> list[int]:
        return [self.order.index(patch) for patch in live]


def served_from(changes: Changes) -> Live:
    """What a process serves that has read all that happened; of its patches only the number counts here."""
    spans: dict[int, tuple[tuple[int, int | None], ...]] = {}
    for span in changes.spans:
        spans[span.patch] = (*spans.get(span.patch, ()), (span.since, span.until))
    entries = tuple(
        Entry(patch.edit_id, patch.supersedes, patch.input_key, patch.target, spans[patch.number])
        for patch in changes.patches
    )
    uncompiled = cast(Composition, range(len(entries)))  # of an overlay only the length is asked here
    return Live(changes.head, uncompiled, entries)


def alive(live: Live, *, as_of: int | None = None, exclude: Sequence[str] = ()) -> list[int]:
    """The numbers of the patches that an answer would see."""
    numbers: list[int] = live.view(as_of=as_of, exclude=exclude).alive.nonzero().flatten().tolist()
    return numbers


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
            max_examples=8,
            stateful_step_count=40,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
