"""The audit record of an edit as a page to read."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from app.cli.documents import Edit, Json
from app.cli.tables import (
    answers_table,
    conflicts_table,
    gates_table,
    guard_facts,
    history_table,
    moment,
    status_text,
)
from app.cli.terminal import plain


def print_audit(console: Console, edit: Edit) -> None:
    """What was reported, what was learned, what was measured, and what happened when."""
    console.print(Text.assemble("Edit ", (edit["id"], "bold"), "  ", status_text(edit["status"])))
    console.print(_facts(edit))
    _section(console, "Answers", answers_table(edit) if edit.get("before") or edit.get("after") else None)
    verdict = edit.get("verdict")
    _section(console, "Gates", gates_table(verdict["gates"]) if verdict else None)
    _section(console, "The guard", guard_facts(verdict.get("guard")) if verdict else None)
    _section(console, "Nearly the same input", conflicts_table(verdict.get("conflicts", ())) if verdict else None)
    history = edit.get("history")
    _section(console, "History", history_table(history) if history else None)


def _section(console: Console, title: str, content: Table | None) -> None:
    if content is not None:
        console.print(Text(title, style="bold"))
        console.print(content)


def _facts(edit: Edit) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    facts = {
        "input": edit["input"],
        "target": edit["target"],
        "keep": "\n".join(edit.get("keep", ())),
        "reason": edit.get("reason"),
        "reporter": edit.get("reporter"),
        "supersedes": edit.get("supersedes"),
        "required": _listed(edit.get("required")),
        "editor": _with(edit["editor"], _listed(edit.get("options"))),
        "reported": moment(edit["created_at"]),
        "ended": moment(edit.get("finished_at")),
        "live since": _revision(edit.get("revision")),
        "to be fitted again": _broken(edit.get("refit_due")),
        "reverted": _with(moment(edit.get("reverted_at")), _revision(edit.get("reverted_revision"))),
        "failure": edit.get("failure"),
        "fit": _listed(edit.get("fit")),
        "patch": _listed(edit.get("patch")),
        "answers changed": _listed(edit.get("hits")),
    }
    for name, fact in facts.items():
        if fact:
            grid.add_row(name, plain(fact))
    return grid


def _revision(number: int | None) -> str:
    return "" if number is None else f"revision {number}"


def _broken(revision: int | None) -> str:
    return "" if revision is None else f"revision {revision} broke it"


def _with(first: str, second: str) -> str:
    return ", ".join(part for part in (first, second) if part)


def _listed(members: Json | None) -> str:
    """`steps 120, seconds 0.03` from an object's members; empty ones are left out."""
    return ", ".join(
        f"{name} {f'{value:.4g}' if isinstance(value, float) else value}"
        for name, value in (members or {}).items()
        if value is not None and value != ""
    )
