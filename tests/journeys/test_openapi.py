"""Whatever the OpenAPI document allows is answered as it says; whatever it forbids is refused; nothing fails."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance

from app.main import create_app
from app.settings import Settings
from tests.deployed import CHAT_TEMPLATE, deploy
from tests.journeys.processes import Process

pytestmark = pytest.mark.journey


@schemathesis.serializer("application/jsonl")
def _lines(context: object, value: Any) -> bytes:
    """Text as it is; anything else, which no line can be, as JSON."""
    return (value if isinstance(value, str) else json.dumps(value)).encode("utf-8", "surrogatepass")


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A classifier with one edit, that waits for nothing and takes few edits at a time."""
    folder = tmp_path_factory.mktemp("service")
    few = {"judge_rounds": 1, "max_wait_seconds": 0, "max_queued_edits": 20}
    with _serving(folder, deploy(folder / "model"), **few) as process:
        process.client.post("/edits", json={"input": "w1 w2", "target": "red"})
        yield str(process.client.base_url)


@pytest.fixture(scope="module")
def causal_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A model that goes on with texts, a few tokens at most."""
    folder = tmp_path_factory.mktemp("causal")
    model = deploy(folder / "llama", family="Llama", chat_template=CHAT_TEMPLATE)
    with _serving(folder, model, max_new_tokens=4) as process:
        yield str(process.client.base_url)


def _serving(folder: Path, model: Path, **changes: Any) -> Process:
    here = {"database_url": f"sqlite:///{folder}/errata.db", "cache_dir": folder, "device": "cpu"}
    return Process(Settings(model=str(model), **here, **changes))


@pytest.fixture(scope="module")
def document(url: str) -> Any:
    return schemathesis.openapi.from_url(f"{url}/openapi.json")


@pytest.fixture(scope="module")
def causal_document(causal_url: str) -> Any:
    return schemathesis.openapi.from_url(f"{causal_url}/openapi.json")


OPERATIONS = sorted(
    (path, method)
    for path, methods in create_app(Settings()).openapi()["paths"].items()
    for method in methods
    if not path.endswith("/events")  # a stream need not end
)


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_the_service_answers_as_its_document_says(document: Any, path: str, method: str) -> None:
    _check(document[path][method])


@pytest.mark.parametrize(("path", "method"), [each for each in OPERATIONS if each[0].startswith("/v1/")])
def test_a_causal_model_is_answered_for_as_the_document_says(causal_document: Any, path: str, method: str) -> None:
    def name_the_model(case: Any) -> None:
        model = case.body.get("model") if isinstance(case.body, dict) else None
        if isinstance(model, str) and len(model) <= 1_000:
            case.body["model"] = "llama"

    _check(causal_document[path][method], name_the_model)


def _check(operation: Any, prepare: Callable[[Any], None] = lambda case: None) -> None:
    @settings(
        max_examples=25,
        deadline=None,
        derandomize=True,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy())
    def check(case: Any) -> None:
        prepare(case)
        # what a document cannot say (labels, live revisions) may refuse what it allows
        case.call_and_validate(excluded_checks=[positive_data_acceptance])

    check()


def test_the_document_describes_every_route_of_the_contract(url: str) -> None:
    paths = httpx.get(f"{url}/openapi.json").json()["paths"]
    assert {(method.upper(), path) for path, methods in paths.items() for method in methods} >= {
        ("POST", "/predict"),
        ("POST", "/edits"),
        ("GET", "/edits"),
        ("GET", "/edits/{edit_id}"),
        ("DELETE", "/edits/{edit_id}"),
        ("POST", "/edits/{edit_id}/reapply"),
        ("GET", "/edits/{edit_id}/robustness"),
        ("GET", "/edits/{edit_id}/patch"),
        ("GET", "/edits/{edit_id}/events"),
        ("POST", "/edits/import"),
        ("GET", "/edits/export"),
        ("GET", "/revisions"),
        ("GET", "/revisions/{number}"),
        ("GET", "/revisions/{a}/diff/{b}"),
        ("POST", "/revisions/{number}/restore"),
        ("GET", "/model"),
        ("GET", "/guard"),
        ("PUT", "/guard"),
        ("DELETE", "/guard"),
        ("GET", "/guard/inputs"),
        ("GET", "/v1/models"),
        ("GET", "/v1/models/{model_id}"),
        ("POST", "/v1/completions"),
        ("POST", "/v1/chat/completions"),
        ("GET", "/livez"),
        ("GET", "/readyz"),
        ("GET", "/metrics"),
    }


def test_the_interactive_documentation_is_served(url: str) -> None:
    assert httpx.get(f"{url}/docs").status_code == 200
