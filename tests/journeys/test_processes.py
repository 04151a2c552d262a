"""Starting, stopping, and several processes on one database."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.settings import Settings
from tests.journeys.conftest import settings_on
from tests.journeys.processes import Process, eventually

pytestmark = pytest.mark.journey

SLOW = {"options": {"fit": "gradient", "steps": 300}}
ENDED = ("live", "rejected", "failed", "not_needed")


@pytest.fixture(params=["sqlite", "postgresql"])
def anywhere(request: pytest.FixtureRequest, settings: Settings, tmp_path: Path, tiny_model: Path) -> Settings:
    """Settings on either database."""
    if request.param == "sqlite":
        return settings
    new_url: Callable[[], str] = request.getfixturevalue("postgresql")
    return settings_on(new_url(), tmp_path, tiny_model)


def report(client: httpx.Client, text: str, **fields: Any) -> str:
    return str(client.post("/edits", json={"input": text, "target": "red", **fields}).json()["id"])


def status(client: httpx.Client, edit_id: str) -> str:
    return str(client.get(f"/edits/{edit_id}").json()["status"])


def test_a_stopped_service_finishes_the_edit_in_hand_and_leaves_the_rest_queued(settings: Settings) -> None:
    with Process(settings) as process:
        ids = [report(process.client, f"w{n} w{n + 1} w{n + 2}", **SLOW) for n in range(8)]
        eventually(lambda: status(process.client, ids[0]) != "queued")
        assert process.stop() in (0, -signal.SIGTERM)
    with Process(settings) as process:
        for edit_id in ids:
            eventually(lambda edit_id=edit_id: status(process.client, edit_id) in ENDED)
        history = [process.client.get(f"/edits/{edit_id}").json()["history"] for edit_id in ids]
        assert all([row["event"] for row in rows].count("requeued") == 0 for rows in history), "an edit was torn"


def test_a_stopping_service_lets_go_of_those_who_wait_for_an_edit(settings: Settings) -> None:
    with Process(settings) as process:
        ids = [report(process.client, f"w{n} w{n + 1} w{n + 2}", **SLOW) for n in range(8)]
        with ThreadPoolExecutor(2) as pool:
            stream = pool.submit(process.client.get, f"/edits/{ids[-1]}/events")
            body = {"input": "w30 w31", "target": "red", **SLOW}
            wait = pool.submit(process.client.post, "/edits", json=body, headers={"Prefer": "wait=60"})
            eventually(lambda: len(process.client.get("/edits").json()["items"]) == len(ids) + 1)
            started = time.monotonic()
            process.stop()
            assert time.monotonic() - started < 8
            assert "queued" in stream.result().text
            assert wait.result().status_code in (200, 201, 202)


def test_edits_of_both_kinds_made_in_one_process_are_served_by_another(anywhere: Settings) -> None:
    with Process(anywhere) as one, Process(anywhere) as other:
        for text, editor in (("w1 w2", "grace"), ("w5 w6", "transformer-patcher")):
            body = {"input": text, "target": _mistake(one.client, text), "editor": editor}
            assert one.client.post("/edits", json=body, headers={"Prefer": "wait=60"}).status_code == 201
        asked = {"inputs": ["w1 w2", "w5 w6"], "min_revision": 2}
        eventually(lambda: other.client.post("/predict", json=asked).status_code == 200)
        assert other.client.post("/predict", json=asked).json() == one.client.post("/predict", json=asked).json()


def test_when_the_process_that_works_the_queue_dies_another_takes_it_over(anywhere: Settings) -> None:
    with Process(anywhere) as first, Process(anywhere) as second:
        edit_id = report(first.client, "w1 w2 w3")
        eventually(lambda: status(first.client, edit_id) in ENDED)
        first.kill()
        later = report(second.client, "w4 w5 w6")
        eventually(lambda: status(second.client, later) in ENDED)


def test_reports_to_several_processes_are_worked_on_once_each(anywhere: Settings) -> None:
    with Process(anywhere) as one, Process(anywhere) as other:
        editors = ("grace", "grace", "transformer-patcher")
        texts = [f"w{n} w{n + 3} w{n + 9}" for n in range(6)]
        ids = [report((one, other)[n % 2].client, text, editor=editors[n % 3]) for n, text in enumerate(texts)]
        for edit_id in ids:
            eventually(lambda edit_id=edit_id: status(one.client, edit_id) in ENDED)
        for edit_id in ids:
            events = [row["event"] for row in one.client.get(f"/edits/{edit_id}").json()["history"]]
            assert events.count("fitting") == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--model", "{folder}/masked"], "an architecture for classification or seq2seq or causal"),
        (["--database", "sqlite:////proc/none/errata.db"], "/proc/none"),
    ],
)
def test_what_cannot_be_started_is_refused_with_a_sentence(
    tmp_path: Path, tiny_model: Path, arguments: list[str], sentence: str
) -> None:
    masked = tmp_path / "masked"
    masked.mkdir()
    config = json.loads((tiny_model / "config.json").read_text())
    (masked / "config.json").write_text(json.dumps({**config, "architectures": ["BertForMaskedLM"]}))
    ended = serve(tmp_path, [argument.format(folder=tmp_path) for argument in arguments])
    assert ended.returncode == 1
    assert sentence in ended.stderr
    assert "Traceback" not in ended.stderr


def test_an_unknown_setting_is_refused(tmp_path: Path) -> None:
    ended = serve(tmp_path, [], ERRATA_GUARD="x")
    assert ended.returncode == 2
    assert "ERRATA_GUARD is no setting of Errata" in ended.stderr


def test_a_memory_file_with_a_bad_line_is_refused_with_the_line(tmp_path: Path, tiny_model: Path) -> None:
    memory = tmp_path / "known.jsonl"
    memory.write_text('{"input": "w1"}\n{"text": "w2"}\n')
    ended = serve(tmp_path, ["--model", str(tiny_model)], ERRATA_MEMORY_FILE=str(memory))
    assert ended.returncode == 1
    assert "known.jsonl, line 2" in ended.stderr


def test_listening_beyond_this_machine_is_said_plainly(tmp_path: Path) -> None:
    ended = serve(tmp_path, ["--host", "0.0.0.0", "--model", str(tmp_path / "nowhere")])
    assert "whoever reaches this address can read, change and revert edits" in ended.stderr


def serve(folder: Path, arguments: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
    """Run `errata serve` until it ends."""
    database = [] if "--database" in arguments else ["--database", f"sqlite:///{folder}/errata.db"]
    command = [sys.executable, "-m", "app.cli", "serve", "--port", "0", *database, *arguments]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "ERRATA_CACHE_DIR": str(folder / "cache"), **variables}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


def _mistake(client: httpx.Client, text: str) -> str:
    (prediction,) = client.post("/predict", json={"inputs": [text]}).json()["predictions"]
    return str(min(prediction["scores"], key=prediction["scores"].__getitem__))
