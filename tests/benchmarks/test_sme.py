"""`errata bench sme` on a tiny model: what it measures, and that an interruption changes none of it."""

from __future__ import annotations

import csv
import json
import random
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import fields, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from app.cli.client import Client
from app.cli.documents import Draft, Edit
from app.settings import Settings
from benchmarks import sme
from benchmarks.checkpoints import Checkpoint, drawn, rephrases, schedule
from benchmarks.curves import Curve, as_csv
from benchmarks.journal import Differs, Journal
from benchmarks.lifelong import EDITORS, NothingToEdit, Plan, Ran, Starting, run
from benchmarks.page import page
from benchmarks.reporting import Entry
from benchmarks.splits import split
from tests.deployed import LABELS, WORDS, deploy
from tests.journeys.processes import Process

REPORTS = 12
TIMES = ("seconds", "fit_seconds")


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    model = deploy(tmp_path_factory.mktemp("model") / "bert")
    return Plan(
        name="tiny",
        data={"tiny.jsonl": "0"},
        model=str(model),
        sizes=(60, 40, 30),
        edits=REPORTS,
        baseline_edits=3,
        test_sample=20,
        memory=50,
        seed=0,
        options={"transformer-patcher": {"threshold": 0.9}},  # queries of a random model lie near one another
    )


def pool() -> list[Entry]:
    """Texts with a label each that the model has never seen, so that it is wrong on most."""
    draw = random.Random(0)
    return [Entry(" ".join(draw.sample(WORDS, 5)), draw.choice(LABELS)) for _ in range(130)]


def starting(client: type[Client] = Client) -> Starting:
    """A service as a process of its own that takes no time to start."""

    @contextmanager
    def started(folder: Path, settings: Mapping[str, str]) -> Iterator[Client]:
        given: dict[str, Any] = {name.lower(): value for name, value in settings.items()}
        url = f"sqlite:///{folder}/errata.db"
        here = Settings(**given, database_url=url, cache_dir=folder / "cache", device="cpu", memory_from_traffic=False)
        with Process(here) as process, client(str(process.client.base_url)) as connected:
            yield connected

    return started


class Killed(Exception):
    """Where a kill would have ended the run."""


class DyingOnce(Client):
    """The service takes the fifth report, and what asked for it dies before it has heard the answer."""

    reported = 0

    def report(self, draft: Draft, *, key: str, wait: float = 0) -> Edit:
        self.reported += 1
        try:
            return super().report(draft, key=key, wait=wait)
        finally:
            if self.reported == 5:
                raise Killed


def measured(plan: Plan, names: Sequence[str], work: Path, client: type[Client] = Client) -> list[Ran]:
    work.mkdir(exist_ok=True)
    return run(plan, split(pool(), plan.sizes, plan.seed), names, work, starting(client))


def untimed(curve: Curve) -> list[Checkpoint]:
    return [replace(checkpoint, **dict.fromkeys(TIMES)) for checkpoint in curve.checkpoints]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sme") / "work"


@pytest.fixture(scope="module")
def ran(plan: Plan, work: Path) -> list[Ran]:
    """Every editor, baselines too."""
    return measured(plan, list(EDITORS), work)


@pytest.mark.journey
def test_every_editor_has_its_checkpoints_and_baselines_have_fewer_reports(ran: list[Ran]) -> None:
    at = {each.curve.editor: [checkpoint.reports for checkpoint in each.curve.checkpoints] for each in ran}
    assert at == {name: [1, 3] if editor.baseline else [1, 10, REPORTS] for name, editor in EDITORS.items()}


@pytest.mark.journey
def test_what_the_judge_lets_live_was_right_and_is_right(ran: list[Ran]) -> None:
    judged = [each.curve.last for each in ran if not each.curve.baseline]
    assert all(last.live + last.not_needed + last.refused == REPORTS and last.live > 0 for last in judged)
    assert [(last.success, last.retained) for last in judged] == [(1.0, 1.0)] * len(judged)


@pytest.mark.journey
def test_inputs_on_which_nothing_fires_are_among_the_unchanged(ran: list[Ran]) -> None:
    for each in ran:
        for checkpoint in each.curve.checkpoints:
            assert 0 <= checkpoint.untouched <= checkpoint.unchanged <= 1


@pytest.mark.journey
def test_a_killed_run_goes_on_to_the_same_figures_and_makes_no_edit_twice(
    plan: Plan, ran: list[Ran], tmp_path: Path
) -> None:
    name = next(iter(EDITORS))
    work = tmp_path / "work"
    with pytest.raises(Killed):
        measured(plan, [name], work, DyingOnce)
    assert len(Journal(work / name / "reports.jsonl")) == 4
    (again,) = measured(plan, [name], work)
    assert untimed(again.curve) == untimed(ran[0].curve)
    with starting()(work / name, {"MODEL": str(plan.model)}) as client:
        assert len(client.edits(limit=100)["items"]) == REPORTS


@pytest.mark.journey
def test_what_is_finished_is_not_done_again(plan: Plan, ran: list[Ran], work: Path) -> None:
    assert run(plan, split(pool(), plan.sizes, plan.seed), list(EDITORS), work, refusing) == ran


@pytest.mark.journey
def test_another_plan_in_the_same_folder_is_refused(plan: Plan, ran: list[Ran], work: Path) -> None:
    with pytest.raises(Differs, match="seed was 0 and is 1 now"):
        run(replace(plan, seed=1), split(pool(), plan.sizes, 1), list(EDITORS), work, refusing)


@pytest.mark.journey
def test_without_a_mistake_to_report_nothing_is_measured(plan: Plan, tmp_path: Path) -> None:
    with pytest.raises(NothingToEdit):
        measured(replace(plan, edits=0), [next(iter(EDITORS))], tmp_path / "work")


def refusing(folder: Path, settings: Mapping[str, str]) -> AbstractContextManager[Client]:
    raise AssertionError(f"a service is started in {folder}")


@pytest.mark.journey
def test_results_are_written_as_json_csv_figure_and_page(plan: Plan, ran: list[Ran], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="figures need errata[bench]")
    sme.write(plan, ran, tmp_path)
    document = json.loads((tmp_path / "tiny.json").read_text("utf-8"))
    assert [Curve.read(each) for each in document["editors"]] == [each.curve for each in ran]
    assert (tmp_path / "tiny.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "tiny.html").read_text("utf-8")


@pytest.mark.journey
def test_the_csv_has_one_row_an_editor_and_checkpoint(ran: list[Ran]) -> None:
    rows = list(csv.DictReader(as_csv([each.curve for each in ran]).splitlines()))
    assert [(row["editor"], row["reports"]) for row in rows] == [
        (each.curve.editor, str(checkpoint.reports)) for each in ran for checkpoint in each.curve.checkpoints
    ]
    assert set(rows[0]) == {field.name for field in fields(Checkpoint)}


class Links(HTMLParser):
    """What a page would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found += [str(value) for name, value in attributes if name in ("src", "href", "action", "data")]


@pytest.mark.journey
def test_the_page_fetches_nothing_and_quotes_what_it_is_told(ran: list[Ran]) -> None:
    curves = [each.curve for each in ran]
    made = page(curves, title="a & b", lead="<b>", svg='<svg id="drawn"></svg>', configuration={"data": "<c>"})
    links = Links()
    links.feed(made)
    assert not links.found
    for part in ('<svg id="drawn">', "a &amp; b", "&lt;b&gt;", "&lt;c&gt;"):
        assert part in made
    assert f"<td>{curves[0].last.generalisation:.4f}</td>" in made


def test_only_a_process_that_serves_the_very_database_is_ended(tmp_path: Path) -> None:
    sleeping = [sys.executable, "-S", "-c", "import time; time.sleep(60)", "--database"]
    ours, other = (
        subprocess.Popen([*sleeping, f"sqlite:///{tmp_path}/{name}/errata.db"]) for name in ("grace", "grace/old")
    )
    try:
        sme.end_those_left(f"sqlite:///{tmp_path}/grace/errata.db")
        assert ours.wait(10) == -signal.SIGKILL
        assert other.poll() is None
    finally:
        for process in (ours, other):
            process.kill()
            process.wait()


def test_it_is_measured_at_checkpoints_and_after_the_last_report() -> None:
    assert [schedule(reports) for reports in (1, 10, 37)] == [[1], [1, 10], [1, 10, 30, 37]]


def test_a_sample_of_more_keeps_what_was_drawn_unless_a_new_one_takes_its_place() -> None:
    entries = [Entry(f"text {number}", "a") for number in range(60)]
    few, more = drawn(entries[:30], 10, seed=3), drawn(entries, 10, seed=3)
    assert {entry for entry in more if entry in entries[:30]} <= set(few)
    assert drawn(list(reversed(entries)), 10, seed=3) == more


def test_one_word_is_rephrased_by_the_case_of_its_first_letter() -> None:
    assert [rephrases(word, 0) for word in ("boat", "Boat", "'em")] == [["Boat"], ["boat"], []]
    assert len(rephrases("where is my parcel now", 0)) > 1


def test_lines_of_both_shapes_are_read_and_others_refused(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.jsonl", tmp_path / "bad.jsonl"
    good.write_text('{"text": "a", "label": "b", "id": 1}\n{"input": "c", "target": "d"}\n', "utf-8")
    bad.write_text('{"input": "c", "label": "d"}\n', "utf-8")
    assert sme.read_pool([good]) == [Entry("a", "b"), Entry("c", "d")]
    with pytest.raises(sme.BadLine, match=r"bad\.jsonl, line 1"):
        sme.read_pool([good, bad])
