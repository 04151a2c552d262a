"""`errata import` and `errata export`: edits as JSON Lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from app.cli.connection import DEFAULT_URL, AsJson, Url, service
from app.cli.documents import Outcome
from app.cli.tables import status_text
from app.cli.terminal import fail, plain, read, stderr, stdout, tell


def import_edits(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="JSON Lines, one edit a line; - reads stdin.")],
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Report many edits, one after the other. The exit code is 1 when any of them failed."""
    lines = read(file)
    total = sum(1 for line in lines.splitlines() if line.strip())
    failures = 0
    columns = (TextColumn("edits"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with (
        service(url, as_json=as_json) as client,
        Progress(*columns, console=stderr(), transient=True, disable=as_json) as progress,
    ):
        sent = lines.splitlines()
        for answer in progress.track(client.import_edits(lines), total=total):
            outcome: Outcome = json.loads(answer)
            failures += "error" in outcome
            typer.echo(answer) if as_json else _print_outcome(outcome, sent[outcome["line"] - 1])
    if failures:
        fail(f"{failures} of {total} edits failed.")


def _print_outcome(outcome: Outcome, line: bytes) -> None:
    status = outcome.get("status", "refused")
    told = outcome["error"].get("detail") if "error" in outcome else outcome.get("edit_id")
    start = plain(f"{outcome['line']:>5}  ").append_text(status_text(status))
    stdout().print(start.append_text(plain(f"  {told}  {line.decode(errors='replace')}")), soft_wrap=True)


def export_edits(
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write to this file.")] = None,
    url: Url = DEFAULT_URL,
) -> None:
    """Write every live edit as a line that `errata import` accepts."""
    with service(url) as client:
        if output is None:
            for line in client.export_edits():
                typer.echo(line)
            return
        try:
            with output.open("w", encoding="utf-8") as file:
                count = sum(1 for line in client.export_edits() if file.write(f"{line}\n"))
        except OSError as error:
            fail(f"{output} cannot be written: {error.strerror}.", status=2)
    tell(f"{count} {'edit' if count == 1 else 'edits'} written to {output}.", err=True)
