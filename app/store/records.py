"""What the store takes and gives: plain frozen values, never rows of a session.

JSON values stand for what the callers' contract shows; the store keeps them and does not read them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

Json = Mapping[str, Any]


class Status(StrEnum):
    """Where an edit stands."""

    QUEUED = "queued"
    FITTING = "fitting"
    JUDGING = "judging"
    LIVE = "live"
    REJECTED = "rejected"
    FAILED = "failed"
    CANCELLED = "cancelled"
    NOT_NEEDED = "not_needed"
    DRY_RUN = "dry_run"
    REVERTED = "reverted"
    SUPERSEDED = "superseded"
    QUARANTINED = "quarantined"


IN_WORK = frozenset({Status.QUEUED, Status.FITTING, Status.JUDGING})
"""Edits that the queue still owes an end."""

IN_HAND = frozenset({Status.FITTING, Status.JUDGING})
"""Edits that a worker has claimed."""


class Cause(StrEnum):
    """Why a revision was made."""

    BASE = "base"  # revision 0, the unedited model
    EDIT = "edit"
    REVERT = "revert"
    REAPPLY = "reapply"
    RESTORE = "restore"
    REFIT = "refit"  # a live edit that a removal had broken got another patch


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """A model as the ledger knows it: weights, never a path alone."""

    fingerprint: str
    name: str
    task: str
    site: str
    dtype: str


@dataclass(frozen=True, slots=True)
class Draft:
    """A reported mistake, as accepted. `input_key` is the same for inputs that differ in nothing that counts.

    required: what the report asks of the judge beyond what the service does; empty if nothing.
    """

    input: str
    input_key: str
    target: str
    rephrases: tuple[str, ...]
    keep: tuple[str, ...]
    editor: str
    options: Json
    reason: str
    reporter: str
    dry_run: bool
    supersedes: str | None
    required: Json = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class IdempotencyKey:
    """A caller's key and the hash of the body it was sent with."""

    key: str
    body_hash: str


@dataclass(frozen=True, slots=True)
class Accepted:
    """`replayed` says that the idempotency key had already made this edit."""

    edit_id: str
    replayed: bool


@dataclass(frozen=True, slots=True)
class HistoryRow:
    """One thing that happened, chained: `hash` covers the row and the hash of the row before it."""

    seq: int
    edit_id: str | None
    at: datetime
    event: str
    actor: str
    detail: Json
    hash: str


@dataclass(frozen=True, slots=True)
class PatchSummary:
    """What the audit record says of a patch."""

    sha256: str
    bytes: int
    format: str


@dataclass(frozen=True, slots=True)
class EditRecord:
    """An edit with its whole life and evidence. `history` is empty in listings."""

    id: str
    status: Status
    draft: Draft
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    revision: int | None  # in which it last went live
    reverted_at: datetime | None
    reverted_revision: int | None
    refit_due: int | None  # the revision since which it waits to be fitted again
    before: Json | None
    after: Json | None
    verdict: Json | None
    fit: Json | None
    failure: str | None  # why it failed, for the status `failed`
    patch: PatchSummary | None  # the one with which it is, or was last, live
    hits: int
    last_hit_at: datetime | None
    history: tuple[HistoryRow, ...] = ()


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a listing, newest first. `next_cursor` is None on the last one."""

    items: tuple[EditRecord, ...]
    next_cursor: str | None


@dataclass(frozen=True, slots=True)
class Evidence:
    """What an edit was found to do, whether it went live or not."""

    before: Json | None = None
    after: Json | None = None
    verdict: Json | None = None
    fit: Json | None = None
    failure: str | None = None


@dataclass(frozen=True, slots=True)
class Learned:
    """What a judged edit brings to its commit. `activations` are bytes that spare computing them again."""

    patch: bytes
    sha256: str
    format: str
    before: Json
    after: Json
    verdict: Json
    fit: Json
    activations: bytes

    @property
    def evidence(self) -> Evidence:
        return Evidence(self.before, self.after, self.verdict, self.fit)


@dataclass(frozen=True, slots=True)
class RevisionRecord:
    """A numbered set of live patches. `hash` covers the parent's hash, the cause and the set."""

    number: int
    cause: Cause
    edit_id: str | None
    actor: str
    at: datetime
    hash: str


@dataclass(frozen=True, slots=True)
class RevisionPage:
    items: tuple[RevisionRecord, ...]
    next_cursor: str | None


@dataclass(frozen=True, slots=True)
class LedgerPatch:
    """A patch that was live at some time. `number` counts from 0 in ledger order: the order of first going live."""

    number: int
    sha256: str
    edit_id: str
    supersedes: str | None
    target: str
    input_key: str


@dataclass(frozen=True, slots=True)
class LoadedPatch:
    """A patch with all that a process needs to serve it and to judge others against it."""

    patch: LedgerPatch
    content: bytes
    activations: bytes
    texts: tuple[str, ...]  # the edit's input, and its rephrases


@dataclass(frozen=True, slots=True)
class Span:
    """The patch is live in revisions since <= n < until; `until` None: it still is."""

    patch: int  # LedgerPatch.number
    since: int
    until: int | None


@dataclass(frozen=True, slots=True)
class Changes:
    """What happened to the ledger after a revision: new patches, and every span opened or closed since."""

    head: int
    patches: tuple[LedgerPatch, ...]
    spans: tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class GuardRecord:
    """The inputs that no edit may change, as someone put them. `sha256` is of their bytes; None: withdrawn."""

    number: int  # counts from 1
    sha256: str | None
    inputs: int
    actor: str
    at: datetime


@dataclass(frozen=True, slots=True)
class Flaw:
    """Something in the store that is not as its hashes say. `where` names it, `what` is a sentence."""

    where: str
    what: str
