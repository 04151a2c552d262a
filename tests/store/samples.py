"""Reports, patches and edits in a state, as short as a test wants to say them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from app.store import Draft, Evidence, Learned, Ledger, ModelIdentity, RevisionRecord, Status

IDENTITY = ModelIdentity(fingerprint="sha256:aa", name="tiny", task="classification", site="last", dtype="float32")
OTHER_IDENTITY = ModelIdentity(
    fingerprint="sha256:bb", name="other", task="classification", site="last", dtype="float32"
)
UNKNOWN = "00000000-0000-7000-8000-000000000000"


def draft(
    text: str = "where is my card",
    target: str = "card_arrival",
    *,
    supersedes: str | None = None,
    reason: str = "",
    editor: str = "transformer-patcher",
) -> Draft:
    return Draft(
        input=text,
        input_key=text.casefold(),
        target=target,
        rephrases=("my card is not here",),
        keep=("what is my balance",),
        editor=editor,
        options={"steps": 400, "lam": 0.01},
        reason=reason,
        reporter="ann",
        dry_run=False,
        supersedes=supersedes,
    )


def learned(patch: bytes = b"patch") -> Learned:
    return Learned(
        patch=patch,
        sha256=hashlib.sha256(patch).hexdigest(),
        format="safetensors/1",
        before={"prediction": {"label": "card_arrival", "score": 0.1 + 0.2}, "rephrases": []},
        after={"prediction": {"label": "lost_card", "score": 1e-17}, "rephrases": []},
        verdict={"passed": True, "gates": []},
        fit={"steps": 3, "seconds": 0.25},
        activations=b"rows of " + patch,
    )


def accept(ledger: Ledger, text: str = "where is my card", target: str = "card_arrival", **more: str | None) -> str:
    return ledger.accept(draft(text, target, **more), actor="ann", limit=1000).edit_id  # type: ignore[arg-type]


def claimed(ledger: Ledger, text: str = "where is my card", target: str = "card_arrival", **more: str | None) -> str:
    """The only edit in the queue, taken into work."""
    edit_id = accept(ledger, text, target, **more)
    record = ledger.claim()
    assert record is not None
    assert record.id == edit_id
    return edit_id


def live(ledger: Ledger, text: str = "where is my card", target: str = "card_arrival", **more: str | None) -> str:
    """An edit that has gone live with a patch of its own."""
    edit_id = claimed(ledger, text, target, **more)
    assert ledger.commit(edit_id, learned(edit_id.encode()), expected_head=ledger.head()) is not None
    return edit_id


def rejected(ledger: Ledger) -> str:
    edit_id = claimed(ledger)
    assert ledger.finish(edit_id, Status.REJECTED, Evidence(verdict={"passed": False}), detail={})
    return edit_id


def revert(ledger: Ledger, edit_id: str, *, broken: Sequence[str] = (), refit: bool = False) -> RevisionRecord:
    return ledger.revert(
        edit_id,
        actor="bob",
        reason="wrong",
        verdict={"passed": True},
        expected_head=ledger.head(),
        broken=broken,
        refit=refit,
    )


def broken(ledger: Ledger, *texts: str) -> list[str]:
    """Live edits, one a text, that wait to be fitted again since the removal of another."""
    edit_ids = [live(ledger, text) for text in texts]
    revert(ledger, live(ledger, "removed"), broken=edit_ids, refit=True)
    return edit_ids


def refit(ledger: Ledger, edit_id: str, patch: bytes = b"another patch") -> RevisionRecord | None:
    """A new patch, whose evidence is that of no other."""
    brought = replace(learned(patch), after={"refitted": patch.decode()}, fit={"steps": len(patch)})
    return ledger.refit(edit_id, brought, expected_head=ledger.head())


def reapply(ledger: Ledger, edit_id: str) -> RevisionRecord:
    return ledger.reapply(
        edit_id, actor="bob", verdict={"passed": True, "again": 1}, after={"again": 1}, expected_head=ledger.head()
    )


def restore(ledger: Ledger, number: int) -> RevisionRecord:
    return ledger.restore(number, actor="bob", reason="back", expected_head=ledger.head())


def status(ledger: Ledger, edit_id: str) -> Status:
    return ledger.edit(edit_id).status


def events(ledger: Ledger, edit_id: str) -> list[str]:
    return [row.event for row in ledger.history(edit_id)]
