"""Where the commands write: results to stdout, progress and failures to stderr; no text from outside is obeyed."""

from __future__ import annotations

import json
import sys
import unicodedata
from pathlib import Path
from typing import NoReturn, TextIO

import typer
from rich.console import Console
from rich.text import Text

PIPED_WIDTH = 160  # columns of a table that no terminal limits


def stdout() -> Console:
    """For results."""
    return _console(sys.stdout)


def stderr() -> Console:
    """For progress and failures."""
    return _console(sys.stderr)


def _console(stream: TextIO) -> Console:
    return Console(file=stream, width=None if stream.isatty() else PIPED_WIDTH, highlight=False)


def plain(value: object) -> Text:
    """Text from outside: no markup, and no control character that a terminal would obey."""
    return Text("".join("\N{REPLACEMENT CHARACTER}" if _controls(sign) else sign for sign in str(value)))


def _controls(sign: str) -> bool:
    return unicodedata.category(sign) == "Cc" and sign not in "\n\t"


def print_json(document: object) -> None:
    """One JSON document, for programs."""
    typer.echo(json.dumps(document, ensure_ascii=False, indent=2))


def tell(sentence: object, *, err: bool = False) -> None:
    """A sentence on a line of its own, which the terminal wraps, and not we."""
    typer.echo(plain(sentence).plain, err=err)


def fail(sentence: str, *, status: int = 1) -> NoReturn:
    """End the command with a sentence on stderr."""
    tell(sentence, err=True)
    raise typer.Exit(status)


def read(file: Path) -> bytes:
    """The bytes of a file, of stdin for -; what cannot be read ends the command."""
    if str(file) == "-":
        return sys.stdin.buffer.read()
    try:
        return file.read_bytes()
    except OSError as error:
        fail(f"{file} cannot be read: {error.strerror}.", status=2)
