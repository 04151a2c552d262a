"""What all work on edits is done with: the parts of one process that edits pass through."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from torch import Tensor

from app.editing.events import Listeners
from app.editing.outcome import Answers, Encoded, own_gates
from app.engine import Engine, Live, View
from app.follower import Follower
from app.guarding import Guarding
from app.judge import Exemption, Gate, Judge, Outdated, Required
from app.memory import Memory
from app.store import Draft, HeadMoved, Ledger
from editors.layers import LayerSite
from editors.registry import editor_named, options_of
from editors.site import Site
from editors.types import Editor

S = TypeVar("S")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Workshop:
    """The joined parts, and what follows from several of them at once."""

    ledger: Ledger
    engine: Engine
    follower: Follower
    judge: Judge
    memory: Memory
    guarding: Guarding
    editors: Mapping[str, Editor]
    listeners: Listeners
    new_tokens: int
    """How many tokens a generating model writes when nobody says how many."""
    judging: asyncio.Lock = field(default_factory=asyncio.Lock)

    def editor(self, name: str) -> Editor:
        """The editor of that name. Raises UnknownEditor."""
        return editor_named(name, self.editors)

    def options(self, editor: str, given: Mapping[str, Any]) -> Any:
        """The editor's options for this model with the values `given`. Raises UnknownEditor and BadOptions."""
        sites = self.engine.model.sites
        options = options_of(self.editor(editor), given, sites.family)
        self.editor(editor).site(sites, options)
        return options

    def site(self, draft: Draft) -> Site | LayerSite:
        """Where the patch of an edit meets the model. Raises UnknownEditor and BadOptions."""
        return self.editor(draft.editor).site(self.engine.model.sites, self.options(draft.editor, draft.options))

    async def judged(self, slices: Generator[S, None, T], on_slice: Callable[[S], None] = lambda done: None) -> T:
        """Run work of the judge on the device thread, one at a time. Raises HeadMoved for a former revision."""
        head = self.engine.live.revision
        async with self.judging:
            try:
                return await self.engine.work(slices, on_slice)
            except Outdated:
                raise HeadMoved(head, self.engine.live.revision) from None

    async def answers(self, encoded: Encoded, view: View) -> Answers:
        """What the model says to an edit's texts under a view."""
        return await Answers.under(self.engine, encoded, view, new_tokens=self.new_tokens)

    def required(self, draft: Draft) -> Required:
        """What the gates require of an edit: what the service does, or more where the report asks for it."""
        return self.judge.required.tightened(draft.required)

    def own_gates(self, draft: Draft, before: Answers, after: Answers) -> list[Gate]:
        """The gates of an edit's own texts."""
        required, settings = self.required(draft).rephrases_hold, self.engine.model.decoding_settings
        return own_gates(draft, before, after, rephrases_required=required, decoding=settings)

    def beside(self, replaced: str | None, live: Live) -> Tensor:
        """What stays live beside an edit, as a mask over the overlay: everything but the patches that it replaces.

        replaced: the edit whose they are: the one that it supersedes, or itself if it is fitted again.
        """
        alive = live.alive.clone()
        if replaced is not None:
            alive[list(live.patches_of(replaced))] = False
        return alive

    def exempt(self, draft: Draft, *, replaced: str | None) -> Exemption:
        """What an edit is meant to change: what it replaces, and guard inputs equal to its own."""
        return Exemption(frozenset({replaced} if replaced is not None else ()), frozenset({draft.input_key}))
