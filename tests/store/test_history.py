from __future__ import annotations

import json
import math
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.store import Evidence, Ledger, Status, Store
from app.store.canonical import canonical, digest
from app.store.history import STATUS_AFTER, Event
from app.store.tables import UtcTime, time_text
from tests.store.samples import OTHER_IDENTITY, accept, claimed, live, restore

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


def test_rows_are_numbered_without_gaps_over_all_edits_of_the_model(ledger: Ledger) -> None:
    first, second = live(ledger, "one"), accept(ledger, "two")
    rows = sorted([*ledger.history(first), *ledger.history(second)], key=lambda row: row.seq)
    assert [row.seq for row in rows] == [1, 2, 3, 4]


def test_models_have_chains_of_their_own(ledger: Ledger, store: Store) -> None:
    other = store.ledger(OTHER_IDENTITY)
    (one,), (two,) = ledger.history(accept(ledger)), other.history(accept(other))
    assert one.seq == two.seq == 1
    assert one.hash != two.hash


def test_every_event_but_quarantine_leaves_an_edit_in_a_status_of_the_contract() -> None:
    assert set(STATUS_AFTER) == set(Event) - {Event.GUARD}  # which befalls no edit
    assert set(STATUS_AFTER.values()) == set(Status) - {Status.QUARANTINED}


def test_evidence_comes_back_to_the_last_bit_and_in_its_order(ledger: Ledger) -> None:
    edit_id = claimed(ledger)
    before = {"z": 0.1 + 0.2, "a": [1e-300, -0.0, 2**60, "ü\u2028"], "nothing": None}
    ledger.finish(edit_id, Status.FAILED, Evidence(before=before), detail={})
    found = ledger.edit(edit_id).before
    assert found == before
    assert list(found) == list(before)
    assert math.copysign(1, found["a"][1]) == -1


def test_not_a_number_is_refused_and_changes_nothing(ledger: Ledger) -> None:
    edit_id = claimed(ledger)
    with pytest.raises(ValueError):
        ledger.finish(edit_id, Status.FAILED, Evidence(fit={"loss": math.nan}), detail={})
    assert ledger.edit(edit_id).status is Status.FITTING


def test_a_restore_is_one_row_of_the_model_beside_those_of_its_edits(ledger: Ledger) -> None:
    edit_id = live(ledger)
    restore(ledger, 0)
    assert ledger.history(edit_id)[-1].seq == 5  # row 4 is the restoring itself


@given(json_values)
def test_canonical_text_is_the_same_after_a_round_trip(value: object) -> None:
    assert canonical(json.loads(canonical(value))) == canonical(value)


def test_the_order_of_keys_does_not_change_a_digest() -> None:
    assert digest({"a": 1, "b": {"c": 2, "d": 3}}) == digest({"b": {"d": 3, "c": 2}, "a": 1})


@given(st.datetimes(datetime(2, 1, 1), datetime(9998, 1, 1), timezones=st.timezones()))  # noqa: DTZ001
def test_a_time_comes_back_from_its_text_to_the_microsecond(at: datetime) -> None:
    kept = UtcTime().process_result_value(time_text(at), dialect=None)  # type: ignore[arg-type]
    assert kept == at.astimezone(UTC)
    assert time_text(kept) == time_text(at)


def test_texts_of_times_sort_as_the_times_do() -> None:
    first = datetime(2026, 1, 1, 1, 0, tzinfo=timezone(timedelta(hours=2)))
    second = datetime(2025, 12, 31, 23, 0, 0, 1, tzinfo=UTC)
    assert time_text(first) < time_text(second)


def test_a_time_without_a_zone_is_refused() -> None:
    with pytest.raises(ValueError, match="has no zone"):
        time_text(datetime(2026, 1, 1))  # noqa: DTZ001
