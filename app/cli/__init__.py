"""The command line: `errata serve` runs the service, the other commands are clients of it.

Nothing here imports torch before a command needs it, so that `errata --help` answers at once.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated

import typer

from app.cli import benchmarks, edits, guard, predictions, robustness, service, transfer

commands = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"errata {version('errata')}")
        raise typer.Exit


@commands.callback()
def errata(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Correct a deployed model's mistakes one at a time, and take any correction back."""


commands.command("serve")(service.serve)
commands.command("predict")(predictions.predict)
commands.command("edit")(edits.edit)
commands.command("edits")(edits.edits)
commands.command("show")(edits.show)
commands.command("revert")(edits.revert)
commands.command("robustness")(robustness.robustness)
commands.command("guard")(guard.guard)
commands.command("import")(transfer.import_edits)
commands.command("export")(transfer.export_edits)
commands.command("verify")(service.verify)
commands.command("bench", context_settings={"allow_interspersed_args": False})(benchmarks.bench)


def main() -> None:
    """What the console script runs."""
    commands()
