"""Patches of several editors and sites as one, and what a change of them can reach."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from editors.codebook import Grace
from editors.composition import NOTHING, Composition
from editors.errors import UnknownEditor
from editors.layers import LayerSite
from editors.neuron import TransformerPatcher
from editors.types import Patch
from editors.visit import Visit
from tests.editors.editing import acting, all_alive, empty, header, history, keys_of, tiny
from tests.editors.test_codebook import Answer, Entry, Point, entries_, points

MODEL = tiny("bert")
HIDDEN = MODEL.join.site.hidden
SITES = MODEL.join.sites
FIRST, LAST = (SITES.at(layer, "first", layer) for layer in SITES.layers)
ANOTHER = SITES.at(SITES.layers[0], "mean", SITES.layers[0])
BOOKS = (FIRST, ANOTHER, LAST)
"""In the order of asking."""


def entry(site: LayerSite, key: Point, reach: float = 1.0, answer: Answer = (1,)) -> Patch:
    one = Entry(key, reach, answer).patch(HIDDEN)
    return replace(one, header=header(Grace(), site.name))


def neuron(seed: int = 0) -> Patch:
    """One that fires on about half of all rows."""
    drawn = torch.randn(2, HIDDEN, generator=torch.Generator().manual_seed(seed))
    tensors = {
        "keys": drawn[:1],
        "biases": torch.zeros(1),
        "values": drawn[1:],
        "activations": torch.zeros(1, dtype=torch.uint8),
    }
    return Patch(header(TransformerPatcher()), tensors)


def at_sites(*queries: Sequence[Point]) -> dict[str, Tensor]:
    """Keys of texts by site: for each site those of all texts."""
    given = {}
    for site, points_ in zip(BOOKS, queries, strict=True):
        given[site.name] = torch.zeros(len(points_), HIDDEN)
        given[site.name][:, : len(points_[0])] = torch.tensor(points_)
    return given


def found(overlay: Composition, keys: dict[str, Tensor], alive: Tensor) -> list[int]:
    texts = torch.arange(len(keys[FIRST.name]))
    entered: list[int] = overlay.found(keys, alive, texts).tolist()
    return entered


AT, AWAY = (1.0, 0.0, 0.0), (50.0, 0.0, 0.0)

sited = st.tuples(st.sampled_from(BOOKS), entries_)


@given(
    patches=st.lists(sited, min_size=1, max_size=9),
    queries=st.lists(st.tuples(points(), points(), points()), min_size=1, max_size=7),
    before=st.lists(st.booleans(), min_size=9, max_size=9),
    changed=st.sets(st.integers(0, 8), min_size=1, max_size=3),
)
@settings(max_examples=200, deadline=None)
def test_no_text_outside_of_what_a_change_reaches_finds_another_entry_after_it(
    patches: list[tuple[LayerSite, Entry]],
    queries: list[tuple[Point, Point, Point]],
    before: list[bool],
    changed: set[int],
) -> None:
    """Over three sites, of which a text that has found an entry looks no further; and neurons in between."""
    overlay = empty(MODEL)
    for site, one in patches:
        overlay = overlay.extend([entry(site, one.key, one.reach, one.answer)])
    overlay = overlay.extend([neuron()])
    keys = at_sites(*zip(*queries, strict=True))
    numbers = sorted(number for number in changed if number < len(patches))
    alive = torch.tensor([*before[: len(patches)], True])
    later = alive.clone()
    later[numbers] = ~later[numbers]
    later[-1] = False  # of the neuron
    reached = set(overlay.reached_by(keys, alive, later).tolist())
    pairs = zip(found(overlay, keys, alive), found(overlay, keys, later), strict=True)
    assert {text for text, (one, other) in enumerate(pairs) if one != other} <= reached


def test_a_text_that_found_an_entry_looks_no_further() -> None:
    overlay = empty(MODEL).extend([entry(LAST, AT), entry(ANOTHER, AT), entry(FIRST, AT)])
    keys = at_sites([AT, AWAY, AWAY, AWAY], [AT, AT, AWAY, AWAY], [AT, AT, AT, AWAY])
    assert found(overlay, keys, torch.tensor([True, True, True])) == [2, 1, 0, NOTHING]
    assert found(overlay, keys, torch.tensor([True, True, False])) == [1, 1, 0, NOTHING]
    assert found(overlay, keys, torch.tensor([True, False, False])) == [0, 0, 0, NOTHING]


def test_only_the_texts_that_are_asked_are_answered_for() -> None:
    overlay = empty(MODEL).extend([entry(FIRST, AT)])
    keys = at_sites([AWAY, AT, AT], [AWAY] * 3, [AWAY] * 3)
    assert overlay.found(keys, torch.ones(1, dtype=torch.bool), torch.tensor([2, 0])).tolist() == [0, NOTHING]


def test_a_patch_keeps_its_number_whatever_it_is_compiled_into() -> None:
    patches = [neuron(1), entry(FIRST, AT), neuron(2), entry(LAST, AWAY), entry(FIRST, AWAY)]
    grown = empty(MODEL)
    for patch in patches:
        grown = grown.extend([patch])
    keys = at_sites([AT, AWAY, (9.0, 9.0, 9.0)], [AT] * 3, [AT, AT, AWAY])
    queries = torch.cat([patches[0].tensors["keys"], patches[2].tensors["keys"]])
    for overlay in (grown, empty(MODEL).extend(patches)):
        alive, view = all_alive(overlay, 2)
        assert len(overlay) == 5
        assert found(overlay, keys, alive[0]) == [1, 4, 3]
        _, firing = overlay.apply(queries, torch.zeros_like(queries), alive, view)
        assert (
            {(0, 0), (1, 2)}
            <= set(zip(firing.rows.tolist(), firing.patches.tolist(), strict=True))
            <= {(row, patch) for row in (0, 1) for patch in (0, 2)}
        )
        assert overlay.adding([0, 1, 2, 4]) == [0, 2]


def test_picked_patches_are_numbered_anew() -> None:
    patches = [neuron(1), entry(FIRST, AT), neuron(2), entry(LAST, AWAY), entry(FIRST, AWAY)]
    picked = empty(MODEL).extend(patches).pick([2, 3, 4])
    keys = at_sites([AT, AWAY, (9.0, 9.0, 9.0)], [AT] * 3, [AT, AT, AWAY])
    assert len(picked) == 3
    assert found(picked, keys, torch.ones(3, dtype=torch.bool)) == [NOTHING, 2, 1]
    assert picked.adding([0, 1, 2]) == [0]
    assert len(picked.pick([]).looks(torch.ones(1, 0, dtype=torch.bool), torch.zeros(0).long())) == 0


def test_no_layer_is_asked_where_nothing_is_alive() -> None:
    overlay = empty(MODEL).extend([entry(LAST, AT), neuron(), entry(FIRST, AT)])
    view = torch.zeros(1).long()
    asked = [look.site for look in overlay.looks(torch.tensor([[True, True, True]]), view)]
    assert asked == [FIRST, LAST]
    assert [look.site for look in overlay.looks(torch.tensor([[True, True, False]]), view)] == [LAST]
    assert overlay.visited(torch.tensor([False, True, True])) == [FIRST]
    assert overlay.looks(torch.tensor([[False, True, False]]), view) == []


def test_a_patch_of_an_unknown_editor_is_refused() -> None:
    foreign = replace(neuron(), header=replace(neuron().header, editor="magic"))
    with pytest.raises(UnknownEditor, match="'magic'"):
        empty(MODEL).extend([foreign])


@pytest.mark.parametrize("case", ["grace", "grace-inner", "both"])
def test_what_texts_are_said_to_find_is_what_they_find_when_they_are_served(case: str) -> None:
    edited = history(case, "bert")
    inputs, alive = edited.inputs, torch.ones(len(edited.patches), dtype=torch.bool)
    keys = {site.name: keys_of(edited.model, site, inputs) for site in edited.overlay.visited(alive)}
    entered = edited.overlay.found(keys, alive, torch.arange(len(inputs))).tolist()
    served: dict[int, int] = {}

    class Watching(Visit):
        """A visit that notes what was found."""

        def read(self, up: str, queries: Tensor) -> None:
            before = len(self._placed)
            super().read(up, queries)
            for _, one in self._placed[before:]:
                served.update(zip(one.rows.tolist(), one.patches.tolist(), strict=True))

    fed = edited.model.fed(inputs, edited.targets)
    acted = acting(edited.overlay)
    visit = Watching(fed.given, acted.composition.looks(acted.alive, torch.zeros(len(inputs)).long()))
    with torch.no_grad(), edited.model.join._layers.during(visit):
        edited.model.model(**fed.inputs)
    assert served == {text: patch for text, patch in enumerate(entered) if patch != NOTHING}
    assert served
