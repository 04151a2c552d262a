"""`errata bench speed`: its arithmetic, its turns, its results as a table and as JSON, and what sends the requests."""

from __future__ import annotations

import io
import json
import random
import socket
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from rich.console import Console

from app.model import load
from app.store import Store
from benchmarks.speed import inside
from benchmarks.speed.__main__ import EVERY, Measured, show, write
from benchmarks.speed.figures import Bound, Figure, Spread, in_turn, ratio, table
from benchmarks.speed.load import Command, Load
from benchmarks.speed.prepared import Databases, url
from benchmarks.speed.scaling import Point, sizes
from benchmarks.speed.stages import Stage, histograms
from benchmarks.speed.texts import LONGEST, PREPARED, SHORTEST, some
from tests.deployed import WORDS, deploy


def test_a_spread_holds_median_and_quartiles() -> None:
    assert Spread.of([5.0, 1.0, 4.0, 2.0, 3.0]) == Spread(2.0, 3.0, 4.0, 5)
    assert Spread.of([7.0]) == Spread(7.0, 7.0, 7.0, 1)


def test_a_ratio_pairs_what_was_measured_in_the_same_turn() -> None:
    assert ratio([2.0, 40.0, 6.0], [1.0, 10.0, 2.0]) == Spread.of([2.0, 4.0, 3.0])
    with pytest.raises(ValueError, match="zip"):
        ratio([1.0, 2.0], [1.0])


def test_ways_take_turns_and_each_goes_first_as_often_as_the_others() -> None:
    order: list[tuple[str, int]] = []

    def way(name: str, value: float) -> Any:
        def measure(turn: int) -> float:
            order.append((name, turn))
            return value + turn

        return measure

    assert in_turn([way("a", 0), way("b", 10)], 4) == [[0, 1, 2, 3], [10, 11, 12, 13]]
    assert order == [("a", 0), ("b", 0), ("b", 1), ("a", 1), ("a", 2), ("b", 2), ("b", 3), ("a", 3)]


@pytest.mark.parametrize(
    ("bound", "value", "reached"),
    [
        (Bound(1.05), 1.05, True),
        (Bound(1.05), 1.06, False),
        (Bound(0.85, at_least=True), 0.84, False),
        (Bound(0.85, at_least=True), 0.9, True),
        (None, 3.0, None),
    ],
)
def test_a_figure_says_whether_its_median_is_what_is_required(
    bound: Bound | None, value: float, *, reached: bool | None
) -> None:
    figure = Figure("http", "case", Spread(0.0, value, 9.0, 3), bound)
    assert figure.reached is reached
    assert figure.as_json()["reached"] is reached


def test_the_table_shows_what_was_measured_beside_what_is_required() -> None:
    figures = [
        Figure("edit", "a case", Spread(4.0, 4.5, 5.0, 20), Bound(5), parts={"edit ms": Spread(1.0, 123.4, 2.0, 20)}),
        Figure("revert", "first", Spread(40.0, 61.0, 70.0, 20), Bound(50), unit="ms"),
        Figure("litserve", "beside it", Spread(1.0, 2.0, 3.0, 20)),
    ]
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(table(figures))
    edit, revert, litserve = [line for line in console.export_text().splitlines() if line.strip()][3:6]
    assert all(part in edit for part in ("4.500 (4.000–5.000) ×", "≤ 5.000", "yes", "edit ms 123.4"))
    assert all(part in revert for part in ("61.0 (40.0–70.0) ms", "≤ 50.0", "no"))
    assert "reported" in litserve


@pytest.fixture
def measured() -> Measured:
    points = [Point(live, 0.02, 20.0 + live / 10, 4.0, 80.0, 4.0, 79.0, 500.0, 4.0) for live in (0, 10, 100)]
    return Measured(
        figures=[Figure("flat", "case", Spread(0.9, 1.0, 1.1, 20), Bound(1.3))],
        skipped={"gpu": "there is no CUDA device"},
        stages=[Stage("edit", "fit", 9.5)],
        scaling=points,
        profile="a table",
        seconds={"flat": 3.2},
    )


def test_results_are_written_as_json_figure_and_profile(measured: Measured, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="figures need errata[bench]")
    write(measured, {"plan": {"edits": 100}}, tmp_path)
    document = json.loads((tmp_path / "speed.json").read_text("utf-8"))
    assert document["plan"] == {"edits": 100}
    assert document["figures"] == [
        {
            "key": "flat",
            "case": "case",
            "measured": {"lower": 0.9, "median": 1.0, "upper": 1.1, "count": 20},
            "required": {"limit": 1.3, "at_least": False},
            "unit": "×",
            "parts": {},
            "reached": True,
        }
    ]
    assert [point["live"] for point in document["scaling"]] == [0, 10, 100]
    assert document["stages"] == [{"of": "edit", "name": "fit", "milliseconds": 9.5, "times": 1.0}]
    assert document["skipped"] == {"gpu": "there is no CUDA device"}
    assert (tmp_path / "speed.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "speed_profile.txt").read_text("utf-8") == "a table"


def test_what_is_skipped_is_told(measured: Measured) -> None:
    console = Console(width=160, record=True, file=io.StringIO())
    show(measured, console)
    assert "gpu: skipped, there is no CUDA device" in console.export_text()


def test_it_is_drawn_over_nought_and_powers_of_ten() -> None:
    assert sizes(100_000) == [0, 10, 100, 1_000, 10_000, 100_000]
    assert sizes(60) == [0, 10, 60]


def test_histograms_of_seconds_are_read_with_their_labels() -> None:
    exposition = """\
# HELP errata_edit_seconds Stages of an edit.
# TYPE errata_edit_seconds histogram
errata_edit_seconds_bucket{le="+Inf",stage="fit"} 4.0
errata_edit_seconds_count{stage="fit"} 4.0
errata_edit_seconds_sum{stage="fit"} 0.5
# HELP errata_batch_size Inputs in one forward pass.
# TYPE errata_batch_size histogram
errata_batch_size_bucket{le="+Inf"} 7.0
errata_batch_size_count 7.0
errata_batch_size_sum 70.0
"""
    assert histograms(exposition) == {"errata_edit_seconds fit": (0.5, 4.0)}


def test_sentences_are_distinct_and_longer_lists_begin_like_shorter_ones() -> None:
    texts = some(PREPARED, 500)
    assert len(set(texts)) == 500
    assert some(PREPARED, 100) == texts[:100]
    assert {SHORTEST, LONGEST} <= {len(text.split()) for text in texts}


class Answering:
    """A trivial service. It counts connections and bodies; what is `refuse` it answers with 429."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.headers: list[dict[bytes, bytes]] = []
        self.clients: set[Any] = set()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        body = (await receive())["body"]
        self.bodies.append(body)
        self.headers.append(dict(scope["headers"]))
        self.clients.add(scope["client"])
        headers = [(b"content-length", b"2")]
        await send({"type": "http.response.start", "status": 429 if body == b'"refuse"' else 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"{}"})


@pytest.fixture
def answering() -> Iterator[tuple[Answering, str]]:
    with closing(socket.socket()) as bound:
        bound.bind(("127.0.0.1", 0))
        application = Answering()
        server = uvicorn.Server(uvicorn.Config(application, lifespan="off", log_level="error"))
        serving = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        serving.start()
        while not server.started:
            time.sleep(0.01)
        yield application, f"http://127.0.0.1:{bound.getsockname()[1]}/"
        server.should_exit = True
        serving.join()


def test_requests_go_over_as_many_connections_that_stay_open(answering: tuple[Answering, str]) -> None:
    application, address = answering
    with Load() as load:
        command = Command(address, ['"a"', '"b"'], connections=4, seconds=0.3)
        first, second = load.run(command), load.run(command)
    sent = [measured.rate * measured.seconds for measured in (first, second)]
    assert min(sent) > 8
    assert 0 <= len(application.bodies) - sum(sent) <= 8  # those that were under way at the end
    assert set(application.bodies) == {b'"a"', b'"b"'}
    assert len(application.clients) == 4
    assert 0 < first.quantile(0.0) <= first.quantile(0.5) <= first.quantile(1.0) < 0.3


def test_each_body_is_sent_once_unless_again(answering: tuple[Answering, str]) -> None:
    application, address = answering
    bodies = [json.dumps(number) for number in range(20)] + ['"refuse"'] * 3
    with Load() as load:
        measured = load.run(Command(address, bodies, 3, 30.0, headers={"Prefer": "wait=5"}, again=False))
    assert sorted(application.bodies) == sorted(body.encode() for body in bodies)
    assert len(measured.latencies) == 20
    assert measured.refused == {"429": 3}
    assert measured.seconds < 30
    assert {headers[b"prefer"] for headers in application.headers} == {b"wait=5"}


def test_a_load_whose_process_has_died_says_so(answering: tuple[Answering, str]) -> None:
    with Load() as load:
        load._process.kill()
        load._process.wait()
        with pytest.raises((RuntimeError, BrokenPipeError)):
            load.run(Command(answering[1], ['"a"'], 1, 0.1))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return deploy(tmp_path_factory.mktemp("model") / "bert")


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the tiny model knows."""
    texts = [{"input": text} for text in words(60, seed=1)]
    monkeypatch.setattr(inside, "known_inputs", lambda: texts)


def words(count: int, *, seed: int) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.sample(WORDS, 6)) for _ in range(count)]


def test_a_prepared_database_holds_as_many_edits_as_it_should_and_all_of_them_hold(model: Path, tmp_path: Path) -> None:
    database = url(tmp_path / "errata.db")
    told: list[int] = []
    inside.extend(model, database, iter(words(200, seed=2)), 5, "cpu", told.append)
    inside.extend(model, database, iter(words(200, seed=2)), 12, "cpu", told.append)
    assert told[-1] == 12
    with closing(sqlite3.connect(tmp_path / "errata.db")) as connection:
        edits = connection.execute("SELECT input, target, status FROM edits ORDER BY number").fetchall()
    assert [status for _, _, status in edits] == ["live"] * 12
    assert len({text for text, _, _ in edits}) == 12
    with inside.served(model, database, "cpu") as served:
        asks = served.asks([text for text, _, _ in edits])
        assert [served.model.labels[label] for label in served.predict(asks)] == [target for _, target, _ in edits]
        assert all(served.fired(asks))


def test_the_chain_of_a_prepared_database_has_no_flaw(model: Path, tmp_path: Path) -> None:
    database = url(tmp_path / "errata.db")
    inside.extend(model, database, iter(words(200, seed=2)), 3, "cpu", lambda done: None)
    store = Store.open(database)
    try:
        ledger = store.ledger(inside.identity(load(model, device="cpu")))
        assert ledger.verify() == []
    finally:
        store.close()


def test_texts_that_bring_no_edit_are_an_error_and_not_an_endless_search(model: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="there are 0"):
        inside.extend(model, url(tmp_path / "errata.db"), iter([]), 3, "cpu", lambda done: None)


def test_an_interrupted_preparation_does_not_count_as_prepared_and_is_gone_on_with(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    databases = Databases(tmp_path, model, "cpu")

    def interrupted(folder: Path, database: str, *_: object) -> None:
        Path(database.removeprefix("sqlite:///")).write_bytes(b"half")
        raise KeyboardInterrupt

    def going_on(folder: Path, database: str, *_: object) -> None:
        with Path(database.removeprefix("sqlite:///")).open("ab") as file:
            file.write(b", whole")

    monkeypatch.setattr(inside, "extend", interrupted)
    with pytest.raises(KeyboardInterrupt):
        databases.file(3)
    assert not list(tmp_path.rglob("3.db"))
    monkeypatch.setattr(inside, "extend", going_on)
    assert databases.file(3).read_bytes() == b"half, whole"
    assert databases.file(3).read_bytes() == b"half, whole"  # made once


def test_parts_have_names_of_their_own() -> None:
    assert len(set(EVERY)) == len(EVERY)
