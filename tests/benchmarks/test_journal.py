"""What an interrupted experiment finds again."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.journal import Differs, Journal, Occupied, occupied, settle


def test_a_journal_opened_again_has_every_row(tmp_path: Path) -> None:
    rows = [{"said": "1\u20282\r\n"}, {"said": None}]
    Journal(tmp_path / "rows.jsonl").add(*rows)
    assert list(Journal(tmp_path / "rows.jsonl")) == rows


def test_a_half_written_row_is_dropped_and_the_next_one_stands_alone(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    Journal(file).add({"row": 1})
    with file.open("ab") as lines:
        lines.write(b'{"row": 2, "said": "\xc3')
    again = Journal(file)
    assert list(again) == [{"row": 1}]
    again.add({"row": 3})
    assert list(Journal(file)) == [{"row": 1}, {"row": 3}]


def test_the_same_configuration_is_settled_again(tmp_path: Path) -> None:
    for _ in range(2):
        settle(tmp_path / "configuration.json", {"sizes": (1, 2), "model": None})


def test_another_configuration_is_refused_naming_what_differs(tmp_path: Path) -> None:
    settle(tmp_path / "configuration.json", {"seed": 0, "edits": 10})
    with pytest.raises(Differs, match="seed was 0 and is 1 now") as refusal:
        settle(tmp_path / "configuration.json", {"seed": 1, "edits": 10})
    assert "edits was" not in str(refusal.value)


def test_a_folder_is_one_processs_at_a_time(tmp_path: Path) -> None:
    with occupied(tmp_path), pytest.raises(Occupied), occupied(tmp_path):
        pass
    with occupied(tmp_path):
        pass
