"""`errata serve` and `errata verify`: what runs here, on this machine's database, and not through a server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from app.cli.connection import AsJson
from app.cli.tables import table
from app.cli.terminal import fail, plain, print_json, stdout
from app.errors import ServiceError
from editors.errors import EditorError

if TYPE_CHECKING:
    from app.settings import Settings

Model = Annotated[
    str | None, typer.Option(metavar="FOLDER_OR_HUB_ID", help="The model to deploy; the built-in one when not given.")
]
Database = Annotated[str | None, typer.Option(metavar="URL", help="Where edits are kept; default sqlite:///errata.db.")]
Device = Annotated[str | None, typer.Option(metavar="auto|cpu|cuda", help="Where the model runs.")]


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on; default 127.0.0.1.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; default 8000.")] = None,
    model: Model = None,
    database: Database = None,
    device: Device = None,
) -> None:
    """Start the service. Every other setting is an environment variable, ERRATA_..."""
    settings = _settings(host=host, port=port, model=model, database_url=database, device=device)
    with _told():
        from app.main import serve as run

        run(settings)


def verify(model: Model = None, database: Database = None, device: Device = None, as_json: AsJson = False) -> None:
    """Check the database: its chain of hashes, every patch, every recorded answer."""
    settings = _settings(model=model, database_url=database, device=device)
    with _told():
        from app.main import verify as check

        findings = check(settings)
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        made = table("checked", "", "detail")
        for finding in findings:
            mark = Text("ok", style="green") if finding.ok else Text("not ok", style="red")
            made.add_row(plain(finding.checked), mark, plain(finding.detail))
        stdout().print(made)
    broken = sum(not finding.ok for finding in findings)
    if broken:
        fail(f"{broken} of {len(findings)} checks failed.")


def _settings(**given: str | int | None) -> Settings:
    """The settings of the environment under those of the command line."""
    from pydantic import ValidationError

    from app.settings import Settings

    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
    except ValidationError as error:
        fail("\n".join(_complaint(one["loc"], one["msg"]) for one in error.errors()), status=2)


def _complaint(place: tuple[int | str, ...], message: str) -> str:
    sentence = message.removeprefix("Value error, ")
    return f"{'.'.join(map(str, place))}: {sentence}" if place else sentence


@contextmanager
def _told() -> Iterator[None]:
    """What can be said in a sentence is not shown as a traceback."""
    from app.store import UnsupportedDatabase

    try:
        yield
    except (ServiceError, EditorError, UnsupportedDatabase, OSError) as error:
        fail(str(error))
