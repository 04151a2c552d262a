"""The official `openai` client, as it is, against a real server."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI

from app.settings import Settings
from tests.deployed import CHAT_TEMPLATE, deploy
from tests.journeys.conftest import settings_on
from tests.journeys.processes import Process, eventually

pytestmark = pytest.mark.journey

STORIES = Path(__file__).parents[3] / "shared" / "models" / "stories260k"
POSITIONS = 4_096
USER: Any = [{"role": "user", "content": "w1 w2"}]


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """A Llama with a chat template, and room for very long answers."""
    folder = tmp_path_factory.mktemp("service")
    model = deploy(folder / "llama", family="Llama", max_tokens=POSITIONS, chat_template=CHAT_TEMPLATE)
    with Process(_settings(folder, model, max_new_tokens=POSITIONS)) as process:
        yield process


@pytest.fixture(scope="module")
def client(process: Process) -> Iterator[OpenAI]:
    with _client(process) as client:
        yield client


def _settings(folder: Path, model: Path, **changes: Any) -> Settings:
    return settings_on(f"sqlite:///{folder}/errata.db", folder, model).model_copy(update=changes)


def _stories(folder: Path) -> Path:
    """The model as a deployer would serve it: its stories end where the next would start, and never with `</s>`."""
    folder.mkdir()
    for file in STORIES.iterdir():
        (folder / file.name).symlink_to(file)
    decoding = folder / "generation_config.json"
    given = json.loads(decoding.read_text())
    decoding.unlink()
    decoding.write_text(json.dumps({**given, "eos_token_id": given["bos_token_id"]}))
    return folder


def _client(process: Process, **options: Any) -> OpenAI:
    return OpenAI(base_url=f"{process.client.base_url}/v1", api_key="none", **{"max_retries": 0, **options})


def edit(process: Process, text: str, target: str) -> dict[str, Any]:
    """Report a mistake and wait until it is live."""
    answer = process.client.post("/edits", json={"input": text, "target": target}, headers={"Prefer": "wait=60"})
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


def answers_finished(process: Process) -> tuple[float, float]:
    """How many batches were answered so far, and in how many seconds."""
    text = process.client.get("/metrics").text
    count, total = (
        re.search(rf"^errata_forward_seconds_{which} (\S+)$", text, re.MULTILINE) for which in ("count", "sum")
    )
    assert count is not None
    assert total is not None
    return float(count[1]), float(total[1])


def test_the_client_finds_the_model(client: OpenAI) -> None:
    (model,) = client.models.list()
    assert client.models.retrieve(model.id) == model
    assert client.models.retrieve("llama") == model
    assert model.object == "model"


def test_the_client_completes(client: OpenAI) -> None:
    answer = client.completions.create(model="llama", prompt=["w1 w2", "w3"], max_tokens=4)
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert all(choice.text and choice.finish_reason == "length" for choice in answer.choices)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 8
    assert client.completions.create(model="llama", prompt=[2, 8, 9], max_tokens=4).choices[0] == answer.choices[0]


def test_the_client_streams_a_completion(client: OpenAI) -> None:
    whole = client.completions.create(model="llama", prompt="w1 w2", max_tokens=8)
    with client.completions.create(model="llama", prompt="w1 w2", max_tokens=8, stream=True) as stream:
        chunks = list(stream)
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["length"]


def test_the_client_streams_a_conversation_and_counts_its_tokens(client: OpenAI) -> None:
    whole = client.chat.completions.create(model="llama", messages=USER, max_tokens=8)
    with client.chat.completions.create(
        model="llama", messages=USER, max_tokens=8, stream=True, stream_options={"include_usage": True}
    ) as stream:
        *chunks, last = list(stream)
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert deltas[0].role == "assistant"
    assert "".join(delta.content or "" for delta in deltas) == whole.choices[0].message.content
    assert (last.choices, last.usage) == ([], whole.usage)


def test_the_clients_own_collector_of_streams_gets_the_whole_answer(process: Process, client: OpenAI) -> None:
    conversation: Any = [{"role": "user", "content": "w20 w21"}]
    edit(process, "<s><|user|> w20 w21 <|assistant|>", "w30 w31 w32")
    with client.chat.completions.stream(model="llama", messages=conversation) as stream:
        pieces = [event.delta for event in stream if event.type == "content.delta"]
        collected = stream.get_final_completion()
    assert pieces == ["", " w30", " w31", " w32"]
    assert collected.choices[0].message.content == " w30 w31 w32"
    assert collected.choices[0].finish_reason == "stop"


def test_an_answer_of_the_client_can_be_sent_back(client: OpenAI) -> None:
    answer = client.chat.completions.create(model="llama", messages=USER, max_tokens=2)
    again = client.chat.completions.create(
        model="llama", messages=[*USER, answer.choices[0].message, *USER], max_tokens=2
    )
    assert again.model_extra is not None
    assert again.model_extra["errata"]["input"].count("<|user|>") == 2


def test_a_mistake_that_the_client_saw_is_corrected(process: Process, client: OpenAI) -> None:
    mistaken = client.chat.completions.create(model="llama", messages=USER, max_tokens=8)
    assert mistaken.model_extra is not None
    reported = edit(process, mistaken.model_extra["errata"]["input"], "w7 w8")
    raw = client.chat.completions.with_raw_response.create(model="llama", messages=USER)
    answer = raw.parse()
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == (" w7 w8", "stop")
    assert raw.headers["X-Model-Revision"] == str(reported["revision"])
    assert raw.headers["X-Errata-Fired"] == reported["id"]
    assert answer.model_extra is not None
    ((fired,),) = answer.model_extra["errata"]["fired"]
    assert fired["edit_id"] == reported["id"]
    bare = client.chat.completions.create(
        model="llama", messages=USER, max_tokens=8, extra_body={"errata": {"edits": "off"}}
    )
    assert bare.choices == mistaken.choices


def test_a_streamed_answer_ends_with_what_made_it(client: OpenAI) -> None:
    with client.chat.completions.with_streaming_response.create(
        model="llama", messages=USER, max_tokens=3, stream=True
    ) as raw:
        chunks = list(raw.parse())
        assert raw.headers["X-Model-Revision"].isdecimal()
    *others, last = [(chunk.model_extra or {}).get("errata") for chunk in chunks]
    assert others == [None] * len(others)
    assert last["input"] == "<s><|user|> w1 w2 <|assistant|>"


def test_errors_are_those_that_the_client_knows(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="gpt-4o", messages=USER)
    assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError) as too_long:
        client.completions.create(model="llama", prompt="w1 " * POSITIONS)
    assert too_long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as unsupported:
        client.chat.completions.create(model="llama", messages=USER, logprobs=True, stream=True)
    assert (unsupported.value.code, unsupported.value.param) == ("unsupported_parameter", "logprobs")
    assert "logprobs: true is not supported" in unsupported.value.message
    with pytest.raises(openai.NotFoundError) as nothing:
        client.embeddings.create(model="llama", input="w1")
    assert nothing.value.code == "not_found"
    with pytest.raises(openai.ConflictError) as behind:
        client.completions.create(model="llama", prompt="w1", extra_body={"errata": {"min_revision": 99}})
    assert behind.value.code == "not_caught_up"


def test_a_client_that_stops_listening_stops_the_writing(process: Process, client: OpenAI) -> None:
    asked: Any = {"model": "llama", "prompt": "w10 w11", "max_tokens": 1_000}
    count, spent = answers_finished(process)
    assert client.completions.create(**asked).choices[0].finish_reason == "length", "the answer is too short to tell"
    eventually(lambda: answers_finished(process)[0] == count + 1)
    whole = answers_finished(process)[1] - spent
    with client.completions.create(**asked, stream=True) as stream:
        assert next(iter(stream)).choices[0].text
    eventually(lambda: answers_finished(process)[0] == count + 2)
    assert answers_finished(process)[1] - spent - whole < whole / 2


@pytest.mark.skipif(not STORIES.exists(), reason="there is no stories260k beside the project")
def test_the_client_tells_a_story_by_a_real_model_and_has_it_corrected(tmp_path: Path) -> None:
    with Process(_settings(tmp_path, _stories(tmp_path / "stories260k"))) as process, _client(process) as client:
        prompt = "Once upon a time, there was a little girl named"
        asked: Any = {"model": "stories260k", "prompt": prompt, "max_tokens": 30}
        story = client.completions.create(**asked).choices[0].text
        with client.completions.create(**asked, stream=True) as stream:
            assert "".join(chunk.choices[0].text for chunk in stream) == story
        with pytest.raises(openai.BadRequestError, match="no chat template"):
            client.chat.completions.create(model="stories260k", messages=USER)
        edit(process, prompt, "Zoe.")
        corrected = client.completions.create(**asked).choices[0]
        assert (corrected.text, corrected.finish_reason) == (" Zoe.", "stop")
