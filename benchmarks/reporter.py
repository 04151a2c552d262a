"""Mistakes reported to a service one after the other, in a journal that remembers how far that has come.

Each report has a key of its own, so one that was answered but not yet written down is found again, not made twice.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from app.cli.client import Client, Problem
from app.cli.documents import Draft
from benchmarks.journal import Journal
from benchmarks.reporting import WAIT, Entry, Service

REFUSED = frozenset(
    {"edit_rejected", "edit_failed", "conflicting_edit", "unwritable_target", "unknown_label", "input_too_long"}
)
"""Refusals of one report; after any other the experiment cannot go on."""
IN_WORK = frozenset({"queued", "fitting", "judging"})


@dataclass(frozen=True, slots=True)
class Report:
    """How the service answered one report."""

    status: str  # of the edit, or the code of the refusal
    right: bool  # directly afterwards, written freely
    revision: int  # the newest one afterwards
    seconds: float | None = None  # over HTTP, of an edit; None for one that was found again after an interruption
    fit_seconds: float | None = None
    bytes: int | None = None  # of the patch
    failed_gates: tuple[str, ...] = ()
    consistency: Mapping[str, float] | None = None  # of the guard, unedited and now

    @property
    def live(self) -> bool:
        """Whether it became an edit."""
        return self.status == "live"

    @property
    def accepted(self) -> bool:
        """Whether it became an edit, or was right already."""
        return self.status in ("live", "not_needed")


class Reporter:
    """Reports mistakes in their order, from where the journal ends."""

    def __init__(
        self, client: Client, editor: str, options: Mapping[str, Any], *, seed: int, mistakes: Sequence[Entry]
    ) -> None:
        self._client, self._editor, self._options = client, editor, dict(options)
        self._seed, self._mistakes = seed, mistakes
        self._service = Service(client, options, editor=editor)

    def go_on(self, journal: Journal) -> None:
        """Report the next mistake, and write down how it ended."""
        former = journal[-1]["revision"] if journal else 0
        journal.add(asdict(self._report(len(journal), former)))

    def _report(self, index: int, former: int) -> Report:
        entry = self._mistakes[index]
        began_at, began = datetime.now(UTC), time.perf_counter()
        try:
            edit = self._ended(entry, key=f"sme-{self._seed}-{index}")
        except Problem as refusal:
            if refusal.code not in REFUSED:
                raise
            gates = tuple(gate["name"] for gate in refusal.document.get("gates", ()))
            return Report(refusal.code, self._is_right(entry, former), former, failed_gates=gates)
        seconds = time.perf_counter() - began
        found_again = datetime.fromisoformat(edit["created_at"]) < began_at
        revision = edit["revision"] if edit["status"] == "live" else former
        return Report(
            status=edit["status"],
            right=self._is_right(entry, revision),
            revision=revision,
            seconds=None if found_again else seconds,
            fit_seconds=edit["fit"] and edit["fit"]["seconds"],
            bytes=edit["patch"] and edit["patch"]["bytes"],
            consistency=_consistency(edit["verdict"]),
        )

    def _ended(self, entry: Entry, key: str) -> Any:
        """The record of the edit when it has ended."""
        draft = Draft(input=entry.input, target=entry.target, editor=self._editor, options=self._options)
        while (edit := self._client.report(draft, key=key, wait=WAIT))["status"] in IN_WORK:
            continue
        return edit

    def _is_right(self, entry: Entry, revision: int) -> bool:
        (said,) = self._service.says([entry.input], as_of=revision)
        return said == entry.target.strip()


def reports(journal: Journal) -> list[Report]:
    """What is written in a journal of reports."""
    return [Report(**{**row, "failed_gates": tuple(row["failed_gates"])}) for row in journal]


def _consistency(verdict: Mapping[str, Any] | None) -> Mapping[str, float] | None:
    guard = (verdict or {}).get("guard") or {}
    consistency: Mapping[str, float] | None = guard.get("consistency")
    return consistency
