"""A whole service in this process, on a tiny model, over its HTTP interface."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.main import create_app
from app.observe import set_up_logging
from app.settings import Settings
from tests.deployed import LABELS, WORDS, deploy

Start = Callable[..., Any]


@pytest.fixture(scope="session", autouse=True)
def _quiet() -> None:
    set_up_logging("warning", "console")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return deploy(tmp_path_factory.mktemp("model") / "bert")


@contextmanager
def started(settings: Settings) -> Iterator[TestClient]:
    """The service, ready."""
    failures: list[BaseException] = []
    with TestClient(create_app(settings, on_failure=failures.append)) as client:
        deadline = time.monotonic() + 60
        while client.get("/readyz").status_code != 200:
            assert not failures, failures[0]
            assert time.monotonic() < deadline, "the service did not become ready"
        yield client


def settings_in(folder: Path, model: Path, **changes: Any) -> Settings:
    """A service on `model` that keeps everything in `folder`."""
    here = {"database_url": f"sqlite:///{folder}/errata.db", "cache_dir": folder / "cache", "device": "cpu"}
    return Settings(model=str(model), **{**here, **changes})


@pytest.fixture
def settings(tmp_path: Path, tiny_model: Path) -> Settings:
    return settings_in(tmp_path, tiny_model)


@pytest.fixture
def client(settings: Settings) -> Iterator[TestClient]:
    with started(settings) as client:
        yield client


class Caller:
    """What a user does with the service, in one line each."""

    def __init__(self, client: TestClient) -> None:
        self.client = client

    def predict(self, *inputs: str, **options: Any) -> list[dict[str, Any]]:
        answer = self.client.post("/predict", json={"inputs": list(inputs), **options})
        assert answer.status_code == 200, answer.text
        return list(answer.json()["predictions"])

    def label(self, text: str, **options: Any) -> str:
        return str(self.predict(text, **options)[0]["label"])

    def mistaken(self, text: str) -> str:
        """A label that the model does not answer to `text`: what it should have said."""
        return next(label for label in LABELS if label != self.label(text))

    def edit(self, text: str, target: str | None = None, **fields: Any) -> dict[str, Any]:
        """Report a mistake and wait until it is live."""
        body = {"input": text, "target": target or self.mistaken(text), **fields}
        answer = self.client.post("/edits", json=body, headers={"Prefer": "wait=60"})
        assert answer.status_code == 201, answer.text
        return dict(answer.json())


@pytest.fixture
def caller(client: TestClient) -> Caller:
    return Caller(client)


def sentence(number: int) -> str:
    """A text of the tiny model's words; another one for another number."""
    return " ".join(WORDS[(number * 7 + step * step * 3) % len(WORDS)] for step in range(3 + number % 5))
