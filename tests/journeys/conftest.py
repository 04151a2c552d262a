"""A tiny deployed model, and settings of a service on it."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.settings import Settings
from tests.deployed import deploy


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return deploy(tmp_path_factory.mktemp("model") / "bert")


@pytest.fixture
def settings(tmp_path: Path, tiny_model: Path) -> Settings:
    return settings_on(f"sqlite:///{tmp_path}/errata.db", tmp_path, tiny_model)


def settings_on(url: str, folder: Path, model: Path) -> Settings:
    return Settings(model=str(model), database_url=url, cache_dir=folder / "cache", device="cpu")
