"""The command line against a real server that speaks the contract and learns nothing."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from typer.testing import CliRunner

from app.cli import commands
from app.cli.documents import Answer
from app.cli.tables import predictions_table, said

LIVE_ID = "0197a000-0000-7000-8000-000000000001"
OTHER_ID = "0197a000-0000-7000-8000-000000000002"
GATES = [
    {"name": "edit_holds", "measured": 1.0, "required": 1.0, "passed": True, "failures": []},
    {
        "name": "guard_unchanged",
        "measured": 0.9,
        "required": 0.999,
        "passed": False,
        "failures": [{"input": "where is my bike", "was": "order_status", "now": "refund_status"}],
    },
]
PREDICTION = {"label": "refund_status", "score": 0.91, "scores": {"refund_status": 0.91, "order_status": 0.09}}
BASE = {"label": "order_status", "score": 0.6, "scores": {"order_status": 0.6, "refund_status": 0.4}, "fired": []}


def record(status: str = "live", **members: Any) -> dict[str, Any]:
    """An audit record as the contract shows it."""
    return {
        "id": LIVE_ID,
        "status": status,
        "editor": "transformer-patcher",
        "options": {"fit": "closed"},
        "input": "my money [bold]please[/bold]",
        "target": "refund_status",
        "rephrases": ["give me my money back"],
        "keep": [],
        "reason": "wrong queue",
        "reporter": "Ada",
        "supersedes": None,
        "created_at": "2025-03-01T10:00:00.123456Z",
        "started_at": "2025-03-01T10:00:00.2Z",
        "finished_at": "2025-03-01T10:00:01Z",
        "revision": 7,
        "reverted_at": None,
        "reverted_revision": None,
        "before": {"prediction": BASE, "rephrases": [BASE]},
        "after": {"prediction": PREDICTION, "rephrases": [PREDICTION]},
        "verdict": {"passed": True, "gates": GATES[:1]},
        "fit": {"steps": 12, "seconds": 0.03, "loss": 0.01, "parameters": 769, "seed": 0},
        "patch": {"sha256": "ab" * 32, "bytes": 3300, "format": "errata-patch/1"},
        "hits": {"count": 3, "last_at": None},
        "history": [
            {"at": "2025-03-01T10:00:00Z", "event": "queued", "actor": "local", "detail": {}, "hash": "c0ffee" * 10}
        ],
        **members,
    }


MEASURED = {
    "edit_id": LIVE_ID,
    "revision": 7,
    "seed": 3,
    "versions": 2,
    "input": {
        "texts": 4,
        "right": 0.75,
        "kinds": {"typo": {"texts": 3, "right": 2 / 3}, "dropped_word": {"texts": 1, "right": 1.0}},
        "failures": [{"kind": "typo", "text": "my mony", "now": "order_status"}],
        "left_out": 2,
    },
    "guard": {
        "inputs": 3,
        "texts": 3,
        "before": 1.0,
        "after": 0.6667,
        "unchanged": 0.3333,
        "failures": [
            {"input": "hi", "kind": "case", "text": f"HI{mark}", "was": "greeting", "now": "refund_status"}
            for mark in ("", "!", "?", ".", ",", ";", ":")
        ],
        "left_out": 0,
    },
}


@dataclass
class Service:
    """What the server answers, and what it was asked."""

    url: str = ""
    ends_as: dict[str, Any] = field(default_factory=record)
    asked: list[tuple[str, str, Any]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    last_event_ids: list[str | None] = field(default_factory=list)
    queries: list[dict[str, str]] = field(default_factory=list)
    breaks: bool = False
    """The next event stream is cut in its middle."""
    hangs: threading.Event | None = None
    """Event streams say nothing, as long as this is not set."""

    def body_of(self, path: str) -> Any:
        return next(body for _, asked, body in self.asked if asked == path)


def problem(status: int, code: str, detail: str, headers: dict[str, str] | None = None, **members: Any) -> JSONResponse:
    document = {"type": f"/problems/{code}", "title": "No", "status": status, "code": code, "detail": detail, **members}
    return JSONResponse(document, status, headers=headers, media_type="application/problem+json")


REFUSALS = {
    "unknown label": problem(422, "unknown_label", "'nope' is not a label of builtin."),
    "rejected": problem(422, "edit_rejected", "The edit did not pass.", edit_id=OTHER_ID, gates=GATES[1:]),
    "conflict": problem(409, "conflicting_edit", "Another edit says otherwise.", conflicts=[OTHER_ID]),
    "full": problem(429, "queue_full", "1000 edits are waiting.", headers={"Retry-After": "3"}),
    "invalid": problem(422, "invalid_request", "Not valid.", errors=[{"loc": ["body", "input"], "msg": "too short"}]),
    "not errata": PlainTextResponse("<h1>It works</h1>", 404),
    "not json": PlainTextResponse("hello", 200),
}


def application() -> FastAPI:
    async def remember(request: Request) -> None:
        body = await request.body()
        content = json.loads(body) if body and request.headers.get("content-type") == "application/json" else body
        app.state.service.asked.append((request.method, request.url.path, content))

    app = FastAPI(dependencies=[Depends(remember)])

    @app.post("/predict")
    async def predict(request: Request) -> dict[str, Any]:
        body = await request.json()
        answer = PREDICTION | {"fired": [{"edit_id": LIVE_ID, "strength": 1.8}]}
        if body.get("explain"):
            answer |= {"base": BASE}
        return {"revision": 7, "model": "sha256:12", "predictions": [answer] * len(body["inputs"])}

    @app.post("/edits")
    async def report(request: Request) -> Response:
        app.state.service.keys.append(request.headers["idempotency-key"])
        refusal = REFUSALS.get((await request.json())["input"])
        return refusal or JSONResponse(record("queued", verdict=None, revision=None), 202)

    @app.get("/edits")
    async def listing(status: str | None = None, limit: int = 50) -> dict[str, Any]:
        items = [] if status == "failed" else [record(), record("reverted", id=OTHER_ID)]
        return {"items": items[:limit], "next_cursor": "abc" if limit == 1 else None}

    @app.get("/edits/export")
    async def export() -> Response:
        return PlainTextResponse('{"input": "é", "target": "b"}\n{"input": "c", "target": "d"}\n')

    @app.post("/edits/import")
    async def imports(request: Request) -> Response:
        lines = enumerate((await request.body()).splitlines(), start=1)
        answers = (answer_line(number, line) for number, line in lines if line.strip())
        return StreamingResponse(answers, media_type="application/x-ndjson")

    @app.get("/edits/{edit_id}")
    async def show(edit_id: str) -> Response:
        known = edit_id == LIVE_ID
        return (
            JSONResponse(app.state.service.ends_as)
            if known
            else problem(404, "not_found", f"There is no edit {edit_id}.")
        )

    @app.get("/edits/{edit_id}/robustness")
    async def robustness(edit_id: str, request: Request) -> Response:
        app.state.service.queries.append(dict(request.query_params))
        unguarded = MEASURED | {"guard": None} if request.query_params["guard"] == "false" else MEASURED
        return JSONResponse(unguarded)

    @app.get("/edits/{edit_id}/events")
    async def events(request: Request) -> Response:
        service: Service = app.state.service
        service.last_event_ids.append(request.headers.get("last-event-id"))
        return StreamingResponse(stream(service), media_type="text/event-stream")

    @app.delete("/edits/{edit_id}")
    async def revert(edit_id: str) -> dict[str, Any]:
        verdict = {"passed": False, "gates": GATES[1:]} if edit_id == OTHER_ID else record()["verdict"]
        return record("reverted", id=edit_id, reverted_revision=8, verdict=verdict)

    return app


def answer_line(number: int, line: bytes) -> str:
    try:
        json.loads(line)
    except ValueError:
        error = {"status": 400, "code": "malformed_request", "detail": "This line is no JSON."}
        return json.dumps({"line": number, "error": error}) + "\n"
    return json.dumps({"line": number, "edit_id": LIVE_ID, "status": "live", "revision": number}) + "\n"


def stream(service: Service) -> Iterator[str]:
    yield ": keep-alive\n\n"
    if service.hangs is not None:
        service.hangs.wait(10)
        return
    yield 'event: status\nid: 1\ndata: {"event": "fitting", "at": "2025-03-01T10:00:00Z"}\n\n'
    if service.breaks:
        service.breaks = False
        raise ConnectionResetError
    yield 'event: progress\nid: 1\ndata: {"round": 1, "step": 3,\ndata: "loss": 0.25, "losses": {}}\n\n'
    yield 'event: verdict\nid: 2\ndata: {"status": "live", "verdict": {}}\n\n'


@pytest.fixture(scope="module")
def server() -> Iterator[FastAPI]:
    app = application()
    listener = socket.create_server(("127.0.0.1", 0))
    app.state.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    running = uvicorn.Server(uvicorn.Config(app, log_level="critical"))
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    yield app
    running.should_exit = True
    thread.join()


@pytest.fixture
def service(server: FastAPI) -> Service:
    """The server, with nothing asked of it yet."""
    server.state.service = Service(server.state.url)
    return server.state.service


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


def errata(*arguments: str, url: str = "", stdin: bytes | None = None) -> Ended:
    result = CliRunner().invoke(commands, list(arguments), input=stdin, env={"ERRATA_URL": url} if url else None)
    return Ended(result.exit_code, result.stdout, result.stderr)


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_help_names_every_command() -> None:
    names = {command.name for command in commands.registered_commands}
    assert names == {
        "serve", "predict", "edit", "edits", "show", "revert",
        "robustness", "guard", "import", "export", "verify", "bench",
    }  # fmt: skip
    assert all(name in errata("--help").out for name in names if name)


def test_starting_the_command_line_loads_neither_torch_nor_the_service() -> None:
    heavy = "{'torch', 'transformers', 'sqlalchemy', 'fastapi', 'pydantic_settings'}"
    program = f"import sys, app.cli; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", program], text=True).strip() == "[]"


def test_version_is_that_of_the_distribution() -> None:
    assert errata("--version").out == "errata 0.1.0\n"


def test_predict_shows_label_score_and_the_edits_that_fired(service: Service) -> None:
    ended = errata("predict", "my money", url=service.url)
    assert ended.code == 0
    assert all(part in ended.out for part in ("refund_status", "0.9100", f"{LIVE_ID} (1.80)", "Revision 7."))


def test_predict_sends_what_its_options_say(service: Service) -> None:
    asked = ("--unedited", "--as-of", "3", "--exclude", LIVE_ID, "--explain", "--max-new-tokens", "7")
    errata("predict", "a", "b", *asked, url=service.url)
    assert service.body_of("/predict") == {
        "inputs": ["a", "b"],
        "edits": "off",
        "as_of": 3,
        "exclude": [LIVE_ID],
        "explain": True,
        "generation": {"max_new_tokens": 7},
    }


def test_a_written_answer_is_shown_with_a_mark_where_it_was_cut_off() -> None:
    assert said({"text": " w1 w2", "finish_reason": "length"}) == "w1 w2…"
    assert said({"text": " w1 w2", "finish_reason": "stop"}) == "w1 w2"


def test_predict_explained_shows_what_the_unedited_model_says(service: Service) -> None:
    assert "order_status" in errata("predict", "my money", "--explain", url=service.url).out


def test_predict_as_json_prints_the_answer_of_the_service_and_nothing_else(service: Service) -> None:
    ended = errata("predict", "my money", "--json", url=service.url)
    assert json.loads(ended.out)["predictions"][0]["label"] == "refund_status"
    assert ended.err == ""


def test_edit_waits_for_the_end_and_tells_it(service: Service) -> None:
    ended = errata("edit", "my money", "refund_status", url=service.url)
    assert ended.code == 0
    assert "Learned, and live since revision 7. The answer is now: refund_status" in ended.out
    assert f"errata show {LIVE_ID}" in ended.out


def test_edit_sends_what_its_options_say(service: Service) -> None:
    options = ["--rephrase", "a", "--rephrase", "b", "--keep", "c", "--editor", "e", "--supersedes", OTHER_ID]
    options += ["--option", "steps=5", "--option", "fit=closed", "--reason", "r", "--reporter", "p", "--dry-run"]
    errata("edit", "x", "y", *options, url=service.url)
    assert service.body_of("/edits") == {
        "input": "x",
        "target": "y",
        "rephrases": ["a", "b"],
        "keep": ["c"],
        "editor": "e",
        "options": {"steps": 5, "fit": "closed"},
        "reason": "r",
        "reporter": "p",
        "dry_run": True,
        "supersedes": OTHER_ID,
    }


def test_every_edit_has_an_idempotency_key_of_its_own(service: Service) -> None:
    for _ in range(2):
        errata("edit", "x", "y", url=service.url)
    assert len(set(service.keys)) == 2


def test_an_idempotency_key_that_is_given_is_the_one_that_is_sent(service: Service) -> None:
    errata("edit", "x", "y", "--idempotency-key", "mine", url=service.url)
    assert service.keys == ["mine"]


def test_edit_as_json_prints_the_record_at_its_end(service: Service) -> None:
    ended = errata("edit", "x", "y", "--json", url=service.url)
    assert json.loads(ended.out) == service.ends_as
    assert ended.err == ""


def test_edit_takes_the_events_up_again_where_the_connection_broke(service: Service) -> None:
    service.breaks = True
    assert errata("edit", "x", "y", url=service.url).code == 0
    assert service.last_event_ids == [None, "1"]


def test_edit_with_wait_0_only_queues(service: Service) -> None:
    ended = errata("edit", "x", "y", "--wait", "0", url=service.url)
    assert (ended.code, service.last_event_ids) == (0, [])
    assert "waiting for its turn" in ended.out


def test_edit_that_has_not_ended_when_the_wait_is_over_exits_1(service: Service) -> None:
    service.hangs = threading.Event()
    service.ends_as = record("fitting", verdict=None)
    ended = errata("edit", "x", "y", "--wait", "0.2", url=service.url)
    service.hangs.set()
    assert ended.code == 1
    assert "The edit is fitting." in ended.out


@pytest.mark.parametrize(
    ("ends_as", "code", "sentence"),
    [
        (record("rejected", verdict={"passed": False, "gates": GATES}), 1, "did not pass every gate"),
        (record("failed", verdict=None, failure="No key separates it."), 1, "learned: No key separates it."),
        (record("failed", verdict=None), 1, "No patch could be learned"),
        (record("not_needed", verdict=None), 0, "already answers refund_status"),
        (record("dry_run"), 0, "A dry run"),
        (record("dry_run", verdict={"passed": False, "gates": GATES}), 1, "guard_unchanged"),
        (record("cancelled", verdict=None), 1, "cancelled"),
    ],
)
def test_edit_tells_every_end(service: Service, ends_as: dict[str, Any], code: int, sentence: str) -> None:
    service.ends_as = ends_as
    ended = errata("edit", "x", "y", url=service.url)
    assert ended.code == code
    assert sentence in ended.out


def test_a_rejected_edit_shows_its_failed_gates(service: Service) -> None:
    service.ends_as = record("rejected", verdict={"passed": False, "gates": GATES})
    ended = errata("edit", "x", "y", url=service.url)
    assert all(part in ended.out for part in ("guard_unchanged", "0.9", "0.999", "failed", "where is my bike"))


@pytest.mark.parametrize(
    ("reason", "sentences"),
    [
        ("unknown label", ["'nope' is not a label of builtin."]),
        ("rejected", ["The edit did not pass.", "guard_unchanged", f"errata show {OTHER_ID}"]),
        ("conflict", ["Another edit says otherwise.", f"--supersedes {OTHER_ID}"]),
        ("full", ["1000 edits are waiting.", "Try again in 3 s."]),
        ("invalid", ["Not valid.", "body.input: too short"]),
        ("not errata", ["is not Errata: 404 Not Found."]),
        ("not json", ["is not Errata"]),
    ],
)
def test_a_refusal_is_told_in_sentences_on_stderr(service: Service, reason: str, sentences: list[str]) -> None:
    ended = errata("edit", reason, "y", url=service.url)
    assert (ended.code, ended.out) == (1, "")
    assert all(sentence in ended.err for sentence in sentences)


def test_a_refusal_as_json_is_the_problem_document(service: Service) -> None:
    ended = errata("edit", "rejected", "y", "--json", url=service.url)
    assert ended.code == 1
    assert json.loads(ended.out)["code"] == "edit_rejected"


def test_edits_lists_ids_statuses_and_texts(service: Service) -> None:
    ended = errata("edits", url=service.url)
    assert all(part in ended.out for part in (LIVE_ID, OTHER_ID, "live", "reverted", "2025-03-01 10:00:00"))


def test_edits_says_how_to_go_on(service: Service) -> None:
    assert "--cursor abc" in errata("edits", "--limit", "1", url=service.url).err


def test_edits_of_a_status_that_none_has_says_so(service: Service) -> None:
    assert errata("edits", "--status", "failed", url=service.url).out == "No edits.\n"


def test_edits_as_json_prints_the_page(service: Service) -> None:
    assert len(json.loads(errata("edits", "--json", url=service.url).out)["items"]) == 2


def test_show_is_the_whole_record(service: Service) -> None:
    ended = errata("show", LIVE_ID, url=service.url)
    parts = ["live", "wrong queue", "Ada", "revision 7", "steps 12", "edit_holds", "give me my money back", "c0ffee"]
    assert [part for part in parts if part not in ended.out] == []


def test_texts_are_shown_as_they_are_and_not_as_markup(service: Service) -> None:
    assert "my money [bold]please[/bold]" in errata("show", LIVE_ID, url=service.url).out


def test_control_characters_of_a_text_never_reach_the_terminal(service: Service) -> None:
    service.ends_as = record(reason="\x1b[2Jgone")
    assert "\x1b" not in errata("show", LIVE_ID, url=service.url).out


def test_show_as_json_prints_the_record(service: Service) -> None:
    assert json.loads(errata("show", LIVE_ID, "--json", url=service.url).out) == record()


def test_show_of_an_unknown_edit_exits_1(service: Service) -> None:
    ended = errata("show", "nope", url=service.url)
    assert (ended.code, ended.err) == (1, "There is no edit nope.\n")


def test_revert_tells_the_new_revision(service: Service) -> None:
    ended = errata("revert", LIVE_ID, "--reason", "wrong", url=service.url)
    assert (ended.code, ended.out) == (0, "Reverted in revision 8.\n")


def test_revert_tells_what_the_removal_changed(service: Service) -> None:
    assert "guard_unchanged" in errata("revert", OTHER_ID, url=service.url).out


def test_revert_as_json_prints_the_record(service: Service) -> None:
    assert json.loads(errata("revert", LIVE_ID, "--json", url=service.url).out)["reverted_revision"] == 8


def test_import_tells_every_line_and_exits_0_when_all_went_well(service: Service, tmp_path: Path) -> None:
    file = tmp_path / "edits.jsonl"
    file.write_text('{"input": "a", "target": "b"}\n\n{"input": "c", "target": "d"}\n')
    ended = errata("import", str(file), url=service.url)
    assert ended.code == 0
    assert ["1  live" in line and LIVE_ID in line for line in ended.out.splitlines()] == [True, False]
    assert "3  live" in ended.out
    assert '"input": "c"' in ended.out


def test_robustness_shows_the_shares_by_kind_and_what_fails(service: Service) -> None:
    ended = errata("robustness", LIVE_ID, url=service.url)
    assert ended.code == 0
    rows = [" ".join(line.split()) for line in ended.out.splitlines()]
    assert {"typo 3 0.6667", "dropped word 1 1", "all 4 0.75", "typo my mony order_status"} <= set(rows)
    assert any(row.startswith("2 were left out") for row in rows)


def test_robustness_shows_what_became_of_the_guard(service: Service) -> None:
    ended = errata("robustness", LIVE_ID, url=service.url)
    assert "3 changed inputs: right 1 by the unedited model, 0.6667 now; unchanged 0.3333." in ended.out
    assert "and 2 more" in ended.out
    assert "changed inputs" not in errata("robustness", LIVE_ID, "--no-guard", url=service.url).out


def test_robustness_sends_what_its_options_say(service: Service) -> None:
    errata("robustness", LIVE_ID, "--seed", "3", "--versions", "2", "--no-guard", url=service.url)
    assert service.queries == [{"seed": "3", "versions": "2", "guard": "false"}]


def test_robustness_as_json_prints_the_answer_of_the_service_and_nothing_else(service: Service) -> None:
    ended = errata("robustness", LIVE_ID, "--json", url=service.url)
    assert (json.loads(ended.out), ended.err) == (MEASURED, "")


def test_import_exits_1_and_counts_when_a_line_failed(service: Service) -> None:
    ended = errata("import", "-", url=service.url, stdin=b'{"input": "a", "target": "b"}\nnonsense\n')
    assert ended.code == 1
    assert "This line is no JSON." in ended.out
    assert "1 of 2 edits failed." in ended.err


def test_import_as_json_prints_one_document_a_line(service: Service) -> None:
    ended = errata("import", "-", "--json", url=service.url, stdin=b'{"input": "a", "target": "b"}\n')
    assert [json.loads(line)["status"] for line in ended.out.splitlines()] == ["live"]


def test_import_of_a_file_that_is_not_there_exits_2(service: Service, tmp_path: Path) -> None:
    ended = errata("import", str(tmp_path / "none"), url=service.url)
    assert ended.code == 2
    assert "cannot be read: No such file or directory." in ended.err


def test_export_writes_lines_to_stdout(service: Service) -> None:
    lines = errata("export", url=service.url).out.splitlines()
    assert [json.loads(line)["input"] for line in lines] == ["é", "c"]


def test_export_writes_lines_to_a_file(service: Service, tmp_path: Path) -> None:
    file = tmp_path / "edits.jsonl"
    ended = errata("export", "--output", str(file), url=service.url)
    assert (ended.out, ended.err) == ("", f"2 edits written to {file}.\n")
    assert len(file.read_text().splitlines()) == 2


@pytest.mark.parametrize("command", [["predict", "a"], ["edit", "a", "b"], ["edits"], ["show", "1"], ["export"]])
def test_a_service_that_is_not_there_is_told_with_the_way_to_start_it(command: list[str]) -> None:
    ended = errata(*command, "--url", f"http://127.0.0.1:{free_port()}")
    assert ended.code == 1
    assert "`errata serve`" in ended.err


def test_an_address_that_is_none_is_told(service: Service) -> None:
    ended = errata("edits", "--url", "localhost:8000")
    assert (ended.code, ended.out) == (1, "")
    assert "'localhost:8000' is no address" in ended.err


@pytest.mark.parametrize(
    "command",
    [["predict"], ["edit", "a"], ["edit", "a", "b", "--option", "c"], ["edit", "a", "b", "--wait", "-1"], ["unknown"]],
)
def test_a_command_that_is_not_understood_exits_2(command: list[str]) -> None:
    assert errata(*command).code == 2


def test_a_setting_out_of_range_exits_2_and_is_named() -> None:
    ended = errata("serve", "--port", "70000")
    assert ended.code == 2
    assert ended.err.startswith("port: ")


def test_an_unknown_variable_of_ours_exits_2_and_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ERRATA_PROT", "8000")
    ended = errata("serve")
    assert (ended.code, ended.err) == (2, "ERRATA_PROT is no setting of Errata.\n")


def test_a_database_that_cannot_be_used_is_told_in_one_sentence() -> None:
    command = [sys.executable, "-m", "app.cli", "verify", "--database", "mysql://localhost/edits"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    sentence = "The database mysql://localhost/edits is neither sqlite:/// nor postgresql://.\n"
    assert (ended.returncode, ended.stdout, ended.stderr) == (1, "", sentence)


def test_bench_of_an_unknown_name_lists_those_there_are() -> None:
    ended = errata("bench", "nope")
    assert ended.code == 2
    assert "There is no benchmark 'nope'." in ended.err


def test_bench_list_names_the_demo() -> None:
    assert "demo" in errata("bench", "--list").out


def test_bench_hands_its_options_on() -> None:
    command = [sys.executable, "-m", "app.cli", "bench", "demo", "--help"]
    assert "--edits" in subprocess.check_output(command, text=True)


def test_written_answers_are_shown_without_a_column_of_scores() -> None:
    base = {"text": " w3", "finish_reason": "stop"}
    answer: Answer = {
        "revision": 1,
        "model": "m",
        "predictions": [{"text": " w1", "finish_reason": "stop", "fired": [], "base": base}],
    }
    made = predictions_table(["a"], answer, explained=True)
    assert [column.header for column in made.columns] == ["input", "answer", "edits that fired", "unedited answer"]
    assert [str(cell) for column in made.columns for cell in column.cells] == ["a", "w1", "", "w3"]
