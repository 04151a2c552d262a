"""The only way to live: makes what this process serves equal to the newest revision in the database.

Start, an edit, a revert, a restore, and the changes of other processes all pass here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace

import structlog

from app.engine import Engine, Entry, Live
from app.memory import Memory
from app.observe import Metrics
from app.store import Changes, Ledger, LedgerPatch
from editors import codec
from editors.errors import CorruptPatch
from editors.registry import editor_named
from editors.types import Editor, Patch

log = structlog.get_logger()


class Follower:
    """Follows the ledger of one model."""

    def __init__(
        self, ledger: Ledger, engine: Engine, memory: Memory, editors: Mapping[str, Editor], metrics: Metrics
    ) -> None:
        self._ledger = ledger
        self._editors = editors
        self._engine = engine
        self._memory = memory
        self._metrics = metrics
        self._one_at_a_time = asyncio.Lock()

    async def catch_up(self) -> Live:
        """Serve the newest revision of the ledger; returns what is served."""
        async with self._one_at_a_time:
            head = await asyncio.to_thread(self._ledger.head)
            if head > self._engine.live.revision:
                changes = await asyncio.to_thread(self._ledger.changes, self._engine.live.revision)
                live = await asyncio.to_thread(self._follow, self._engine.live, changes)
                self._engine.swap(live)
                self._show(live)
            return self._engine.live

    async def follow(self, seconds: float) -> None:
        """Catch up every so often, for the changes of other processes, until cancelled."""
        while True:
            await asyncio.sleep(seconds)
            try:
                await self.catch_up()
            except Exception:  # the job boundary: the database may be away for a while
                log.exception("cannot follow the ledger")

    def _follow(self, live: Live, changes: Changes) -> Live:
        patches = [self._checked(patch, data) for patch, data in self._read(changes)]
        edit_ids = [patch.edit_id for patch in changes.patches]
        activations, texts = self._ledger.activations(edit_ids), self._ledger.texts(edit_ids)
        for patch in changes.patches:
            reading = codec.decode_rows(activations[patch.edit_id]).to(self._engine.model.device)
            self._memory.edits.put(patch.edit_id, patch.input_key, texts[patch.edit_id], reading)
        return Live(changes.head, live.overlay.extend(patches), _entries(live, changes))

    def _read(self, changes: Changes) -> list[tuple[LedgerPatch, bytes]]:
        data = self._ledger.patch_bytes([patch.number for patch in changes.patches])
        return list(zip(changes.patches, data, strict=True))

    def _checked(self, patch: LedgerPatch, data: bytes) -> Patch:
        model = self._engine.model
        if codec.sha256(data) != patch.sha256:
            raise CorruptPatch(f"The bytes of the patch of edit {patch.edit_id} are not those of {patch.sha256}.")
        decoded = codec.decode(data)
        editor = editor_named(decoded.header.editor, self._editors)
        codec.check(decoded, base=model.fingerprint, sites=model.sites, dtype=model.dtype, editor=editor)
        return decoded

    def _show(self, live: Live) -> None:
        self._metrics.revision.set(live.revision)
        self._metrics.edits_live.set(int(live.alive.sum()))
        log.info("live", revision=live.revision, edits=int(live.alive.sum()))


def _entries(live: Live, changes: Changes) -> tuple[Entry, ...]:
    """The ledger's entries after `changes`: new patches at the end, spans opened and closed."""
    fresh = (Entry(patch.edit_id, patch.supersedes, patch.input_key, patch.target) for patch in changes.patches)
    entries = [*live.entries, *fresh]
    for span in changes.spans:
        former = [pair for pair in entries[span.patch].spans if pair[0] != span.since]
        spans = sorted([*former, (span.since, span.until)], key=lambda pair: pair[0])
        entries[span.patch] = replace(entries[span.patch], spans=tuple(spans))
    return tuple(entries)
