"""Arrows between the rooms point one way (the design's list), read off the source without importing it."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

FORBIDDEN = {
    "app/routes": ["torch", "transformers", "sqlalchemy", "safetensors"],
    "app/store": ["torch", "transformers", "editors", "app.engine", "app.model", "app.editing", "app.routes"],
    "app/engine": ["sqlalchemy", "transformers", "app.store", "app.editing", "app.judge", "app.routes", "app.follower"],
    "app/model": ["sqlalchemy", "app.store", "app.engine", "app.editing", "app.routes"],
    "app/settings.py": ["torch", "transformers", "sqlalchemy"],
    "app/judge": ["sqlalchemy", "transformers", "app.editing", "app.routes", "app.store"],
    "app/memory": ["sqlalchemy", "transformers", "app.editing", "app.judge", "app.routes", "app.store"],
    "app/guarding.py": ["sqlalchemy", "transformers", "app.editing", "app.judge", "app.routes"],
    "app/editing": ["app.routes", "transformers"],
    "app/follower.py": ["app.routes", "transformers"],
}
"""What each room must not import."""

ONLY = {
    "transformers": ["app/model"],
    "sqlalchemy": ["app/store"],
    "alembic": ["app/store"],
    "psycopg": ["app/store"],
    "app.main": ["app/cli"],
}
"""Who alone, inside app, may import these."""

EDITORS_MAY_IMPORT = {"torch", "safetensors", "annotated_types", "editors", *sys.stdlib_module_names}


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    """Every module that the file imports, `from a import b` as both `a` and `a.b`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_within(path: Path, places: Iterable[str]) -> bool:
    inside = path.relative_to(ROOT)
    return any(inside.is_relative_to(place) for place in places)


def is_of(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", sources("editors"), ids=named)
def test_editors_import_torch_safetensors_and_the_standard_library_alone(path: Path) -> None:
    foreign = {module for module in imports(path) if module.split(".")[0] not in EDITORS_MAY_IMPORT}
    assert not foreign


@pytest.mark.parametrize("path", sources("app"), ids=named)
def test_arrows_between_the_rooms_point_one_way(path: Path) -> None:
    forbidden = [package for room, packages in FORBIDDEN.items() if is_within(path, [room]) for package in packages]
    assert not [module for module in imports(path) for package in forbidden if is_of(module, package)]


@pytest.mark.parametrize("path", sources("app"), ids=named)
def test_only_one_room_speaks_to_each_library(path: Path) -> None:
    reserved = [package for package, rooms in ONLY.items() if not is_within(path, rooms)]
    assert not [module for module in imports(path) for package in reserved if is_of(module, package)]


@pytest.mark.parametrize("path", sources("app", "editors"), ids=named)
def test_only_the_settings_read_the_environment(path: Path) -> None:
    """`ERRATA_URL` belongs to the client commands, which have no settings."""
    if is_within(path, ["app/settings.py", "app/cli"]):
        return
    tree = ast.parse(path.read_text(encoding="utf-8"))
    read = [
        node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv")
    ]
    assert not read
    assert not {"os.environ", "os.getenv"} & set(imports(path))


def test_every_rule_is_of_a_room_that_there_is() -> None:
    rooms = {*FORBIDDEN, *(room for rooms in ONLY.values() for room in rooms)}
    assert not [room for room in rooms if not (ROOT / room).exists()]


def test_the_reader_of_imports_sees_an_import() -> None:
    assert {"ast", "collections.abc", "collections.abc.Iterable", "pathlib.Path"} <= set(imports(Path(__file__)))
