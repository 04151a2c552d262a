"""`errata guard`: inputs that no edit may change."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from app.cli.connection import DEFAULT_URL, AsJson, Url, service
from app.cli.documents import GuardShown
from app.cli.tables import moment
from app.cli.terminal import fail, print_json, read, tell


def guard(
    file: Annotated[
        Path | None,
        typer.Argument(metavar="[FILE]", help="JSON Lines of `input` and, if known, `target`; - reads stdin."),
    ] = None,
    withdraw: Annotated[bool, typer.Option("--withdraw", help="Go back to the guard of the service's files.")] = False,
    wait: Annotated[float, typer.Option(min=0, metavar="SECONDS", help="How long to wait until it is read.")] = 60,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Show the guard that edits are measured on, or put another one."""
    if withdraw and file is not None:
        fail("Either FILE or --withdraw.", status=2)
    lines = None if file is None else read(file)
    with service(url, as_json=as_json) as client:
        if withdraw:
            shown = client.withdraw_guard()
        else:
            shown = client.guard() if lines is None else client.put_guard(lines, wait=wait)
    print_json(shown) if as_json else _print_guard(shown)


def _print_guard(shown: GuardShown) -> None:
    put = f", number {shown['number']}, put {moment(shown['at'])}" if shown["number"] else ""
    tell(f"{shown['inputs']} inputs, from: {shown['source']}{put}.")
    if not shown["ready"]:
        tell("The model is still reading them; edits wait until it has.")
        return
    tell(f"The unedited model gets {shown['right']} right; these may not change. {shown['wrong']} more are watched.")
    tell(f"{shown['near_boundary']} lie near a boundary between two answers.")
    if shown["left_out"]:
        tell(f"{shown['left_out']} were left out: the model cannot answer their targets.")
