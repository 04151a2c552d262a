"""Where keys are taken and where values are put: in which layers, at which tokens, in which passes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from editors.layers import TOKENS, LayerSite, Token
from editors.visit import Found, Look, Places, Visit, column_of, key_of
from tests.editors.editing import History, acting, alive_but, answers, history, keys_of, tiny
from tests.editors.generating import MOST_TOKENS
from tests.editors.tiny import CAUSAL, FAMILIES, SEQ2SEQ, Answers, Served, Tiny, batch, texts

TEXTS = [[5, 6, 7], [8, 9, 10, 11, 12], [13, 14, 15, 16]]
WIDTH = max(map(len, TEXTS))


def at(model: Tiny, layer: int = -1, token: Token = "last", *, apart: bool = False) -> LayerSite:
    sites = model.join.sites
    return sites.at(sites.layers[layer], token, (sites.answering if apart else sites.layers)[layer])


def given(side: str) -> Tensor:
    return batch(TEXTS, side)["attention_mask"].bool()


def laid(rows: list[Tensor], side: str) -> Tensor:
    """Rows of one text each, (length, hidden), in a batch whose padding is something else."""
    whole = torch.full((len(rows), WIDTH, rows[0].shape[-1]), 1e6)
    for row, mask, one in zip(whole, given(side), rows, strict=True):
        row[mask] = one
    return whole


QUERIES = [torch.randn(len(text), 8, generator=torch.Generator().manual_seed(len(text))) for text in TEXTS]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    ("token", "expected"),
    [
        ("first", lambda queries: queries[0]),
        ("last", lambda queries: queries[-1]),
        ("mean", lambda queries: queries.mean(0)),
    ],
)
def test_a_key_is_made_of_the_tokens_of_its_text_alone(
    side: str, token: Token, expected: Callable[[Tensor], Tensor]
) -> None:
    batch_ = laid(QUERIES, side)
    batch_[~given(side)] = 0 if token == "mean" else 1e6
    torch.testing.assert_close(key_of(batch_, given(side), token), torch.stack([expected(one) for one in QUERIES]))


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_takes_no_part_in_a_mean(side: str) -> None:
    keys = key_of(laid(QUERIES, side), given(side), "mean")
    torch.testing.assert_close(keys, torch.stack([one.mean(0) for one in QUERIES]))


def test_the_column_of_a_token_counts_no_padding() -> None:
    assert column_of(given("right"), "first").tolist() == [0, 0, 0]
    assert column_of(given("right"), "last").tolist() == [2, 4, 3]
    assert column_of(given("left"), "first").tolist() == [2, 0, 1]
    assert column_of(given("left"), "last").tolist() == [4, 4, 4]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("token", TOKENS)
def test_a_key_does_not_depend_on_what_else_is_in_the_batch(family: str, token: Token) -> None:
    model = tiny(family)
    for layer in range(len(model.join.sites.layers)):
        site = at(model, layer, token)
        alone = torch.cat([keys_of(model, site, [text]) for text in TEXTS])
        torch.testing.assert_close(keys_of(model, site, TEXTS), alone, rtol=1e-4, atol=1e-4)


MODEL = tiny("llama-causal")
SITE, APART = at(MODEL), at(tiny("bart-seq2seq"), apart=True)


def everywhere(reach: Places, *, rows: int = 3, values: int = 1) -> Found:
    """Value number i is i + 1 throughout."""
    numbers = torch.arange(1.0, values + 1).reshape(1, values, 1).expand(rows, values, 2)
    every = torch.arange(rows)
    nobody = torch.zeros_like(every)
    return Found(every, nobody, nobody.float(), numbers, nobody + values, nobody + int(reach))


def written(visit: Visit, width: int, down: str = SITE.writes.down) -> list[list[int]]:
    """The number of the value that stands at each column of a pass of that width; 0 where there is none."""
    zeros = torch.zeros(len(visit.given), width, 2)
    changed = visit.write(down, zeros)
    assert not zeros.any(), "the layer's own output was changed"
    return (zeros if changed is None else changed)[..., 0].int().tolist()


LEFT_LAST = [[0, 0, 0, 0, 1]] * 3
LEFT_PROMPT = [[0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [0, 1, 1, 1, 1]]


@pytest.mark.parametrize(
    ("reach", "first", "later"),
    [(Places.LAST, LEFT_LAST, 0), (Places.PROMPT, LEFT_PROMPT, 0), (Places.ALL, LEFT_LAST, 1)],
)
def test_a_value_stands_where_its_reach_says_in_the_first_pass_and_in_later_ones(
    reach: Places, first: list[list[int]], later: int
) -> None:
    """Of prompts padded on the left, with a cache and without one."""
    cached = Visit(given("left"), placed={SITE: everywhere(reach)})
    assert written(cached, WIDTH) == first
    assert [written(cached, 1) for _ in range(3)] == [[[later]] * 3] * 3
    uncached = Visit(given("left"), placed={SITE: everywhere(reach)})
    for longer in range(4):
        assert written(uncached, WIDTH + longer) == [[*row, *[later] * longer] for row in first]


def test_each_position_of_an_answer_gets_its_own_value_and_none_after_the_last() -> None:
    cached = Visit(given("left"), placed={SITE: everywhere(Places.EACH, values=3)})
    assert written(cached, WIDTH) == LEFT_LAST
    assert [written(cached, 1)[0][0] for _ in range(4)] == [2, 3, 0, 0]
    uncached = Visit(given("left"), placed={SITE: everywhere(Places.EACH, values=3)})
    assert written(uncached, WIDTH) == LEFT_LAST
    assert written(uncached, WIDTH + 4) == [[0, 0, 0, 0, 1, 2, 3, 0, 0]] * 3


def test_when_an_answer_is_fed_behind_a_text_on_its_right_the_values_follow_the_text() -> None:
    mask = torch.zeros(2, 6, dtype=torch.bool)
    mask[0, :3] = mask[1, :2] = True
    expected = {
        Places.LAST: [[0, 0, 1, 0, 0, 0], [0, 1, 0, 0, 0, 0]],
        Places.PROMPT: [[1, 1, 1, 0, 0, 0], [1, 1, 0, 0, 0, 0]],
        Places.ALL: [[0, 0, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1]],
    }
    for reach, places in expected.items():
        assert written(Visit(mask, placed={SITE: everywhere(reach, rows=2)}), 6) == places
    each = Visit(mask, placed={SITE: everywhere(Places.EACH, rows=2, values=2)})
    assert written(each, 6) == [[0, 0, 1, 2, 0, 0], [0, 1, 2, 0, 0, 0]]


@pytest.mark.parametrize(("token", "column"), [("first", [2, 0, 1]), ("last", [4, 4, 4]), ("mean", [4, 4, 4])])
def test_a_value_for_one_token_stands_at_the_sites_own(token: Token, column: list[int]) -> None:
    site = at(MODEL, token=token)
    places = written(Visit(given("left"), placed={site: everywhere(Places.LAST)}), WIDTH)
    assert [row.index(1) for row in places] == column
    assert sum(map(sum, places)) == 3


def test_in_a_decoder_beside_an_encoder_every_column_says_a_token_of_the_answer() -> None:
    each = Visit(given("right"), placed={APART: everywhere(Places.EACH, values=2)})
    assert [written(each, 1, APART.writes.down)[0][0] for _ in range(3)] == [1, 2, 0]
    whole = Visit(given("right"), placed={APART: everywhere(Places.ALL)})
    assert written(whole, 4, APART.writes.down) == [[1, 1, 1, 1]] * 3
    prompt = Visit(given("right"), placed={APART: everywhere(Places.PROMPT)})
    assert written(prompt, 4, APART.writes.down) == [[0, 0, 0, 0]] * 3


def test_rows_that_found_nothing_are_not_written_to() -> None:
    found = everywhere(Places.ALL).only(torch.tensor([False, True, False]))
    assert written(Visit(given("left"), placed={SITE: found}), WIDTH) == [[0] * 5, LEFT_LAST[0], [0] * 5]


def test_a_layer_that_flattens_batch_and_tokens_is_read_and_written_as_others_are() -> None:
    queries, seen = laid(QUERIES, "left"), []

    def take(keys: Tensor) -> Found:
        seen.append(keys)
        return everywhere(Places.ALL)

    for shape in (queries, queries.reshape(-1, 8)):
        visit = Visit(given("left"), [Look(SITE, take)])
        visit.read(SITE.reads.up, shape)
        changed = visit.write(SITE.writes.down, torch.zeros(*shape.shape[:-1], 2))
        assert changed is not None
        assert changed.shape[:-1] == shape.shape[:-1]
        assert changed.reshape(3, WIDTH, 2)[..., 0].int().tolist() == LEFT_LAST
    assert torch.equal(*seen)


def test_a_row_that_found_an_entry_is_not_asked_again_at_a_later_layer() -> None:
    """The first layer finds something for row 1; the second one would for all, and has another value."""
    early, late = at(MODEL, 0), at(MODEL, 1)
    first = everywhere(Places.ALL).only(torch.tensor([False, True, False]))
    second = replace(everywhere(Places.ALL), values=torch.full((3, 1, 2), 2.0))
    visit = Visit(given("left"), [Look(early, lambda keys: first), Look(late, lambda keys: second)])
    queries = laid(QUERIES, "left")
    visit.read(early.reads.up, queries)
    assert written(visit, WIDTH, early.writes.down) == [[0] * 5, LEFT_LAST[0], [0] * 5]
    visit.read(late.reads.up, queries)
    two = [0, 0, 0, 0, 2]
    assert written(visit, WIDTH, late.writes.down) == [two, [0] * 5, two]


def test_keys_are_taken_in_the_first_pass_alone() -> None:
    asked = []
    visit = Visit(given("left"), [Look(SITE, asked.append)])
    visit.read(SITE.reads.up, laid(QUERIES, "left"))
    written(visit, WIDTH)
    visit.read(SITE.reads.up, torch.zeros(3, 1, 8))
    visit.read(SITE.reads.up, torch.zeros(3, WIDTH + 1, 8))
    assert len(asked) == 1


def test_outside_of_a_visit_a_layer_that_was_opened_does_nothing() -> None:
    edited = history("grace", "bert")
    bare = edited.model.answer(edited.inputs).logits
    answers(edited.model, edited.overlay, edited.inputs)
    assert torch.equal(edited.model.answer(edited.inputs).logits, bare)


@pytest.fixture(params=["grace", "grace-inner"])
def case(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["bert", "llama", "t5-seq2seq", "llama-causal", "opt-causal"])
def edited(case: str, request: pytest.FixtureRequest) -> History:
    return history(case, request.param)


def rows_of(given: Answers) -> list[Tensor]:
    """The logits of each text."""
    return list(given.logits.split(list(map(len, given.tokens))))


def test_a_row_that_finds_nothing_is_bit_identical_to_the_bare_model_beside_rows_that_find_something(
    edited: History,
) -> None:
    """In a batch of the same texts."""
    probes = texts(8, seed=3)
    inputs = [item for pair in zip(edited.inputs, probes[:4], strict=True) for item in pair] + probes[4:]
    bare, patched = edited.model.answer(inputs), answers(edited.model, edited.overlay, inputs)
    before, after = (rows_of(one) for one in (bare, patched))
    untouched = [number for number, text in enumerate(inputs) if text in probes]
    assert all(torch.equal(before[number], after[number]) for number in untouched)
    assert all(
        patched.tokens[inputs.index(text)] == target != bare.tokens[inputs.index(text)]
        for text, target in zip(edited.inputs, edited.targets, strict=True)
    )


def test_texts_of_one_batch_may_be_answered_under_different_revisions(edited: History) -> None:
    """Text i under the edits up to i, and each row bit for bit as in a batch that is under these alone."""
    numbers = len(edited.patches)
    alive = torch.ones(numbers, numbers, dtype=torch.bool).tril()
    together = edited.model.answer(edited.inputs, Served(edited.overlay, alive, torch.arange(numbers)))
    assert together.tokens == edited.targets
    for number in range(numbers):
        whole = answers(edited.model, edited.overlay, edited.inputs, alive[number : number + 1])
        assert torch.equal(
            rows_of(together)[number],
            rows_of(whole)[number],
        )


def test_one_text_is_answered_under_two_views_in_one_batch(edited: History) -> None:
    text, target = edited.inputs[0], edited.targets[0]
    alive = torch.cat([alive_but(edited.overlay, []), alive_but(edited.overlay, [0])])
    both = edited.model.answer([text, text], Served(edited.overlay, alive, torch.tensor([0, 1])))
    bare = edited.model.answer([text, text])
    assert both.tokens[0] == target
    assert both.tokens[1] == bare.tokens[1]
    assert torch.equal(rows_of(both)[1], rows_of(bare)[1])


@pytest.mark.parametrize("family", ["llama-causal", "t5-seq2seq"])
def test_what_was_found_stays_found_while_an_answer_is_generated(case: str, family: str) -> None:
    """The key is taken once: later passes, which see other columns, ask nobody."""
    edited, asked = history(case, family), list[Tensor]()
    acted = acting(edited.overlay)

    def noting(find: Callable[[Tensor], Found | None], keys: Tensor) -> Found | None:
        asked.append(keys)
        return find(keys)

    class Counting(Served):
        """Counts how often keys are looked for."""

        def visit(self, given: Tensor) -> Visit | None:
            looks = self.composition.looks(self.alive, torch.zeros(len(given)).long())
            return Visit(
                given,
                [Look(look.site, lambda keys, find=look.find: asked.append(keys) or find(keys)) for look in looks],
            )

    generated = edited.model.answer(edited.inputs, Counting(acted.composition, acted.alive))
    assert generated.tokens == edited.targets
    assert 1 < max(map(len, generated.tokens)) <= MOST_TOKENS
    assert len(asked) == len({patch.header.site for patch in edited.patches})


@pytest.mark.parametrize("family", [*CAUSAL, *SEQ2SEQ])
@pytest.mark.parametrize("reach", Places)
def test_cached_decoding_equals_uncached_with_values_in_place(family: str, reach: Places) -> None:
    model = tiny(family)
    site = at(model, 0, apart=family in SEQ2SEQ and reach in (Places.ALL, Places.EACH))
    if family in SEQ2SEQ and reach is Places.PROMPT:
        site = at(model, 0)
    hidden = model.join.site.hidden
    values = torch.randn(3, 2, hidden, generator=torch.Generator().manual_seed(7))

    class Placing:
        """Two values in each row."""

        def visit(self, given: Tensor) -> Visit:
            rows = torch.arange(len(given))
            nobody = torch.zeros_like(rows)
            found = Found(rows, nobody, nobody.float(), values, nobody + 2, nobody + int(reach))
            return Visit(given, placed={site: found})

        def __call__(self, queries: Tensor, residuals: Tensor) -> Tensor:
            return residuals

    cached, uncached = (model.answer(TEXTS, Placing(), cached=cached) for cached in (True, False))
    assert cached.tokens == uncached.tokens
    torch.testing.assert_close(cached.logits, uncached.logits, rtol=1e-3, atol=1e-3)
    assert not torch.equal(cached.logits[:1], model.answer(TEXTS).logits[:1])


def test_values_of_their_own_take_part_in_as_many_positions_as_there_are_and_one_value_in_all() -> None:
    rows = torch.arange(4)
    found = Found(
        rows, rows, rows.float(), torch.zeros(4, 3, 2), torch.tensor([3, 1, 1, 2]), torch.tensor([3, 0, 2, 3])
    )
    assert found.positions().clamp(max=20).tolist() == [3, 20, 20, 2]
