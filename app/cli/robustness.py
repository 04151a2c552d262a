"""`errata robustness`: how an edit bears typos and the like."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from app.cli.connection import DEFAULT_URL, AsJson, Url, service
from app.cli.documents import Json, OfGuard, OfInput, Robustness
from app.cli.edits import EditId
from app.cli.tables import changed_table, robustness_table
from app.cli.terminal import print_json, stdout, tell


def robustness(
    edit_id: EditId,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="The same seed makes the same texts.")] = 0,
    versions: Annotated[int, typer.Option(min=1, max=20, help="Changed inputs of each kind, at most.")] = 5,
    no_guard: Annotated[bool, typer.Option("--no-guard", help="Leave the guard alone.")] = False,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Measure how an edit bears typos, other capitals or punctuation and dropped words, and the guard the same."""
    with service(url, as_json=as_json) as client:
        measured = client.robustness(edit_id, seed=seed, versions=versions, guard=not no_guard)
    print_json(measured) if as_json else _print_measured(measured)


def _print_measured(measured: Robustness) -> None:
    tell(f"Edit {measured['edit_id']} at revision {measured['revision']}, seed {measured['seed']}.")
    _print_input(measured["input"])
    if measured["guard"] is not None:
        _print_guard(measured["guard"])


def _print_input(of_input: OfInput) -> None:
    stdout().print(robustness_table(of_input))
    _print_failures("Changed inputs that do not get the target:", of_input["failures"])
    _tell_left_out(of_input.get("left_out", 0))


def _print_guard(of_guard: OfGuard) -> None:
    if not of_guard["texts"]:
        tell("No input of the guard could be changed.")
        return
    shares = f"right {of_guard['before']:.4g} by the unedited model, {of_guard['after']:.4g} now"
    tell(f"The guard, {of_guard['texts']} changed inputs: {shares}; unchanged {of_guard['unchanged']:.4g}.")
    _print_failures("Changed inputs of the guard that are answered otherwise now:", of_guard["failures"])
    _tell_left_out(of_guard.get("left_out", 0))


def _print_failures(title: str, failures: Sequence[Json]) -> None:
    if failures:
        tell(title)
        stdout().print(changed_table(failures))


def _tell_left_out(count: int) -> None:
    if count:
        tell(f"{count} were left out: nothing changes them, or they are too long for the model.")
