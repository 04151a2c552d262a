"""Mistakes reported to a service of our own over HTTP, one after the other, and what it answers meanwhile."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load

from app.cli.client import Client, Problem
from app.cli.documents import Draft
from benchmarks.server import Server

INPUTS_A_REQUEST = 250
WAIT = 60.0


@dataclass(frozen=True, slots=True)
class Entry:
    """An input and what should be answered."""

    input: str
    target: str


@dataclass(frozen=True, slots=True)
class Reported:
    """How the service answered one report."""

    entry: Entry
    status: str  # of the edit, or the code of the refusal
    seconds: float  # from request to answer
    fit_seconds: float = 0.0
    values: int = 0  # of the patch: neurons, or values of an entry
    right: bool = False  # directly afterwards, written freely
    failed_gates: tuple[str, ...] = ()

    @property
    def needed(self) -> bool:
        """Whether there was something to learn, that the tokenizer can write."""
        return self.status not in ("not_needed", "unwritable_target")


class Service:
    """The service under measurement."""

    def __init__(self, client: Client, options: Mapping[str, Any], *, editor: str | None = None) -> None:
        """options, editor: sent with every report; an editor of None is the default."""
        self._client, self._options, self._editor = client, options, editor

    def predictions(
        self, texts: Sequence[str], *, edited: bool = True, as_of: int | None = None
    ) -> list[Mapping[str, Any]]:
        """What it answers, now or as of a revision, with scores or finish reason, and the edits that took part."""
        answers: list[Mapping[str, Any]] = []
        for start in range(0, len(texts), INPUTS_A_REQUEST):
            some = texts[start : start + INPUTS_A_REQUEST]
            answers.extend(self._client.predict(some, edited=edited, as_of=as_of)["predictions"])
        return answers

    def says(self, texts: Sequence[str], *, edited: bool = True, as_of: int | None = None) -> list[str]:
        """What it answers, label or text, written freely."""
        return [said(prediction) for prediction in self.predictions(texts, edited=edited, as_of=as_of)]

    def report(self, entry: Entry, supersedes: str | None = None) -> Reported:
        """Report a mistake and wait until its edit has ended."""
        draft: Draft = {"input": entry.input, "target": entry.target, "options": dict(self._options)}
        if self._editor is not None:
            draft["editor"] = self._editor
        if supersedes is not None:
            draft["supersedes"] = supersedes
        began = time.perf_counter()
        try:
            edit: Any = self._client.report(draft, key=str(uuid.uuid4()), wait=WAIT)
        except Problem as refusal:
            seconds = time.perf_counter() - began
            if refusal.code == "conflicting_edit" and supersedes is None:
                return self.report(entry, supersedes=refusal.document["conflicts"][0])
            gates = tuple(gate["name"] for gate in refusal.document.get("gates", ()))
            return Reported(entry, refusal.code, seconds, failed_gates=gates)
        seconds = time.perf_counter() - began
        right = self.says([entry.input]) == [entry.target.strip()]
        if edit["fit"] is None:
            return Reported(entry, edit["status"], seconds, right=right)
        values = len(load(self._client.patch(edit["id"]))["values"])
        return Reported(entry, edit["status"], seconds, edit["fit"]["seconds"], values, right)


def said(prediction: Mapping[str, Any]) -> str:
    """The answer of a prediction, label or text."""
    answer: str = prediction["label"] if "label" in prediction else prediction["text"]
    return answer.strip()


def read_entries(path: Path) -> list[Entry]:
    """JSON Lines with `input` and `target`."""
    lines = path.read_text("utf-8").splitlines()
    return [Entry(row["input"], row["target"]) for row in map(json.loads, lines)]


@contextmanager
def serving(
    model: str,
    remembered: Sequence[Entry],
    options: Mapping[str, Any],
    *,
    editor: str | None = None,
    cache: Path | None = None,
) -> Iterator[Service]:
    """A service on a fresh database. cache: where what it reads of the memory is kept for other runs."""
    folder = Path(tempfile.mkdtemp(prefix="errata-bench-"))
    memory = folder / "memory.jsonl"
    memory.write_text("".join(json.dumps(asdict(entry)) + "\n" for entry in remembered), "utf-8")
    settings = {
        "MODEL": model,
        "MEMORY_FILE": str(memory),
        "CACHE_DIR": str(cache or folder / "cache"),
        "LOG_LEVEL": "warning",
    }
    server = Server(folder, settings)
    try:
        server.start()
        with Client(server.url) as client:
            yield Service(client, options, editor=editor)
    except Exception:
        print(server.last_words(), file=sys.stderr)
        raise
    finally:
        server.close()
        shutil.rmtree(folder, ignore_errors=True)


def share(flags: Sequence[bool]) -> float:
    """Of all the share that is true; 1 where there is none."""
    return sum(flags) / len(flags) if flags else 1.0


def mean(values: Sequence[float]) -> float:
    """The mean; 0 where there is nothing."""
    return sum(values) / max(len(values), 1)
