"""The service that a command talks to: where it is, and how its refusals are told."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from app.cli.client import Client, ClientError, Problem
from app.cli.tables import gates_table
from app.cli.terminal import print_json, stderr, tell

DEFAULT_URL = "http://127.0.0.1:8000"

Url = Annotated[str, typer.Option("--url", envvar="ERRATA_URL", help="Where the service is.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the service's JSON and nothing else.")]


@contextmanager
def service(url: str, *, as_json: bool = False) -> Iterator[Client]:
    """A client of the service at `url`. What the service refuses ends the command with exit code 1."""
    with Client(url) as client:
        try:
            yield client
        except ClientError as error:
            if as_json and isinstance(error, Problem):
                print_json(error.document)
            _tell(error)
            raise typer.Exit(1) from error


def _tell(error: ClientError) -> None:
    tell(error, err=True)
    if not isinstance(error, Problem):
        return
    for complaint in _complaints(error.document.get("errors", ()), said=str(error)):
        tell(f"  {complaint}", err=True)
    gates = error.document.get("gates")
    if gates:
        stderr().print(gates_table(gates))
    if error.document.get("edit_id"):
        tell(f"Its record: errata show {error.document['edit_id']}", err=True)
    if error.code == "conflicting_edit":
        for edit_id in error.document.get("conflicts", ()):
            tell(f"To replace that edit, add: --supersedes {edit_id}", err=True)
    if error.retry_after:
        tell(f"Try again in {error.retry_after} s.", err=True)


def _complaints(errors: Sequence[Any], *, said: str) -> list[str]:
    complaints = [f"{'.'.join(str(part) for part in one.get('loc', ()))}: {one.get('msg', '')}" for one in errors]
    return [complaint for complaint in complaints if complaint not in said]
