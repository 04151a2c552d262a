"""The service's answers as tables for a person."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from app.cli.documents import Answer, Edit, Gate, HistoryRow, Json, OfInput, Page, Prediction
from app.cli.terminal import plain

FAILURES_SHOWN = 5

COLOURS = {
    "live": "green",
    "not_needed": "green",
    "dry_run": "cyan",
    "rejected": "red",
    "refused": "red",
    "failed": "red",
    "quarantined": "red",
    "reverted": "yellow",
    "superseded": "yellow",
    "cancelled": "yellow",
}


def table(*columns: str) -> Table:
    """A table as all of Errata's are; columns that end in `>` hold numbers."""
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        made.add_column(column.rstrip(">"), justify="right" if column.endswith(">") else "left", overflow="fold")
    return made


def status_text(status: str) -> Text:
    """A status in its colour."""
    return Text(status, style=COLOURS.get(status, "bold"))


def moment(at: str | None) -> str:
    """A time of the service's, to the second."""
    return at.replace("T", " ").partition(".")[0].removesuffix("Z").partition("+")[0] if at else ""


def predictions_table(inputs: Sequence[str], answer: Answer, *, explained: bool) -> Table:
    """One row an input; `explained` adds what the unedited model says."""
    scored = any("score" in prediction for prediction in answer["predictions"])  # a written answer has no score
    score = ["score>"] if scored else []
    made = table("input", "answer", *score, "edits that fired", *(["unedited answer", *score] if explained else []))
    shown = 2 if scored else 1
    for text, prediction in zip(inputs, answer["predictions"], strict=True):
        cells = [plain(text), *_answer_and_score(prediction)[:shown], _fired(prediction)]
        made.add_row(*cells, *(_answer_and_score(prediction.get("base"))[:shown] if explained else ()))
    return made


def _answer_and_score(prediction: Prediction | None) -> tuple[Text, Text]:
    """A label with its score, or a text, which has none."""
    if prediction is None:
        return Text(""), Text("")
    score = prediction.get("score")
    return plain(said(prediction)), plain("" if score is None else f"{score:.4f}")


def said(prediction: Prediction) -> str:
    """The answer itself; of a text that was cut off, with a mark at its end."""
    if "text" in prediction:
        return prediction["text"].strip() + ("…" if prediction.get("finish_reason") == "length" else "")
    return prediction["label"]


def _fired(prediction: Prediction) -> Text:
    return plain("\n".join(f"{fired['edit_id']} ({fired['strength']:.2f})" for fired in prediction.get("fired", ())))


def edits_table(page: Page) -> Table:
    """One row an edit, newest first."""
    made = table("id", "status", "input", "target", "revision>", "reported (UTC)")
    made.columns[0].no_wrap = True
    for edit in page["items"]:
        made.add_row(
            plain(edit["id"]),
            status_text(edit["status"]),
            plain(edit["input"]),
            plain(edit["target"]),
            plain(_or_nothing(edit.get("revision"))),
            plain(moment(edit["created_at"])),
        )
    return made


def gates_table(gates: Sequence[Gate]) -> Table:
    """One row a gate: what was measured and what is required."""
    made = table("gate", "measured>", "required>", "", "failures")
    for gate in gates:
        made.add_row(
            plain(gate["name"]),
            plain(_measure(gate["measured"])),
            plain(_measure(gate["required"])),
            Text("passed", style="green") if gate["passed"] else Text("failed", style="red"),
            plain(_failures(gate.get("failures", ()))),
        )
    return made


def _measure(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(_or_nothing(value))


def _failures(failures: Sequence[object]) -> str:
    lines = [_failure(failure) for failure in failures[:FAILURES_SHOWN]]
    more = len(failures) - len(lines)
    return "\n".join([*lines, f"and {more} more"] if more else lines)


def _failure(failure: object) -> str:
    if isinstance(failure, dict):
        return ", ".join(f"{name}: {value}" for name, value in failure.items())
    return str(failure)


def guard_facts(seen: Json | None) -> Table | None:
    """What was seen of the guard beyond its gates: how alike the model is to itself, and what may move next."""
    if not seen or not seen["inputs"]:
        return None
    same, near = seen["consistency"], seen["near_boundary"]
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    grid.add_row("from", plain(f"number {seen['number']} of those that were put" if seen["number"] else "a file"))
    grid.add_row("inputs", plain(f"{seen['inputs']}, of which the unedited model gets {seen['right']} right"))
    grid.add_row("correlation", plain(_measure(same["pearson"])))
    names = ("right_to_wrong", "wrong_to_right", "wrong_to_other_wrong")
    grid.add_row("changed", plain(", ".join(f"{same[name]} {name.replace('_', ' ')}" for name in names)))
    grid.add_row("near a boundary", plain(f"{near['inputs']}, of which {near['changed']} changed"))
    return grid


def conflicts_table(conflicts: Sequence[Json]) -> Table | None:
    """One row a live edit of nearly the same input that wants another answer."""
    if not conflicts:
        return None
    made = table("edit", "input", "wants", "similarity>")
    for one in conflicts:
        made.add_row(
            plain(one["edit_id"]), plain(one["input"]), plain(one["wanted"]), plain(_measure(one["similarity"]))
        )
    return made


def robustness_table(measured: OfInput) -> Table:
    """One row a kind of change: how many texts there are of it, and the share that get the target."""
    made = table("change", "texts>", "right>")
    for kind, of_kind in (*measured["kinds"].items(), ("all", measured)):
        made.add_row(plain(kind.replace("_", " ")), plain(of_kind["texts"]), plain(_measure(of_kind["right"])))
    return made


def changed_table(failures: Sequence[Json]) -> Table:
    """One row a changed text that is answered otherwise than it should be; `was` where the unedited model answered."""
    columns = [name for name in ("kind", "text", "was", "now") if all(name in failure for failure in failures)]
    made = table(*columns)
    for failure in failures[:FAILURES_SHOWN]:
        made.add_row(*(plain(failure[name]) for name in columns))
    if len(failures) > FAILURES_SHOWN:
        made.add_row(*[""] * (len(columns) - 1), plain(f"and {len(failures) - FAILURES_SHOWN} more"))
    return made


def answers_table(edit: Edit) -> Table:
    """Input and rephrases with the model's answers before and after the edit."""
    made = table("", "text", "before", "score>", "after", "score>")
    before, after = _answers(edit, "before"), _answers(edit, "after")
    texts = [("input", edit["input"]), *(("rephrase", text) for text in edit.get("rephrases", ()))]
    for index, (kind, text) in enumerate(texts):
        cells = [cell for side in (before, after) for cell in _answer_and_score(_at(side, index))]
        made.add_row(plain(kind), plain(text), *cells)
    return made


def _answers(edit: Edit, when: str) -> list[Prediction]:
    answers = edit.get("before") if when == "before" else edit.get("after")
    return [answers["prediction"], *answers.get("rephrases", ())] if answers else []


def _at(predictions: Sequence[Prediction], index: int) -> Prediction | None:
    return predictions[index] if index < len(predictions) else None


def history_table(history: Sequence[HistoryRow]) -> Table:
    """One row an event, with the start of the hash that chains it."""
    made = table("at (UTC)", "event", "actor", "detail", "hash")
    for row in history:
        made.add_row(
            plain(moment(row["at"])),
            plain(row["event"]),
            plain(row["actor"]),
            plain(_detail(row["detail"])),
            plain(row["hash"].removeprefix("sha256:")[:12]),
        )
    return made


def _detail(detail: Mapping[str, Any]) -> str:
    """What happened, in short: a verdict by its failed gates, a digest by its beginning."""
    return ", ".join(f"{name} {_in_short(value)}" for name, value in detail.items() if value not in ("", None))


def _in_short(value: object) -> str:
    if isinstance(value, dict):
        failed = [gate["name"] for gate in value.get("gates", ()) if not gate["passed"]]
        return f"failed {', '.join(failed)}" if failed else "passed"
    text = str(value)
    return text[:12] if len(text) == 64 and text.isalnum() else text


def _or_nothing(value: object) -> object:
    return "" if value is None else value
