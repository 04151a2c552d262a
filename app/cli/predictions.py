"""`errata predict`: ask the service, with or without its edits."""

from __future__ import annotations

from typing import Annotated

import typer

from app.cli.connection import DEFAULT_URL, AsJson, Url, service
from app.cli.tables import predictions_table
from app.cli.terminal import print_json, stdout, tell


def predict(
    texts: Annotated[list[str], typer.Argument(metavar="TEXT...", help="What to ask.")],
    explain: Annotated[bool, typer.Option("--explain", help="Also show what the unedited model says.")] = False,
    unedited: Annotated[bool, typer.Option("--unedited", help="Answer without any edit.")] = False,
    as_of: Annotated[int | None, typer.Option(metavar="REVISION", help="Answer as of this revision.")] = None,
    exclude: Annotated[list[str] | None, typer.Option(metavar="ID", help="Leave this edit out; repeatable.")] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(metavar="COUNT", help="How long an answer may be, of a model that writes.")
    ] = None,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Ask the service about one or several texts."""
    with service(url, as_json=as_json) as client:
        answer = client.predict(
            texts,
            edited=not unedited,
            as_of=as_of,
            exclude=exclude or (),
            explain=explain,
            max_new_tokens=max_new_tokens,
        )
    if as_json:
        print_json(answer)
        return
    stdout().print(predictions_table(texts, answer, explained=explain))
    tell(f"Revision {answer['revision']}.")
