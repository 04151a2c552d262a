"""What a long experiment has found out so far, on disk: an interruption, a kill -9 included, loses none of it.

Knows nothing of what is written.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout


class Occupied(Exception):
    """Another process works in the folder."""


class Differs(Exception):
    """The folder holds the unfinished work of another configuration; the message names what differs."""


class Journal:
    """JSON Lines that are only added to. A line that an interruption left half written is dropped on opening."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._rows: list[dict[str, Any]] = []
        if file.exists():
            self._read()

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._rows[index]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, *rows: Mapping[str, Any]) -> None:
        """Write rows; they are on the disk when this returns."""
        with self._file.open("ab") as file:
            file.writelines(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)
            file.flush()
            os.fsync(file.fileno())
        self._rows.extend(map(dict, rows))

    def _read(self) -> None:
        written = self._file.read_bytes()
        whole = written[: written.rfind(b"\n") + 1]
        self._rows = [json.loads(line) for line in whole.splitlines()]
        if len(whole) < len(written):
            os.truncate(self._file, len(whole))


@contextmanager
def occupied(folder: Path) -> Iterator[None]:
    """Keep other processes out of the folder, until the end or this process's. Raises Occupied."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise Occupied(f"Another process works in {folder}.") from None
    try:
        yield
    finally:
        lock.release()


def settle(file: Path, configuration: Mapping[str, Any]) -> None:
    """Note the configuration of a fresh folder in `file`; of a used one, see that it is the same. Raises Differs."""
    settled = json.loads(json.dumps(configuration))
    if not file.exists():
        unfinished = file.with_suffix(".new")
        unfinished.write_text(json.dumps(settled, indent=1) + "\n", "utf-8")
        unfinished.replace(file)
        return
    found = json.loads(file.read_text("utf-8"))
    named = sorted(found.keys() | settled.keys())
    differing = [name for name in named if found.get(name) != settled.get(name)]
    if differing:
        changes = "; ".join(f"{name} was {found.get(name)!r} and is {settled.get(name)!r} now" for name in differing)
        raise Differs(
            f"{file.parent} holds unfinished work of another configuration: {changes}. "
            "Finish it with that one, delete the folder, or choose another --output or --name."
        )
