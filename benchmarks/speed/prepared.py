"""Databases with so many live edits, made once and kept; servers get copies of them."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

from filelock import FileLock
from rich.console import Console
from rich.progress import Progress

from app.store.database import MIGRATIONS
from benchmarks.speed import inside
from benchmarks.speed.texts import PREPARED, sentences

DATABASE = "errata.db"
"""Where a server looks in its folder."""
VERSION = 2
"""Of what `inside.extend` writes."""


class Databases:
    """SQLite files with different numbers of live edits. A larger one begins with the edits of the smaller ones."""

    def __init__(self, cache: Path, model: Path, device: str) -> None:
        tables = sorted(path.name for path in (MIGRATIONS / "versions").glob("*.py"))
        name = hashlib.sha256(json.dumps([VERSION, *inside.versions(model, device), tables]).encode()).hexdigest()[:16]
        self._folder = cache / "benchmarks" / f"speed-{name}"
        self._model = model
        self._device = device

    def copy(self, edits: int, folder: Path) -> None:
        """Put a copy of the database with so many live edits into an empty folder."""
        shutil.copyfile(self.file(edits), folder / DATABASE)

    def file(self, edits: int) -> Path:
        """The database itself, made now if it is not there; nobody else may write to it."""
        self._folder.mkdir(parents=True, exist_ok=True)
        file = self._folder / f"{edits}.db"
        with FileLock(f"{file}.lock"):
            if not file.exists():
                self._make(edits, file)
        return file

    def _make(self, edits: int, file: Path) -> None:
        """Made beside its place and moved there whole, so that what is there is complete. What an interrupted run has
        left is gone on with: it holds whole transactions.
        """
        unfinished = file.with_name(f"unfinished-{edits}.db")
        smaller = max((made for made in self._made() if made < edits), default=0)
        if smaller and not unfinished.exists():
            copied = shutil.copyfile(self._folder / f"{smaller}.db", self._folder / f"copy-{edits}.db")
            copied.replace(unfinished)
        with Progress(console=Console(stderr=True)) as progress:
            shown = progress.add_task(f"Preparing a database of {edits:,} edits, once", total=edits, completed=smaller)
            inside.extend(
                self._model,
                url(unfinished),
                sentences(PREPARED),
                edits,
                self._device,
                lambda done: progress.update(shown, completed=done),
            )
        unfinished.replace(file)

    def _made(self) -> list[int]:
        return [int(file.stem) for file in self._folder.glob("*.db") if file.stem.isdecimal()]


def url(file: Path) -> str:
    """As settings name a database."""
    return f"sqlite:///{file.resolve()}"
