"""The measures against counts made by hand."""

from __future__ import annotations

import pytest
import torch

from editors import measures

WANTED = torch.tensor([0, 1, 2, 3])
BEFORE = torch.tensor([0, 1, 0, 1])  # right, right, wrong, wrong
AFTER = torch.tensor([0, 2, 2, 2])  # right, broken, repaired, wrong otherwise


def test_rates_are_the_share_of_right_answers() -> None:
    for rate in (measures.success_rate, measures.generalisation_rate, measures.edit_retain_rate):
        assert rate(torch.tensor([1, 2, 3]), torch.tensor([1, 2, 0])) == pytest.approx(2 / 3)


def test_the_retain_rate_is_accuracy_now_over_accuracy_before() -> None:
    assert measures.retain_rate(BEFORE, AFTER, WANTED) == pytest.approx(1.0)
    assert measures.retain_rate(BEFORE, BEFORE * 0 + 9, WANTED) == 0


def test_the_retain_rate_of_a_model_that_was_never_right_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing to retain"):
        measures.retain_rate(BEFORE * 0 + 9, AFTER, WANTED)


def test_kept_counts_only_what_was_right_before() -> None:
    assert measures.kept(BEFORE, AFTER, WANTED) == pytest.approx(1 / 2)


def test_unchanged_asks_for_identical_outputs() -> None:
    logits = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    moved = logits + torch.tensor([[0.0, 0.0], [0.0, 1e-6]])
    assert measures.unchanged(logits, moved) == pytest.approx(1 / 2)


def test_a_share_of_nothing_is_one() -> None:
    assert measures.accuracy(torch.zeros(0), torch.zeros(0)) == 1


def test_consistency_counts_the_changes_by_their_kind() -> None:
    scores = torch.tensor([0.1, 0.2, 0.3, 0.4])
    found = measures.consistency((scores, scores), (BEFORE, AFTER), WANTED)
    assert (found.right_to_wrong, found.wrong_to_right, found.wrong_to_other_wrong) == (1, 1, 1)


def test_pearson_is_one_for_a_rising_line_and_minus_one_for_a_falling_one() -> None:
    line = torch.tensor([1.0, 2.0, 3.0])
    assert measures.pearson(line, 2 * line + 5) == pytest.approx(1)
    assert measures.pearson(line, -line) == pytest.approx(-1)


def test_pearson_of_a_constant_against_a_series_is_zero() -> None:
    assert measures.pearson(torch.ones(3), torch.tensor([1.0, 2.0, 3.0])) == 0
