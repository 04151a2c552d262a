"""What all work on edits is done with: the parts of one process that edits pass through."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from app.editing.events import Listeners
from app.editing.outcome import Answers, Encoded, own_gates
from app.engine import Engine, Live, View
from app.follower import Follower
from app.judge import Exemption, Gate, Judge
from app.memory import Memory
from app.store import Draft, Ledger
from editors.registry import editor_named
from editors.types import Editor


@dataclass(frozen=True, slots=True)
class Workshop:
    """The joined parts, and what follows from several of them at once."""

    ledger: Ledger
    engine: Engine
    follower: Follower
    judge: Judge
    memory: Memory
    editors: Mapping[str, Editor]
    listeners: Listeners
    new_tokens: int
    """How many tokens a generating model writes when nobody says how many."""

    def editor(self, name: str) -> Editor:
        """The editor of that name. Raises UnknownEditor."""
        return editor_named(name, self.editors)

    async def answers(self, encoded: Encoded, view: View) -> Answers:
        """What the model says to an edit's texts under a view."""
        return await Answers.under(self.engine, encoded, view, new_tokens=self.new_tokens)

    def own_gates(self, draft: Draft, before: Answers, after: Answers) -> list[Gate]:
        """The gates of an edit's own texts."""
        required, settings = self.judge.required.rephrases, self.engine.model.decoding_settings
        return own_gates(draft, before, after, rephrases_required=required, decoding=settings)

    def beside(self, draft: Draft, live: Live) -> Tensor:
        """What stays live beside an edit, as a mask over the overlay: everything but the edit it supersedes."""
        alive = live.alive.clone()
        if draft.supersedes is not None:
            alive[list(live.patches_of(draft.supersedes))] = False
        return alive

    def exempt(self, draft: Draft, live: Live) -> Exemption:
        """What an edit is meant to change: the one it supersedes, and guard inputs equal to an edited one."""
        superseded = frozenset({draft.supersedes} if draft.supersedes is not None else ())
        return Exemption(superseded, self.memory.edits.input_keys(live.live_edits()) | {draft.input_key})
