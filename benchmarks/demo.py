"""A walk through Errata with real processes over HTTP: mistakes found, corrected, taken back, and kept through kill -9.

Every sentence with a mark in front of it is checked before it is printed; the first that does not hold ends the demo.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from rich.console import Console
from rich.text import Text

from app.cli.client import Client, Problem
from app.cli.documents import Draft, Edit, Prediction
from app.cli.tables import table
from app.cli.terminal import plain
from benchmarks.server import ERRATA, NotStarted, Server, environment

INPUTS_A_REQUEST = 250


class NotAsClaimed(Exception):
    """A sentence of the demo that turned out not to hold."""


@dataclass(frozen=True, slots=True)
class Utterance:
    """A held-out row of the built-in model's data set."""

    text: str
    label: str


@dataclass(frozen=True, slots=True)
class Correction:
    """A mistake of the model's, and the live edit that corrected it."""

    utterance: Utterance
    edit_id: str
    said: str
    seconds: float


class Story:
    """What is told, step by step, and checked."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.claims = 0
        self._steps = 0

    def step(self, title: str) -> None:
        """A numbered heading."""
        self._steps += 1
        self.console.print()
        self.console.print(Text(f"{self._steps}. {title}", style="bold"))

    def say(self, sentence: str) -> None:
        """Something that is so, without a claim."""
        self.console.print(plain(f"   {sentence}"))

    def claim(self, holds: bool, sentence: str) -> None:
        """Say the sentence if it holds. Raises NotAsClaimed."""
        if not holds:
            raise NotAsClaimed(f"This did not hold: {sentence}")
        self.claims += 1
        self.console.print(Text("   ✓ ", style="green").append_text(plain(sentence)))


def main() -> int:
    """Tell the story; 0 when every claim held."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--edits", type=int, default=10, help="how many mistakes to correct (default 10)")
    wanted = parser.parse_args().edits
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    folder = Path(tempfile.mkdtemp(prefix="errata-demo-"))
    server, story = Server(folder), Story(console)
    began = time.monotonic()
    try:
        _tell(story, server, wanted)
    except (NotAsClaimed, NotStarted, Problem, subprocess.TimeoutExpired) as failure:
        console.print(plain(f"\nThe demo failed. {failure}"), style="red")
        console.print(plain(f"The end of the service's log:\n{server.last_words()}"))
        return 1
    finally:
        server.close()
        shutil.rmtree(folder, ignore_errors=True)
    console.print(plain(f"\nAll {story.claims} claims held, in {time.monotonic() - began:.0f} s."), style="green")
    return 0


def _tell(story: Story, server: Server, wanted: int) -> None:
    story.step("Start the service")
    story.say("The very first start fits the built-in model, which takes a minute or two.")
    seconds = server.start(shown=True)
    with Client(server.url) as client:
        model = client.model()
        story.claim(model["revision"] == 0, f"The service is ready after {seconds:.1f} s, at revision 0: no edits yet.")
        mistakes = _find_mistakes(story, client)
        corrections = _correct(story, client, mistakes, wanted)
        _compare(story, client, corrections)
        _take_one_back(story, client, corrections)
    _kill_and_start_again(story, server)
    _stop_and_verify(story, server)


def _find_mistakes(story: Story, client: Client) -> list[Utterance]:
    story.step("Find real mistakes")
    rows = _heldout()
    answers = _ask(client, rows)
    mistakes = [row for row, answer in zip(rows, answers, strict=True) if answer["label"] != row.label]
    right = len(rows) - len(mistakes)
    story.say(
        f"The model has never seen {len(rows)} held-out messages; it gets {right} right ({right / len(rows):.1%})."
    )
    story.claim(len(mistakes) > 0, f"That leaves {len(mistakes)} real mistakes.")
    return mistakes


def _correct(story: Story, client: Client, mistakes: Sequence[Utterance], wanted: int) -> list[Correction]:
    story.step(f"Report {wanted} of them")
    corrections: list[Correction] = []
    for mistake in mistakes:
        if len(corrections) == wanted:
            break
        correction = _report(story, client, mistake)
        if correction is not None:
            corrections.append(correction)
    story.claim(len(corrections) == wanted, f"{len(corrections)} corrections are live.")
    total = sum(correction.seconds for correction in corrections)
    story.say(f"From report to live took {total / wanted:.2f} s on average, checks included.")
    return corrections


def _report(story: Story, client: Client, mistake: Utterance) -> Correction | None:
    """The correction, if it went live. What the judge refuses is told, and the next mistake is taken."""
    began = time.monotonic()
    draft = Draft(input=mistake.text, target=mistake.label, reason="demo", reporter="demo")
    try:
        record = client.report(draft, key=str(uuid.uuid4()), wait=60)
    except Problem as refusal:
        if refusal.code not in ("edit_rejected", "edit_failed"):
            raise
        story.say(f"✗ {_short(mistake.text)}: {refusal}")
        return None
    if record["status"] == "not_needed":
        story.say(f"- {_short(mistake.text)}: an earlier correction already covers it.")
        return None
    if record["status"] != "live":
        raise NotAsClaimed(f"Edit {record['id']} is {record['status']} after 60 s.")
    return Correction(mistake, record["id"], _said_before(record), time.monotonic() - began)


def _compare(story: Story, client: Client, corrections: Sequence[Correction]) -> None:
    story.step("Before and after")
    rows = [correction.utterance for correction in corrections]
    before, after = _ask(client, rows, edited=False), _ask(client, rows)
    made = table("message", "before", "score>", "now", "score>", "seconds>")
    for correction, old, new in zip(corrections, before, after, strict=True):
        cells = [correction.utterance.text, old["label"], f"{old['score']:.3f}", new["label"], f"{new['score']:.3f}"]
        made.add_row(*map(plain, [*cells, f"{correction.seconds:.2f}"]))
    story.console.print(made)
    answers = zip(corrections, after, strict=True)
    story.claim(
        all(answer["label"] == correction.utterance.label for correction, answer in answers),
        f"All {len(rows)} now get the right answer.",
    )
    answers = zip(corrections, after, strict=True)
    story.claim(
        all(correction.edit_id in _fired(answer) for correction, answer in answers),
        "Each answer names the edit that made it.",
    )
    _compare_all(story, client)


def _compare_all(story: Story, client: Client) -> None:
    """What the corrections did to every other held-out message."""
    rows = _heldout()
    before, after = _ask(client, rows, edited=False), _ask(client, rows)
    untouched = [(old, new) for old, new in zip(before, after, strict=True) if not _fired(new)]
    story.claim(
        all(_without_fired(old) == _without_fired(new) for old, new in untouched),
        f"On {len(untouched)} of all {len(rows)} messages no edit fired; their scores are the same to the last bit.",
    )
    sides = [
        (old["label"] == row.label, new["label"] == row.label)
        for row, old, new in zip(rows, before, after, strict=True)
    ]
    story.say(
        f"Right in all: {sum(old for old, _ in sides)} before, {sum(new for _, new in sides)} now; "
        f"{sides.count((True, False))} that were right are wrong now."
    )


def _take_one_back(story: Story, client: Client, corrections: Sequence[Correction]) -> None:
    story.step("Take one back")
    chosen = _one_that_stands_alone(client, corrections)
    rest = [correction for correction in corrections if correction is not chosen]
    rows = _heldout()
    foreseen = _ask(client, rows, exclude=[chosen.edit_id])
    began = time.monotonic()
    record = client.revert(chosen.edit_id, reason="demo: taken back")
    seconds = time.monotonic() - began
    story.claim(
        record["status"] == "reverted",
        f"The correction of {_short(chosen.utterance.text)} is reverted, after {seconds * 1000:.0f} ms.",
    )
    (answer,) = _ask(client, [chosen.utterance])
    story.claim(answer["label"] == chosen.said, f"That message gets its old answer again: {chosen.said}.")
    others = _ask(client, [correction.utterance for correction in rest])
    story.claim(
        all(new["label"] == correction.utterance.label for correction, new in zip(rest, others, strict=True)),
        f"The other {len(rest)} corrections still hold.",
    )
    story.claim(
        _ask(client, rows) == foreseen,
        f"All {len(rows)} answers are, to the last bit, what leaving the edit out (`exclude`) had shown beforehand.",
    )


def _one_that_stands_alone(client: Client, corrections: Sequence[Correction]) -> Correction:
    """A correction whose message no other edit changes too, so that its old answer must come back."""
    for correction in corrections:
        (answer,) = _ask(client, [correction.utterance], exclude=[correction.edit_id])
        if not _fired(answer):
            return correction
    raise NotAsClaimed("Every corrected message is covered by a second edit; none can show its old answer again.")


def _kill_and_start_again(story: Story, server: Server) -> None:
    story.step("kill -9, and start again")
    rows = _heldout()
    with Client(server.url) as client:
        revision, edits, answers = client.model()["revision"], _statuses(client), _ask(client, rows)
    server.kill()
    story.say("The server was killed with SIGKILL.")
    seconds = server.start()
    with Client(server.url) as client:
        story.claim(
            client.model()["revision"] == revision,
            f"The service is back after {seconds:.1f} s, at the same revision, {revision}.",
        )
        story.claim(_statuses(client) == edits, f"All {len(edits)} edits are there, each as it was.")
        story.claim(_ask(client, rows) == answers, f"All {len(rows)} answers are the same to the last bit.")


def _stop_and_verify(story: Story, server: Server) -> None:
    story.step("Stop, and verify the records")
    began = time.monotonic()
    code = server.stop()
    story.claim(
        code in (0, -signal.SIGTERM),
        f"The service stopped when it was asked to, after {time.monotonic() - began:.1f} s.",
    )
    story.say("errata verify says:")
    checked = subprocess.run([*ERRATA, "verify", "--database", server.database], env=environment(), check=False)
    story.claim(
        checked.returncode == 0, "The chain of hashes, every patch and every recorded answer are as they should be."
    )


def _heldout() -> list[Utterance]:
    lines = resources.files("app.model").joinpath("intents", "heldout.jsonl").read_text("utf-8").splitlines()
    return [Utterance(**json.loads(line)) for line in lines]


def _ask(
    client: Client, rows: Sequence[Utterance], *, edited: bool = True, exclude: Sequence[str] = ()
) -> list[Prediction]:
    """The answers to all rows, in requests that a service with default limits takes."""
    texts = [row.text for row in rows]
    parts = [texts[start : start + INPUTS_A_REQUEST] for start in range(0, len(texts), INPUTS_A_REQUEST)]
    answers = [client.predict(part, edited=edited, exclude=exclude) for part in parts]
    return [prediction for answer in answers for prediction in answer["predictions"]]


def _statuses(client: Client) -> dict[str, str]:
    return {edit["id"]: edit["status"] for edit in client.edits(limit=200)["items"]}


def _fired(prediction: Prediction) -> set[str]:
    return {fired["edit_id"] for fired in prediction.get("fired", ())}


def _without_fired(prediction: Prediction) -> dict[str, object]:
    return {name: value for name, value in prediction.items() if name != "fired"}


def _said_before(record: Edit) -> str:
    before = record.get("before")
    assert before is not None, "a live edit has its evidence"
    return before["prediction"]["label"]


def _short(text: str) -> str:
    return f"“{text if len(text) <= 50 else text[:49] + '…'}”"


if __name__ == "__main__":
    sys.exit(main())
