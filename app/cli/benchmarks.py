"""`errata bench`: run a benchmark of the working tree by its name."""

from __future__ import annotations

import ast
import runpy
import sys
from pathlib import Path
from typing import Annotated

import typer

from app.cli.tables import table
from app.cli.terminal import fail, plain, stdout


def bench(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="The benchmark; --list names them.")] = None,
    options: Annotated[
        list[str] | None, typer.Argument(metavar="[--output DIR] ...", help="What the benchmark itself takes.")
    ] = None,
    listed: Annotated[bool, typer.Option("--list", help="List the benchmarks.")] = False,
) -> None:
    """Run a benchmark. Everything after its name goes to the benchmark."""
    benchmarks = _benchmarks()
    if listed:
        _print_list(benchmarks)
        return
    if name is None:
        fail("Which benchmark? `errata bench --list` names them.", status=2)
    module = name.replace("-", "_")
    if module not in benchmarks:
        fail(f"There is no benchmark {name!r}. There are: {', '.join(benchmarks)}.", status=2)
    sys.path.insert(0, str(_folder().parent))
    sys.argv = [f"errata bench {name}", *(options or ())]
    runpy.run_module(f"benchmarks.{module}", run_name="__main__", alter_sys=False)


def _folder() -> Path:
    return Path(__file__).parents[2] / "benchmarks"


def _benchmarks() -> dict[str, str]:
    """Name and first sentence of every benchmark; read, not imported, since they import torch."""
    if not _folder().is_dir():
        fail(f"Benchmarks are run from a working tree of Errata; {_folder().parent} holds none.")
    files = {path.stem: path for path in _folder().glob("*.py")}
    files |= {path.parent.name: path for path in _folder().glob("*/__main__.py")}
    sources = {name: ast.parse(path.read_text("utf-8")) for name, path in sorted(files.items())}
    return {name: (ast.get_docstring(tree) or "").partition("\n")[0] for name, tree in sources.items() if _runs(tree)}


def _runs(tree: ast.Module) -> bool:
    """Whether the module does something when it is run: it has an `if __name__ == "__main__"`."""
    return any(isinstance(node, ast.If) and "__name__" in ast.unparse(node.test) for node in tree.body)


def _print_list(benchmarks: dict[str, str]) -> None:
    made = table("name", "what it measures")
    for name, summary in benchmarks.items():
        made.add_row(plain(name), plain(summary))
    stdout().print(made)
