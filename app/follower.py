"""The only way to live: makes what this process serves equal to the newest revision in the database.

Start, an edit, a revert, a restore, and the changes of other processes all pass here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from itertools import islice

import structlog

from app.engine import Engine, Entry, Live
from app.memory import Memory, Shelving
from app.observe import Metrics
from app.store import Changes, Ledger, LoadedPatch
from editors import codec
from editors.errors import CorruptPatch
from editors.registry import editor_named
from editors.types import Editor, Patch

AT_ONCE = 256
"""Patches that are compiled together."""

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
            former = self._engine.live
            live = await asyncio.to_thread(self._newest, former)
            if live is not former:
                self._engine.swap(live)
                self._show(live)
            return live

    async def follow(self, seconds: float) -> None:
        """Catch up every so often, for the changes of other processes, until cancelled."""
        while True:
            await asyncio.sleep(seconds)
            try:
                await self.catch_up()
            except Exception:  # the job boundary: the database may be away for a while
                log.exception("cannot follow the ledger")

    def _newest(self, live: Live) -> Live:
        changes = self._ledger.changes(live.revision)
        return self._follow(live, changes) if changes.head > live.revision else live

    def _follow(self, live: Live, changes: Changes) -> Live:
        overlay, device = live.overlay, self._engine.model.device
        loaded = self._ledger.loaded(changes.patches)
        while some := list(islice(loaded, AT_ONCE)):
            overlay = overlay.extend(self._checked(some))
            readings = codec.decode_rows_each(each.activations for each in some)
            self._memory.edits.put(
                [
                    Shelving(each.patch.edit_id, each.patch.input_key, each.texts, reading.to(device))
                    for each, reading in zip(some, readings, strict=True)
                ]
            )
        fresh = [Entry(patch.edit_id, patch.supersedes, patch.input_key, patch.target) for patch in changes.patches]
        spans = [(span.patch, (span.since, span.until)) for span in changes.spans]
        return live.followed(changes.head, overlay, fresh, spans)

    def _checked(self, loaded: Sequence[LoadedPatch]) -> list[Patch]:
        model = self._engine.model
        for each in loaded:
            if codec.sha256(each.content) != each.patch.sha256:
                named = f"the patch of edit {each.patch.edit_id}"
                raise CorruptPatch(f"The bytes of {named} are not those of {each.patch.sha256}.")
        patches = codec.decode_each(each.content for each in loaded)
        for patch in {patch.header: patch for patch in patches}.values():
            editor = editor_named(patch.header.editor, self._editors)
            codec.check(patch, base=model.fingerprint, sites=model.sites, dtype=model.dtype, editor=editor)
        return patches

    def _show(self, live: Live) -> None:
        edits = int(live.alive.sum())
        self._metrics.revision.set(live.revision)
        self._metrics.edits_live.set(edits)
        log.info("live", revision=live.revision, edits=edits)
