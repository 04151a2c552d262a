"""NeuronBank against a plain double loop, and the exactness that reverting rests on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from editors import coarse
from editors.neuron import NeuronBank, TransformerPatcher
from editors.neuron import bank as bank_module
from editors.summing import tree_sum
from editors.types import Patch
from tests.editors.editing import CPU, alive_but, all_alive, header

HIDDEN = 32


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def patch(seed: int, neurons: int = 1, activation: int = 0) -> Patch:
    """A patch that fires on about half of all rows."""
    tensors = {
        "keys": random(neurons, HIDDEN, seed=seed),
        "biases": random(neurons, seed=seed + 1000),
        "values": random(neurons, HIDDEN, seed=seed + 2000),
        "activations": torch.full((neurons,), activation, dtype=torch.uint8),
    }
    return Patch(header(TransformerPatcher()), tensors)


@pytest.fixture(scope="module", autouse=True, params=["int8", "bfloat16", "float32"])
def searched(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every test with candidates found by each of the products; by that in int8 those of few rows."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(bank_module, "COARSE_FROM", 10**9 if request.param == "float32" else 1)
        for module in (bank_module, coarse):
            patched.setattr(module, "multiplies_bfloat16", lambda device: True)
        if request.param != "int8":
            patched.setattr(coarse, "multiplies_int8", lambda device, width: False)
        yield


PATCHES = [patch(seed, neurons=1 + seed % 3) for seed in range(9)]


def bank_of(patches: list[Patch]) -> NeuronBank:
    return NeuronBank.empty(HIDDEN, CPU).extend(patches)


def rows(count: int, seed: int = 77) -> tuple[Tensor, Tensor]:
    return random(count, HIDDEN, seed=seed), random(count, HIDDEN, seed=seed + 1)


def by_hand(patches: list[Patch], query: Tensor, residual: Tensor) -> tuple[Tensor, dict[int, float]]:
    """FFN_p of one row, neuron by neuron in ledger order."""
    residual, fired = residual.clone(), {}
    for number, one in enumerate(patches):
        columns = zip(one.tensors["keys"], one.tensors["biases"], one.tensors["values"], strict=True)
        for key, bias, value in columns:
            strength = float((query.double() @ key.double() + bias.double()).clamp(min=0))
            if strength > 0:
                residual += strength * value
                fired[number] = max(fired.get(number, 0), strength)
    return residual, fired


def test_it_computes_what_a_double_loop_computes() -> None:
    queries, residuals = rows(40)
    bank = bank_of(PATCHES)
    patched, firing = bank.apply(queries, residuals, *all_alive(bank, 40))
    expected = [by_hand(PATCHES, query, residual) for query, residual in zip(queries, residuals, strict=True)]
    torch.testing.assert_close(patched, torch.stack([residual for residual, _ in expected]))
    pairs = [(row, number, strength) for row, (_, fired) in enumerate(expected) for number, strength in fired.items()]
    assert list(zip(firing.rows.tolist(), firing.patches.tolist(), strict=True)) == [pair[:2] for pair in pairs]
    assert firing.strengths.tolist() == pytest.approx([pair[2] for pair in pairs], rel=1e-5)


def test_an_empty_bank_returns_the_very_residuals() -> None:
    queries, residuals = rows(3)
    bank = NeuronBank.empty(HIDDEN, CPU)
    patched, firing = bank.apply(queries, residuals, *all_alive(bank, 3))
    assert patched is residuals
    assert len(firing.rows) == 0


def test_no_rows_are_no_trouble() -> None:
    queries, residuals = rows(0)
    bank = bank_of(PATCHES)
    assert bank.apply(queries, residuals, *all_alive(bank, 0))[0] is residuals


def test_where_nothing_fires_the_very_residuals_are_returned() -> None:
    queries, residuals = rows(3)
    bank = bank_of(PATCHES)
    patched, _ = bank.apply(queries, residuals, torch.zeros(1, len(bank), dtype=torch.bool), torch.zeros(3).long())
    assert patched is residuals


def test_a_row_on_which_nothing_fires_keeps_its_bits_among_rows_that_change() -> None:
    queries, residuals = rows(20)
    bank = bank_of(PATCHES[:1])
    patched, firing = bank.apply(queries, residuals, *all_alive(bank, 20))
    silent = [row for row in range(20) if row not in firing.rows]
    assert silent
    assert torch.equal(patched[silent], residuals[silent])


def test_every_row_is_served_under_its_own_view() -> None:
    queries, residuals = rows(30)
    bank = bank_of(PATCHES)
    alive = torch.rand(3, len(bank), generator=torch.Generator().manual_seed(1)) < 0.5
    view = torch.arange(30) % 3
    together, _ = bank.apply(queries, residuals, alive, view)
    for number in range(3):
        of_view = view == number
        alone, _ = bank.apply(queries[of_view], residuals[of_view], alive[number : number + 1], torch.zeros(10).long())
        assert torch.equal(together[of_view], alone)


def test_the_given_residuals_are_not_written_to() -> None:
    queries, residuals = rows(10)
    before = residuals.clone()
    bank = bank_of(PATCHES)
    bank.apply(queries, residuals, *all_alive(bank, 10))
    assert torch.equal(residuals, before)


@given(removed=st.sets(st.integers(0, len(PATCHES) - 1)), count=st.integers(1, 17), seed=st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_removing_any_patches_leaves_exactly_what_the_others_alone_give(
    removed: set[int], count: int, seed: int
) -> None:
    queries, residuals = rows(count, seed)
    bank = bank_of(PATCHES)
    alive = torch.tensor([[number not in removed for number in range(len(PATCHES))]])
    masked, _ = bank.apply(queries, residuals, alive, torch.zeros(count).long())
    others = bank_of([one for number, one in enumerate(PATCHES) if number not in removed])
    alone, _ = others.apply(queries, residuals, *all_alive(others, count))
    assert torch.equal(masked, alone)


@given(numbers=st.sets(st.integers(0, len(PATCHES) - 1)), count=st.integers(1, 17), seed=st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_picked_patches_give_the_bits_of_the_whole_bank_with_the_others_masked(
    numbers: set[int], count: int, seed: int
) -> None:
    queries, residuals = rows(count, seed)
    bank, kept = bank_of(PATCHES), sorted(numbers)
    others = alive_but(bank, set(range(len(bank))) - numbers)
    masked, firing = bank.apply(queries, residuals, others, torch.zeros(count).long())
    picked = bank.pick(kept)
    alone, fired = picked.apply(queries, residuals, *all_alive(picked, count))
    assert len(picked) == len(kept)
    assert torch.equal(masked, alone)
    assert torch.equal(firing.rows, fired.rows)
    assert firing.patches.tolist() == [kept[number] for number in fired.patches]
    assert torch.equal(firing.strengths, fired.strengths)


def test_a_picked_bank_grows_without_disturbing_the_one_it_was_picked_from() -> None:
    queries, residuals = rows(8)
    whole = bank_of(PATCHES[:4])
    grown = whole.pick([1, 3]).extend(PATCHES[4:6])
    for bank, patches in ((whole, PATCHES[:4]), (grown, [PATCHES[1], PATCHES[3], *PATCHES[4:6]])):
        fresh = bank_of(patches)
        expected = fresh.apply(queries, residuals, *all_alive(fresh, 8))[0]
        assert torch.equal(bank.apply(queries, residuals, *all_alive(bank, 8))[0], expected)


@given(order=st.permutations(range(6)), cut=st.integers(1, 6))
@settings(max_examples=40, deadline=None)
def test_rows_get_the_same_bits_whatever_else_is_in_the_batch(order: list[int], cut: int) -> None:
    queries, residuals = rows(6)
    bank = bank_of(PATCHES)
    together, _ = bank.apply(queries, residuals, *all_alive(bank, 6))
    chosen = order[:cut]
    some, _ = bank.apply(queries[chosen], residuals[chosen], *all_alive(bank, cut))
    assert torch.equal(some, together[chosen])


@given(sizes=st.lists(st.integers(0, 3), min_size=1, max_size=6))
@settings(max_examples=30, deadline=None)
def test_a_bank_grown_by_pieces_equals_one_made_at_once(sizes: list[int]) -> None:
    queries, residuals = rows(8)
    grown, start = NeuronBank.empty(HIDDEN, CPU), 0
    for size in sizes:
        grown, start = grown.extend(PATCHES[start : start + size]), min(start + size, len(PATCHES))
    whole = bank_of(PATCHES[:start])
    assert len(grown) == start
    assert torch.equal(
        grown.apply(queries, residuals, *all_alive(grown, 8))[0],
        whole.apply(queries, residuals, *all_alive(whole, 8))[0],
    )


def test_two_banks_grown_out_of_one_do_not_disturb_each_other() -> None:
    queries, residuals = rows(8)
    root = bank_of(PATCHES[:2])
    one = root.extend(PATCHES[2:3])
    other = root.extend(PATCHES[3:4])
    for bank, patches in ((root, PATCHES[:2]), (one, PATCHES[:3]), (other, [*PATCHES[:2], PATCHES[3]])):
        fresh = bank_of(patches)
        expected = fresh.apply(queries, residuals, *all_alive(fresh, 8))[0]
        assert torch.equal(bank.apply(queries, residuals, *all_alive(bank, 8))[0], expected)


def test_growing_by_one_copies_the_storage_only_now_and_then() -> None:
    bank, storages = NeuronBank.empty(HIDDEN, CPU), set()
    for seed in range(100):
        bank = bank.extend([patch(seed)])
        storages.add(bank._columns["keys"].data_ptr())
    assert len(storages) <= 5


def test_a_bank_that_is_dropped_gives_its_room_to_the_next() -> None:
    bank = bank_of([])
    for seed in range(17):  # at the end there is room for more
        bank = bank.extend([patch(seed)])
    storage = bank._columns["keys"].data_ptr()
    for seed in range(100, 140):
        tried = bank.extend([patch(seed)])
        assert tried._columns["keys"].data_ptr() == storage
        del tried
    grown = bank.extend([patch(200)])
    assert grown._columns["keys"].data_ptr() == storage
    fresh = bank_of([*(patch(seed) for seed in range(17)), patch(200)])
    queries, residuals = rows(8)
    expected = fresh.apply(queries, residuals, *all_alive(fresh, 8))[0]
    assert torch.equal(grown.apply(queries, residuals, *all_alive(grown, 8))[0], expected)


def test_a_bank_that_others_grew_out_of_may_go() -> None:
    queries, residuals = rows(8)
    root = bank_of(PATCHES[:3])
    middle = root.extend(PATCHES[3:5])
    longest = middle.extend(PATCHES[5:6])
    del middle
    other = root.extend(PATCHES[6:8])
    for bank, patches in ((longest, PATCHES[:6]), (other, [*PATCHES[:3], *PATCHES[6:8]])):
        fresh = bank_of(patches)
        expected = fresh.apply(queries, residuals, *all_alive(fresh, 8))[0]
        assert torch.equal(bank.apply(queries, residuals, *all_alive(bank, 8))[0], expected)


def test_a_row_of_nan_fires_nothing() -> None:
    queries, residuals = rows(3)
    queries[1] = torch.nan
    bank = bank_of(PATCHES)
    _, firing = bank.apply(queries, residuals, *all_alive(bank, 3))
    assert 1 not in firing.rows
    assert {0, 2} == set(firing.rows.tolist())


def test_a_pre_activation_of_exactly_zero_does_not_fire() -> None:
    tensors = {
        "keys": torch.ones(1, HIDDEN),
        "biases": torch.tensor([-float(HIDDEN)]),
        "values": torch.ones(1, HIDDEN),
        "activations": torch.zeros(1, dtype=torch.uint8),
    }
    bank = bank_of([Patch(header(TransformerPatcher()), tensors)])
    queries, residuals = torch.ones(1, HIDDEN), torch.zeros(1, HIDDEN)
    assert bank.apply(queries, residuals, *all_alive(bank, 1))[0] is residuals


def test_a_pre_activation_lost_in_float32_still_fires() -> None:
    """1e6 - 1e6 + tiny: the float32 product sees nothing, the exact one does."""
    query = torch.zeros(1, HIDDEN)
    query[0, :3] = torch.tensor([1000.0, -1000.0, 1.0])
    key = torch.zeros(1, HIDDEN)
    key[0, :3] = torch.tensor([1000.0, 1000.0, 1e-3])
    tensors = {
        "keys": key,
        "biases": torch.zeros(1),
        "values": torch.ones(1, HIDDEN),
        "activations": torch.zeros(1, dtype=torch.uint8),
    }
    bank = bank_of([Patch(header(TransformerPatcher()), tensors)])
    _, firing = bank.apply(query, torch.zeros(1, HIDDEN), *all_alive(bank, 1))
    assert firing.strengths.tolist() == pytest.approx([1e-3])


def test_a_pre_activation_whose_terms_overflow_in_float32_still_fires() -> None:
    query, key = torch.zeros(1, HIDDEN), torch.zeros(1, HIDDEN)
    query[0, :2], key[0, :2] = 2e38, torch.tensor([-3.0, 3.0001])
    tensors = {
        "keys": key,
        "biases": torch.tensor([-1.0]),
        "values": torch.ones(1, HIDDEN),
        "activations": torch.zeros(1, dtype=torch.uint8),
    }
    bank = bank_of([Patch(header(TransformerPatcher()), tensors)])
    _, firing = bank.apply(query, torch.zeros(1, HIDDEN), *all_alive(bank, 1))
    assert firing.strengths.tolist() == pytest.approx([2e34], rel=0.01)


def test_a_gelu_neuron_fires_on_every_row() -> None:
    queries, residuals = rows(12)
    queries = queries / 10
    bank = bank_of([patch(3, activation=1)])
    patched, firing = bank.apply(queries, residuals, *all_alive(bank, 12))
    one = patch(3, activation=1).tensors
    strengths = torch.nn.functional.gelu(queries @ one["keys"].T + one["biases"])
    assert firing.rows.tolist() == list(range(12))
    torch.testing.assert_close(patched, residuals + strengths @ one["values"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_residuals_keep_their_dtype(dtype: torch.dtype) -> None:
    queries, residuals = rows(10)
    bank = bank_of(PATCHES)
    patched, _ = bank.apply(queries.to(dtype), residuals.to(dtype), *all_alive(bank, 10))
    assert patched.dtype == dtype


@given(width=st.integers(1, 40), count=st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_the_tree_sum_is_the_sum(width: int, count: int) -> None:
    terms = random(count, width, seed=width).double()
    torch.testing.assert_close(tree_sum(terms), terms.sum(-1))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_strengths_on_cuda_equal_those_on_the_cpu_bit_for_bit() -> None:
    queries, residuals = rows(64)
    there = NeuronBank.empty(HIDDEN, torch.device("cuda")).extend(PATCHES)
    here = bank_of(PATCHES)
    alive, view = all_alive(here, 64)
    _, on_cuda = there.apply(queries.cuda(), residuals.cuda(), alive.cuda(), view.cuda())
    _, on_cpu = here.apply(queries, residuals, alive, view)
    assert torch.equal(on_cuda.strengths.cpu(), on_cpu.strengths)
