"""The tree of errors is complete and stable."""

from __future__ import annotations

from app import errors
from editors import errors as editor_errors


def every(root: type[Exception]) -> set[type[Exception]]:
    return {root}.union(*(every(child) for child in root.__subclasses__()))


def test_every_error_of_the_editors_is_translated_for_callers() -> None:
    assert set(errors.TRANSLATED) == every(editor_errors.EditorError) - {editor_errors.EditorError}


def test_every_error_that_a_caller_can_meet_has_a_status_and_a_code_of_its_own() -> None:
    ours = every(errors.ServiceError) - {errors.ServiceError}
    codes = [error.code for error in ours]
    assert len(set(codes)) == len(codes)
    assert all(400 <= error.status < 600 for error in ours)
    assert all(error.title and not error.title.endswith(".") for error in ours)


def test_the_tree_at_the_top_of_the_file_shows_every_code() -> None:
    drawn = errors.__doc__ or ""
    assert [error.code for error in every(errors.ServiceError) - {errors.ServiceError} if error.code not in drawn] == []
