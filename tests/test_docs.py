"""The documentation says what is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from app.settings import PREFIX, Settings

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_is_documented_with_its_default(name: str) -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    row = re.search(rf"^\| `{PREFIX}{name.upper()}` \| (.*?) \|", page, re.MULTILINE)
    assert row is not None, f"{name} is not in docs/operations.md"
    field = Settings.model_fields[name]
    if field.default_factory is None:
        shown = {"None": "", "True": "on", "False": "off"}.get(str(field.default), str(field.default))
        assert row[1] == shown


def test_no_setting_is_documented_that_is_not_there() -> None:
    documented = {name.lower() for page in PAGES for name in re.findall(rf"{PREFIX}([A-Z_]+)", page.read_text())}
    assert documented <= {*Settings.model_fields, "url"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_file_that_a_page_points_at_is_there(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_make_target_that_a_page_names_is_there(page: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z]+)\b(?! [a-z])", page.read_text())) <= targets | {"sure", "it"}
