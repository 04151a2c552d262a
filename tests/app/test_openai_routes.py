"""What a caller of /v1 can rely on: the shapes of OpenAI's interface, and answers that are those of /predict."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.engine import Fired
from app.main import create_app
from app.routes.openai.routes import MAX_FIRED, strongest
from tests.app.conftest import settings_in, started
from tests.deployed import CHAT_TEMPLATE, deploy

USER = [{"role": "user", "content": "w1 w2"}]
RENDERED = "<s><|user|> w1 w2 <|assistant|>"
UNKNOWN_EDIT = "01a00000-0000-7000-8000-000000000000"
JSON = {"Content-Type": "application/json"}

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"


class Asking:
    """A service, asked as OpenAI's clients ask it."""

    def __init__(self, client: TestClient, model: Path) -> None:
        self.client = client
        self.model = model

    def post(self, path: str, **body: Any) -> Any:
        return self.client.post(path, json={"model": self.model.name, **body})

    def complete(self, prompt: Any, **options: Any) -> dict[str, Any]:
        answer = self.post(COMPLETIONS, prompt=prompt, **options)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def texts(self, prompt: Any, **options: Any) -> list[str]:
        return [choice["text"] for choice in self.complete(prompt, **options)["choices"]]

    def text(self, prompt: Any, **options: Any) -> str:
        (text,) = self.texts(prompt, **options)
        return text

    def chat(self, messages: Any, **options: Any) -> dict[str, Any]:
        answer = self.post(CHAT, messages=messages, **options)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def chunks(self, path: str, **body: Any) -> list[dict[str, Any]]:
        """The chunks of a stream, without the word that ends it."""
        answer = self.post(path, stream=True, **body)
        assert answer.status_code == 200, answer.text
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        *events, end, nothing = answer.text.split("\n\n")
        assert (end, nothing) == ("data: [DONE]", "")
        return [json.loads(event.removeprefix("data: ")) for event in events]

    def edit(self, text: str, target: str) -> dict[str, Any]:
        """Report a mistake and wait until it is live."""
        answer = self.client.post("/edits", json={"input": text, "target": target}, headers={"Prefer": "wait=60"})
        assert answer.status_code == 201, answer.text
        return dict(answer.json())


NewAsking = Callable[..., Asking]


@pytest.fixture(scope="module")
def asking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asking]:
    """A Llama with a chat template that no test of this file changes for good."""
    yield from _asking(tmp_path_factory.mktemp("llama"), family="Llama", chat_template=CHAT_TEMPLATE)


@pytest.fixture(scope="module")
def edited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asking]:
    """The same, with one edit, of the answer to a conversation."""
    for asking in _asking(tmp_path_factory.mktemp("edited"), family="Llama", chat_template=CHAT_TEMPLATE):
        asking.edit(RENDERED, "w7 w8")
        yield asking


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asking]:
    """A GPT-2 that reads bytes, puts no start token before a text, and has no chat template."""
    yield from _asking(tmp_path_factory.mktemp("gpt2"), family="GPT2", bytewise=True)


@pytest.fixture(scope="module", params=["Bert", "Bart"])
def other(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asking]:
    """A model that goes on with no text: a classifier, an encoder-decoder."""
    yield from _asking(tmp_path_factory.mktemp(request.param), family=request.param)


def _asking(folder: Path, **kind: Any) -> Iterator[Asking]:
    model = deploy(folder / "model", **kind)
    with started(settings_in(folder, model, max_inputs=20, max_input_characters=400)) as client:
        yield Asking(client, model)


def assert_error(answer: Any, status: int, code: str, param: str | None = None) -> str:
    """The error has exactly the members of OpenAI's; returns its message."""
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"] == "application/json"
    body = answer.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert (body["error"]["code"], body["error"]["param"]) == (code, param), body
    assert body["error"]["type"] == ("server_error" if status >= 500 else "invalid_request_error")
    return str(body["error"]["message"])


def joined(chunks: Sequence[dict[str, Any]], index: int = 0) -> str:
    """The text of one choice of a stream."""
    choices = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
    return "".join(choice["text"] if "text" in choice else choice["delta"].get("content", "") for choice in choices)


# models


def test_the_served_model_is_listed(asking: Asking) -> None:
    listed = asking.client.get("/v1/models").json()
    assert listed["object"] == "list"
    (card,) = listed["data"]
    assert card == {"id": str(asking.model), "object": "model", "created": 0, "owned_by": "errata"}


def test_the_served_model_is_known_by_its_id_its_last_part_and_its_fingerprint(asking: Asking) -> None:
    fingerprint = asking.client.get("/model").json()["fingerprint"]
    for name in (str(asking.model), asking.model.name, fingerprint):
        assert asking.client.get(f"/v1/models/{name}").json()["id"] == str(asking.model)
        assert asking.complete("w1", model=name)["model"] == str(asking.model)


@pytest.mark.parametrize("name", ["gpt-4", "", "Model", "/model"])
def test_another_model_is_not_found(asking: Asking, name: str) -> None:
    assert_error(asking.client.get(f"/v1/models/{name}x"), 404, "model_not_found", "model")
    assert_error(asking.post(COMPLETIONS, prompt="w1", model=name), 404, "model_not_found", "model")
    assert_error(asking.post(CHAT, messages=USER, model=name), 404, "model_not_found", "model")


def test_a_model_that_is_not_causal_is_not_served_here(other: Asking) -> None:
    assert other.client.get("/v1/models").json() == {"object": "list", "data": []}
    answers = [
        other.client.get(f"/v1/models/{other.model}"),
        other.post(COMPLETIONS, prompt="w1"),
        other.post(CHAT, messages=USER, stream=True),
    ]
    for answer in answers:
        assert "POST /predict" in assert_error(answer, 404, "model_not_found", "model")


def test_a_conversation_with_a_model_without_a_chat_template_is_refused(plain: Asking) -> None:
    message = assert_error(plain.post(CHAT, messages=USER), 400, "no_chat_template", "messages")
    assert "/v1/completions" in message


# completions


def test_a_completion_is_what_predict_says(asking: Asking) -> None:
    body = {"inputs": ["w1 w2"], "generation": {"max_new_tokens": 9}}
    (prediction,) = asking.client.post("/predict", json=body).json()["predictions"]
    answer = asking.complete("w1 w2", max_tokens=9)
    assert answer["object"] == "text_completion"
    assert answer["id"].startswith("cmpl-")
    assert isinstance(answer["created"], int)
    (choice,) = answer["choices"]
    assert choice == {"index": 0, "text": prediction["text"], "finish_reason": "length", "logprobs": None}


def test_a_completion_has_16_tokens_unless_the_request_says_more(asking: Asking) -> None:
    assert asking.complete("w1 w2")["usage"]["completion_tokens"] == 16
    assert asking.complete("w1 w2", max_tokens=20)["usage"]["completion_tokens"] == 20


def test_tokens_are_counted_with_the_start_of_the_prompt_and_the_end_of_the_answer(edited: Asking) -> None:
    answer = edited.complete("w4 w5")
    assert answer["usage"] == {"prompt_tokens": 3, "completion_tokens": 16, "total_tokens": 19}
    answer = edited.complete(RENDERED)
    assert (answer["choices"][0]["text"], answer["choices"][0]["finish_reason"]) == (" w7 w8", "stop")
    assert answer["usage"] == {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}


def test_the_prompt_is_counted_once_however_many_choices_it_has(asking: Asking) -> None:
    usage = asking.complete(["w1 w2", "w3 w4 w5"], n=3, max_tokens=2)["usage"]
    assert usage == {"prompt_tokens": 3 + 4, "completion_tokens": 12, "total_tokens": 19}


def test_a_prompt_may_be_given_as_token_ids(asking: Asking) -> None:
    start, one, two = 2, 8, 9
    assert asking.text([start, one, two]) == asking.text("w1 w2")
    assert asking.texts([[start, one, two], [start, two]]) == asking.texts(["w1 w2", "w2"])


def test_answers_in_a_batch_are_those_alone(asking: Asking) -> None:
    prompts = [" ".join(f"w{word}" for word in range(length)) for length in (1, 9, 2, 30, 5)]
    for options in ({}, {"temperature": 1.0, "seed": 5, "n": 2}):
        together = asking.texts(prompts, **options)
        assert together == [text for prompt in prompts for text in asking.texts(prompt, **options)]


def test_answers_are_greedy_unless_a_temperature_or_top_p_is_sent(asking: Asking) -> None:
    greedy = asking.text("w1 w2")
    for options in ({}, {"temperature": 0}, {"seed": 3}, {"temperature": 2, "top_p": 0}, {"temperature": 1e-9}):
        assert asking.text("w1 w2", **options) == greedy
    for options in ({"temperature": 2}, {"top_p": 0.99}):
        assert asking.text("w1 w2", seed=1, **options) != greedy


def test_the_same_seed_draws_the_same_and_choice_i_draws_with_seed_plus_i(asking: Asking) -> None:
    drawn = asking.texts("w1 w2", n=3, seed=7, temperature=1.5)
    assert len(set(drawn)) == 3
    assert drawn == [asking.text("w1 w2", seed=7 + choice, temperature=1.5) for choice in range(3)]


def test_without_a_seed_every_answer_is_another_draw(asking: Asking) -> None:
    drawn = {asking.text("w1 w2", temperature=2, max_tokens=20) for _ in range(3)}
    assert len(drawn) == 3


def test_any_seed_that_openai_takes_is_taken(asking: Asking) -> None:
    for seed in (-(2**63) + 1, -1, 2**63 - 1):
        assert len(asking.texts("w1", n=2, seed=seed, temperature=1, max_tokens=1)) == 2


@pytest.mark.parametrize("stop", ["w27", ["w36", "w27"], [" w27"]])
def test_an_answer_ends_before_a_stop_text(asking: Asking, stop: Any) -> None:
    whole = asking.text("w1 w2")
    (choice,) = asking.complete("w1 w2", stop=stop)["choices"]
    assert choice["finish_reason"] == "stop"
    assert choice["text"] == whole[: whole.index(" w27" if stop == [" w27"] else "w27")]


def test_echo_puts_the_prompt_before_the_answer(asking: Asking) -> None:
    answer = asking.text("w1 w2")
    assert asking.text("w1 w2", echo=True) == f"w1 w2{answer}"
    assert asking.text([2, 8, 9], echo=True) == f"w1 w2{answer}"
    assert joined(asking.chunks(COMPLETIONS, prompt=["w5", "w1 w2"], echo=True), index=1) == f"w1 w2{answer}"


def test_an_answer_ends_where_the_models_positions_do(asking: Asking) -> None:
    prompt = " ".join(["w1"] * 35)
    answer = asking.complete(prompt, max_tokens=20)
    assert (answer["choices"][0]["finish_reason"], answer["usage"]["completion_tokens"]) == ("length", 40 - 36)


# conversations


def test_a_conversation_goes_on_by_the_chat_template(asking: Asking) -> None:
    answer = asking.chat(USER, max_tokens=5)
    assert answer["object"] == "chat.completion"
    assert answer["id"].startswith("chatcmpl-")
    assert answer["errata"]["input"] == RENDERED
    (choice,) = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": asking.text(RENDERED, max_tokens=5), "refusal": None}
    assert (choice["finish_reason"], answer["usage"]["prompt_tokens"]) == ("length", 5)


def test_a_turn_gets_all_the_tokens_there_are_unless_the_request_says_less(asking: Asking) -> None:
    assert asking.chat(USER)["usage"]["completion_tokens"] == 40 - 5
    assert asking.chat(USER, max_completion_tokens=3)["usage"]["completion_tokens"] == 3
    refused = asking.post(CHAT, messages=USER, max_completion_tokens=3, max_tokens=3)
    assert_error(refused, 400, "invalid_request", "max_tokens")


@pytest.mark.parametrize(
    "messages, prompt",
    [
        ([{"role": "user", "content": [{"type": "text", "text": "w1"}, {"type": "text", "text": "w2"}]}], "w1\nw2"),
        ([{"role": "user", "content": "w1", "name": "bo"}], "w1"),
        ([{"role": "developer", "content": "w3"}, *USER], None),
    ],
)
def test_what_is_said_reaches_the_template(asking: Asking, messages: Any, prompt: str | None) -> None:
    expected = "<s><|system|> w3 <|user|> w1 w2 <|assistant|>" if prompt is None else RENDERED.replace("w1 w2", prompt)
    assert asking.chat(messages, max_tokens=1)["errata"]["input"] == expected


def test_an_answer_can_be_sent_back_as_it_is(asking: Asking) -> None:
    said = asking.chat(USER, max_tokens=2)["choices"][0]["message"]
    answer = asking.chat([*USER, {**said, "tool_calls": None, "audio": None}, *USER], max_tokens=1)
    assert answer["errata"]["input"] == f"<s><|user|> w1 w2 <|assistant|> {said['content']} {RENDERED[3:]}"


# streams


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stop": ["w27 w37", "w44 w36"]},
        {"temperature": 1.0, "seed": 4, "n": 3},
        {"prompt": ["w3 w4 w5", "w1", "w9"]},
    ],
    ids=["greedy", "stop", "drawn", "several"],
)
def test_the_pieces_of_a_stream_add_up_to_the_whole_answers(asking: Asking, options: dict[str, Any]) -> None:
    body = {"prompt": "w1 w2", "max_tokens": 12, **options}
    whole = asking.complete(**body)
    chunks = asking.chunks(COMPLETIONS, **body)
    for choice in whole["choices"]:
        assert joined(chunks, choice["index"]) == choice["text"]
    ends = {choice["index"]: choice["finish_reason"] for chunk in chunks for choice in chunk["choices"]}
    assert ends == {choice["index"]: choice["finish_reason"] for choice in whole["choices"]}


@pytest.mark.parametrize("prompt", ["w1 w2", "é", "日本語", "a\nb"])
def test_pieces_of_a_model_of_bytes_add_up_even_where_no_character_is_whole(plain: Asking, prompt: str) -> None:
    assert joined(plain.chunks(COMPLETIONS, prompt=prompt, max_tokens=25)) == plain.text(prompt, max_tokens=25)


def test_every_chunk_names_the_same_answer_and_comes_with_its_nulls(asking: Asking) -> None:
    chunks = asking.chunks(COMPLETIONS, prompt="w1 w2", max_tokens=4)
    assert {(chunk["id"], chunk["created"], chunk["model"], chunk["object"]) for chunk in chunks} == {
        (chunks[0]["id"], chunks[0]["created"], str(asking.model), "text_completion")
    }
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * 4 + ["length"]
    assert all("usage" not in chunk for chunk in chunks)


def test_a_stream_of_a_conversation_begins_with_the_role_and_ends_without_content(edited: Asking) -> None:
    first, *between, last = edited.chunks(CHAT, messages=USER)
    assert first["object"] == "chat.completion.chunk"
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert [chunk["choices"][0]["delta"] for chunk in between] == [{"content": " w7"}, {"content": " w8"}]
    assert (last["choices"][0]["delta"], last["choices"][0]["finish_reason"]) == ({}, "stop")
    assert last["errata"] == edited.chat(USER)["errata"]
    assert all("errata" not in chunk for chunk in [first, *between])


def test_each_choice_of_a_stream_ends_with_what_fired_in_it(edited: Asking) -> None:
    chunks = edited.chunks(COMPLETIONS, prompt=["w9", RENDERED])
    ends = {chunk["choices"][0]["index"]: chunk["errata"] for chunk in chunks if "errata" in chunk}
    whole = edited.complete(["w9", RENDERED])["errata"]
    assert [ends[index]["fired"] for index in (0, 1)] == [[fired] for fired in whole["fired"]]


def test_a_stream_counts_its_tokens_when_it_is_asked_to(asking: Asking) -> None:
    body = {"messages": USER, "max_tokens": 4, "n": 2}
    *chunks, last = asking.chunks(CHAT, **body, stream_options={"include_usage": True})
    assert [chunk["usage"] for chunk in chunks] == [None] * len(chunks)
    assert (last["choices"], last["usage"]) == ([], asking.chat(**body)["usage"])


def test_a_stream_names_its_revision_in_a_header(edited: Asking) -> None:
    answer = edited.post(CHAT, messages=USER, stream=True)
    assert answer.headers["X-Model-Revision"] == "1"
    assert "X-Errata-Fired" not in answer.headers


def test_what_fails_once_a_stream_has_begun_is_its_last_event(tmp_path: Path) -> None:
    for asking in _asking(tmp_path, family="Llama", chat_template=CHAT_TEMPLATE):
        asking.client.app.state.service.parts.engine.close()  # type: ignore[attr-defined]
        prompt: dict[str, Any] = {"prompt": [2, 8, 9], "echo": True}
        assert_error(asking.post(COMPLETIONS, **prompt), 503, "unavailable")
        answer = asking.post(COMPLETIONS, **prompt, stream=True)
        *begun, last, nothing = answer.text.split("\n\n")
        assert (len(begun), nothing) == (1, "")
        error = json.loads(last.removeprefix("data: "))["error"]
        assert (error["type"], error["code"]) == ("server_error", "unavailable")


# edits


def test_an_edit_of_a_conversation_changes_its_answer_and_is_named_with_it(edited: Asking) -> None:
    (edit,) = edited.client.get("/edits").json()["items"]
    answer = edited.post(CHAT, messages=USER)
    body = answer.json()
    assert body["choices"][0]["message"]["content"] == " w7 w8"
    assert body["choices"][0]["finish_reason"] == "stop"
    assert body["errata"]["revision"] == 1
    assert body["errata"]["model"] == edited.client.get("/model").json()["fingerprint"]
    ((fired,),) = body["errata"]["fired"]
    assert (fired["edit_id"], fired["positions"]) == (edit["id"], 3)
    assert answer.headers["X-Model-Revision"] == "1"
    assert answer.headers["X-Errata-Fired"] == edit["id"]


def test_an_answer_in_which_no_edit_took_part_names_none(edited: Asking) -> None:
    answer = edited.post(COMPLETIONS, prompt=["w9", "w20 w21"])
    assert answer.json()["errata"]["fired"] == [[], []]
    assert answer.headers["X-Errata-Fired"] == ""
    assert "input" not in answer.json()["errata"]


def test_a_request_says_under_which_edits_it_is_answered(edited: Asking) -> None:
    (edit,) = edited.client.get("/edits").json()["items"]
    bare = edited.chat(USER, errata={"edits": "off"})
    assert bare["choices"][0]["message"]["content"] != " w7 w8"
    for errata in ({"as_of": 0}, {"exclude": [edit["id"]]}):
        answer = edited.chat(USER, errata=errata)
        assert answer["choices"] == bare["choices"]
        assert answer["errata"]["revision"] == errata.get("as_of", 1)
    assert edited.chat(USER, errata={"min_revision": 1, "as_of": 1})["choices"] == edited.chat(USER)["choices"]


def test_edits_that_take_part_are_counted_whole_or_streamed(edited: Asking) -> None:
    def counted() -> int:
        (edit,) = edited.client.get("/edits").json()["items"]
        record = edited.client.get(f"/edits/{edit['id']}").json()
        return int(record["hits"]["count"])

    before = counted()
    edited.chat(USER, n=2)
    edited.chunks(CHAT, messages=USER)
    assert counted() == before + 3


def test_the_header_names_the_strongest_edits_first_each_once_and_not_too_many() -> None:
    weak, strong = Fired("weak", 0.5, 1), Fired("strong", 2.0, 1)
    assert strongest([weak, strong, Fired("weak", 3.0, 2)]) == "weak,strong"
    many = strongest(Fired(str(number), float(number), 1) for number in range(MAX_FIRED + 9))
    assert many.split(",") == [str(number) for number in range(MAX_FIRED + 8, 8, -1)]


# refusals

ANYWHERE: list[tuple[dict[str, Any], int, str, str | None]] = [
    ({"temperature": 2.1}, 400, "invalid_request", "temperature"),
    ({"temperature": "hot"}, 400, "invalid_request", "temperature"),
    ({"top_p": -1}, 400, "invalid_request", "top_p"),
    ({"n": 0}, 400, "invalid_request", "n"),
    ({"n": 21}, 400, "invalid_request", "n"),
    ({"n": 129}, 400, "invalid_request", "n"),
    ({"max_tokens": 0}, 400, "invalid_request", "max_tokens"),
    ({"max_tokens": 513}, 400, "invalid_request", "max_tokens"),
    ({"seed": 2**63}, 400, "invalid_request", "seed"),
    ({"seed": 1.5}, 400, "invalid_request", "seed"),
    ({"stop": ""}, 400, "invalid_request", "stop"),
    ({"stop": ["a"] * 5}, 400, "invalid_request", "stop"),
    ({"stop": [1]}, 400, "invalid_request", "stop"),
    ({"stream": "yes"}, 400, "invalid_request", "stream"),
    ({"stream_options": {"include_usage": True}}, 400, "invalid_request", "stream_options"),
    ({"stream_options": {"colour": 1}, "stream": True}, 400, "invalid_request", "stream_options.colour"),
    ({"frequency_penalty": 0.1}, 400, "unsupported_parameter", "frequency_penalty"),
    ({"presence_penalty": -1}, 400, "unsupported_parameter", "presence_penalty"),
    ({"logit_bias": {"5": 1}}, 400, "unsupported_parameter", "logit_bias"),
    ({"logprobs": 5}, 400, "unsupported_parameter", "logprobs"),
    ({"colour": "red"}, 400, "invalid_request", "colour"),
    ({"model": None}, 400, "invalid_request", "model"),
    ({"errata": {"edits": "maybe"}}, 400, "invalid_request", "errata.edits"),
    ({"errata": {"colour": "red"}}, 400, "invalid_request", "errata.colour"),
    ({"errata": {"as_of": 9}}, 400, "unknown_revision", None),
    ({"errata": {"exclude": [UNKNOWN_EDIT]}}, 400, "unknown_edit", None),
    ({"errata": {"min_revision": 9}}, 409, "not_caught_up", None),
]


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
@pytest.mark.parametrize("change, status, code, param", ANYWHERE)
def test_what_cannot_be_honoured_is_refused_by_name(
    asking: Asking, path: str, change: dict[str, Any], status: int, code: str, param: str | None
) -> None:
    said = {"prompt": "w1"} if path == COMPLETIONS else {"messages": USER}
    assert_error(asking.post(path, **said, **change), status, code, param)


@pytest.mark.parametrize(
    "body, code, param",
    [
        ({}, "invalid_request", "prompt"),
        ({"prompt": None}, "invalid_request", "prompt"),
        ({"prompt": []}, "invalid_request", "prompt"),
        ({"prompt": [[]]}, "invalid_request", "prompt"),
        ({"prompt": ["w1", 2]}, "invalid_request", "prompt"),
        ({"prompt": [True]}, "invalid_request", "prompt"),
        ({"prompt": [-1]}, "invalid_request", "prompt"),
        ({"prompt": [97]}, "invalid_request", "prompt"),
        ({"prompt": ["w1"] * 7, "n": 3}, "invalid_request", "prompt"),
        ({"prompt": ["w1", "w" * 401]}, "invalid_request", "prompt.1"),
        ({"prompt": " w1" * 39}, "context_length_exceeded", "prompt"),
        ({"prompt": [9] * 40}, "context_length_exceeded", "prompt"),
        ({"prompt": "w1", "best_of": 2}, "unsupported_parameter", "best_of"),
        ({"prompt": "w1", "suffix": "w2"}, "unsupported_parameter", "suffix"),
        ({"prompt": "w1", "logprobs": 0}, "unsupported_parameter", "logprobs"),
        ({"prompt": "w1", "messages": USER}, "invalid_request", "messages"),
    ],
)
def test_a_completion_asked_wrongly_is_refused(
    asking: Asking, body: dict[str, Any], code: str, param: str | None
) -> None:
    assert_error(asking.post(COMPLETIONS, **body), 400, code, param)


@pytest.mark.parametrize(
    "body, code, param",
    [
        ({}, "invalid_request", "messages"),
        ({"messages": []}, "invalid_request", "messages"),
        ({"messages": "w1"}, "invalid_request", "messages"),
        ({"messages": [{"role": "tool", "content": "w1"}]}, "invalid_request", "messages.0.role"),
        ({"messages": [{"role": "user"}]}, "invalid_request", "messages.0.content"),
        ({"messages": [{"role": "user", "content": None}]}, "invalid_request", "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "invalid_request", "messages.0.content"),
        ({"messages": [*USER, {"role": "user", "content": "w1", "tool_calls": [1]}]}, None, "messages.1.tool_calls"),
        ({"messages": [{"role": "user", "content": "w1 " * 37}]}, "context_length_exceeded", "messages"),
        ({"messages": [{"role": "user", "content": "w" * 400}]}, "context_length_exceeded", "messages"),
        ({"messages": USER, "logprobs": True}, None, "logprobs"),
        ({"messages": USER, "top_logprobs": 3}, None, "top_logprobs"),
        ({"messages": USER, "tools": [{"type": "function"}]}, None, "tools"),
        ({"messages": USER, "tool_choice": "required"}, None, "tool_choice"),
        ({"messages": USER, "response_format": {"type": "json_object"}}, None, "response_format"),
        ({"messages": USER, "modalities": ["text", "audio"]}, None, "modalities"),
        ({"messages": USER, "reasoning_effort": "high"}, None, "reasoning_effort"),
        ({"messages": USER, "store": True}, None, "store"),
    ],
)
def test_a_conversation_that_cannot_be_had_is_refused(
    asking: Asking, body: dict[str, Any], code: str | None, param: str | None
) -> None:
    assert_error(asking.post(CHAT, **body), 400, code or "unsupported_parameter", param)


def test_a_refusal_names_the_value_and_what_is_taken(asking: Asking) -> None:
    message = assert_error(
        asking.post(CHAT, messages=USER, response_format={"type": "json_object"}),
        *(400, "unsupported_parameter", "response_format"),
    )
    assert message == (
        'response_format: {"type": "json_object"} is not supported here; it can be null or {"type": "text"}.'
    )


def test_what_changes_nothing_is_taken(asking: Asking) -> None:
    nothing = {"frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}, "user": "bo", "stop": None, "n": None}
    assert asking.text("w1", best_of=1, suffix=None, logprobs=None, **nothing) == asking.text("w1")
    for_turns = {
        "metadata": {"a": "b"},
        "logprobs": False,
        "tools": [],
        "tool_choice": "none",
        "response_format": {"type": "text"},
        "service_tier": "auto",
        "store": False,
    }
    assert asking.chat(USER, **nothing, **for_turns)["choices"] == asking.chat(USER)["choices"]


def test_a_prompt_without_a_token_is_refused(plain: Asking) -> None:
    message = assert_error(plain.post(COMPLETIONS, prompt=["w1", ""]), 400, "invalid_request", "prompt")
    assert "Input 1 has no tokens" in message


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"\xff\xfe\x00", b"[" * 100_000, b'{"\\ud800": 1}', b'{"tools": ' + b"[" * 900 + b"]" * 900 + b"}"],
    ids=["empty", "cut", "binary", "deep", "surrogate", "nested"],
)
def test_a_body_that_cannot_be_read_is_refused(asking: Asking, path: str, body: bytes) -> None:
    answer = asking.client.post(path, content=body, headers=JSON)
    assert answer.status_code == 400
    assert set(answer.json()) == {"error"}


def test_a_body_that_is_too_large_is_refused(asking: Asking) -> None:
    assert_error(asking.client.post(CHAT, content=b"x" * 9 * 2**20, headers=JSON), 413, "body_too_large")


def test_what_is_not_there_is_answered_in_the_same_shape(asking: Asking) -> None:
    assert_error(asking.client.get("/v1/embeddings"), 404, "not_found")
    assert_error(asking.client.get("/v1"), 404, "not_found")
    assert_error(asking.client.get(CHAT), 405, "method_not_allowed")
    assert asking.client.get("/v12").headers["Content-Type"] == "application/problem+json"


def test_a_service_that_is_not_ready_says_so(tmp_path: Path) -> None:
    client = TestClient(create_app(settings_in(tmp_path, tmp_path)))
    for answer in (client.get("/v1/models"), client.post(CHAT, json={"model": "x", "messages": USER})):
        assert_error(answer, 503, "unavailable")
        assert answer.headers["Retry-After"] == "1"
