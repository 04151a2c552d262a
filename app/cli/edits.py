"""`errata edit`, `edits`, `show` and `revert`: the life of edits."""

from __future__ import annotations

import json
import uuid
from typing import Annotated, Any

import typer
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from app.cli.audit import print_audit
from app.cli.client import Client
from app.cli.connection import DEFAULT_URL, AsJson, Url, service
from app.cli.documents import Draft, Edit, Json
from app.cli.tables import edits_table, gates_table
from app.cli.terminal import plain, print_json, stderr, stdout, tell

WAITING = frozenset({"queued", "fitting", "judging"})

EditId = Annotated[str, typer.Argument(metavar="ID", help="The edit's id.")]


def _option(given: str) -> tuple[str, Any]:
    """An editor's option from `name=value`; the value is read as JSON where it is JSON."""
    name, sign, value = given.partition("=")
    if not name or not sign:
        raise typer.BadParameter(f"{given!r} is not of the form name=value.")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def edit(
    text: Annotated[str, typer.Argument(metavar="INPUT", help="What the model was asked.")],
    target: Annotated[str, typer.Argument(metavar="TARGET", help="What it should have said.")],
    rephrase: Annotated[list[str] | None, typer.Option(help="Should change too; repeatable.")] = None,
    keep: Annotated[list[str] | None, typer.Option(help="Must not change; repeatable.")] = None,
    editor: Annotated[str | None, typer.Option(help="The editor to use.")] = None,
    option: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="An option of the editor; repeatable.")
    ] = None,
    require: Annotated[
        list[str] | None, typer.Option(metavar="GATE=SHARE", help="Ask more of a gate; repeatable.")
    ] = None,
    reason: Annotated[str, typer.Option(help="Why, for the record.")] = "",
    reporter: Annotated[str, typer.Option(help="Who found the mistake, for the record.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Fit and judge, keep nothing live.")] = False,
    supersedes: Annotated[str | None, typer.Option(metavar="ID", help="The live edit that this one replaces.")] = None,
    wait: Annotated[float, typer.Option(min=0, metavar="SECONDS", help="How long to wait for the end.")] = 60,
    idempotency_key: Annotated[
        str | None, typer.Option(metavar="KEY", help="Repeating a command with its key makes no second edit.")
    ] = None,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Report a mistake and watch the service learn the correction."""
    draft = Draft(
        input=text, target=target, rephrases=rephrase or [], keep=keep or [], options=dict(map(_option, option or ()))
    )
    draft |= {"reason": reason, "reporter": reporter, "dry_run": dry_run}
    if require:
        draft["required"] = dict(map(_option, require))
    if editor is not None:
        draft["editor"] = editor
    if supersedes is not None:
        draft["supersedes"] = supersedes
    with service(url, as_json=as_json) as client:
        record = client.report(draft, key=idempotency_key or str(uuid.uuid4()))
        if record["status"] in WAITING and wait > 0:
            record = _follow(client, record["id"], wait, shown=not as_json)
    print_json(record) if as_json else _print_outcome(record)
    if not _as_wished(record, wait):
        raise typer.Exit(1)


def _follow(client: Client, edit_id: str, wait: float, *, shown: bool) -> Edit:
    """The edit's record at its end, or when the wait is over; meanwhile a line on stderr tells how it stands."""
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=stderr(), transient=True, disable=not shown) as progress:
        line = progress.add_task("queued", total=None)
        for event in client.events(edit_id, wait=wait):
            if event.name in ("status", "progress"):
                progress.update(line, description=_describe(event.name, event.data))
    return client.edit(edit_id)


def _describe(name: str, data: Json) -> str:
    """`fitting: round 1, step 12, loss 0.31`, from one event."""
    if name == "status":
        return plain(data.get("event", "")).plain
    numbers = [f"{key} {value:.4g}" for key, value in data.items() if isinstance(value, int | float)]
    return plain(f"fitting: {', '.join(numbers)}").plain


def _as_wished(record: Edit, wait: float) -> bool:
    """Whether the command did what it was asked to; an edit that was only to be queued need not have ended."""
    if record["status"] in WAITING:
        return wait == 0
    if record["status"] == "dry_run":
        verdict = record.get("verdict")
        return verdict is not None and verdict["passed"]
    return record["status"] in ("live", "not_needed")


def _print_outcome(record: Edit) -> None:
    tell(_outcome(record))
    verdict = record.get("verdict")
    if verdict:
        stdout().print(gates_table(verdict["gates"]))
    tell(f"Its record: errata show {record['id']}")


def _outcome(record: Edit) -> str:
    status, target = record["status"], record["target"]
    told = {
        "live": f"Learned, and live since revision {record.get('revision')}. The answer is now: {target}",
        "not_needed": f"The model already answers {target}. Nothing was changed.",
        "dry_run": "A dry run: this is what the edit would do. Nothing was changed.",
        "rejected": "Rejected: the correction did not pass every gate. Nothing was changed.",
        "failed": f"No patch could be learned: {record.get('failure') or 'the record says why'}. Nothing was changed.",
        "cancelled": "The edit was cancelled. Nothing was changed.",
        "queued": "The edit is waiting for its turn.",
    }
    return told.get(status, f"The edit is {status}.")


def edits(
    status: Annotated[str | None, typer.Option(help="Only edits of this status.")] = None,
    editor: Annotated[str | None, typer.Option(help="Only edits of this editor.")] = None,
    search: Annotated[str | None, typer.Option("--search", "-q", help="Only edits with this in their texts.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 50,
    cursor: Annotated[str | None, typer.Option(help="Go on where a former listing ended.")] = None,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """List edits, newest first."""
    with service(url, as_json=as_json) as client:
        page = client.edits(status=status, editor=editor, q=search, limit=limit, cursor=cursor)
    if as_json:
        print_json(page)
        return
    if not page["items"]:
        tell("No edits.")
        return
    stdout().print(edits_table(page))
    if page["next_cursor"]:
        tell(f"There are more: --cursor {page['next_cursor']}", err=True)


def show(edit_id: EditId, url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Show the audit record of an edit."""
    with service(url, as_json=as_json) as client:
        record = client.edit(edit_id)
    print_json(record) if as_json else print_audit(stdout(), record)


def revert(
    edit_id: EditId,
    reason: Annotated[str | None, typer.Option(help="Why, for the record.")] = None,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Take an edit back, or cancel one that is still waiting."""
    with service(url, as_json=as_json) as client:
        record = client.revert(edit_id, reason=reason)
    print_json(record) if as_json else _print_removal(record)


def _print_removal(record: Edit) -> None:
    if record["status"] != "reverted":
        tell(f"The edit is {record['status']}.")
        return
    tell(f"Reverted in revision {record.get('reverted_revision')}.")
    verdict = record.get("verdict")
    if verdict and not verdict["passed"]:
        tell("The removal changed what other live edits do:")
        stdout().print(gates_table(verdict["gates"]))
