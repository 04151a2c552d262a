"""The bodies that /v1 takes. What OpenAI's interface has and this service has not is refused by name and value."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    JsonValue,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from app.routes.openai.errors import UNSUPPORTED
from app.routes.schemas import Closed, Under

MAX_CHOICES = 128
MAX_MESSAGES = 2_048
MAX_PROMPTS = 10_000
MAX_TOKEN_IDS = 2**18
MAX_SEED = 2**63 - 1
SHOWN = 100
"""Characters of a refused value that its refusal shows."""


class Only:
    """Of a field that has no effect here: null and these values are taken, any other is refused by name and value."""

    def __init__(self, *accepted: JsonValue) -> None:
        self._accepted: tuple[JsonValue, ...] = (None, *accepted)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._checked, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"enum": list(self._accepted)}

    def _checked(self, value: JsonValue) -> JsonValue:
        if any(value == each and isinstance(value, bool) == isinstance(each, bool) for each in self._accepted):
            return value
        shown, takes = json.dumps(value)[:SHOWN], " or ".join(map(json.dumps, self._accepted))
        raise PydanticCustomError(UNSUPPORTED, f"{shown} is not supported here; it can be {takes}")


def either(sentence: str) -> WrapValidator:
    """Of a union: one sentence for a value that is none of its types, instead of a complaint of each."""

    def check(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        try:
            return handler(value)
        except ValidationError as error:
            raise PydanticCustomError("type", sentence) from error

    return WrapValidator(check)


TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]
TokenIds = Annotated[list[TokenId], Field(min_length=1, max_length=MAX_TOKEN_IDS, fail_fast=True)]
SEVERAL = Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True)
Prompt = str | TokenIds
Stop = Annotated[str, Field(min_length=1, max_length=200)]
Ignored = JsonValue
"""A field that is taken and changes nothing."""


class StreamOptions(Closed):
    include_usage: bool | None = None
    include_obfuscation: Ignored = None


class Writing(Closed):
    """What both ways of asking have in common.

    Answers are greedy unless a `temperature` or a `top_p` is sent: an answer that was corrected is to be the answer.
    """

    model: str = Field(max_length=1_000, description="The id of the served model, its last part, or its fingerprint.")
    errata: Under | None = Field(None, description="Of Errata: under which edits to answer.")
    temperature: float | None = Field(None, ge=0, le=2, description="0, and when neither is sent: greedy.")
    top_p: float | None = Field(None, ge=0, le=1)
    n: int | None = Field(None, ge=1, le=MAX_CHOICES)
    seed: int | None = Field(None, ge=-MAX_SEED, le=MAX_SEED, description="Choice i of a prompt draws with seed + i.")
    stop: Annotated[
        Stop | Annotated[list[Stop], Field(max_length=4)] | None,
        either("Must be a text of 1 to 200 characters, or a list of up to 4 of them"),
    ] = None
    max_tokens: int | None = Field(None, ge=1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: Ignored = None
    frequency_penalty: Annotated[JsonValue, Only(0)] = None
    presence_penalty: Annotated[JsonValue, Only(0)] = None
    logit_bias: Annotated[JsonValue, Only({})] = None

    @property
    def stops(self) -> tuple[str, ...]:
        """The texts before which an answer ends."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class CompletionIn(Writing):
    """A text to go on with."""

    prompt: Annotated[
        str | Annotated[list[str], SEVERAL] | TokenIds | Annotated[list[TokenIds], SEVERAL],
        either(
            "Must be a text, a list of texts, a list of token ids, or a list of such lists, of 1 to "
            f"{MAX_PROMPTS} prompts and 1 to {MAX_TOKEN_IDS} ids"
        ),
    ] = Field(examples=["Once upon a time"])
    echo: bool | None = Field(None, description="Whether the answer begins with the prompt.")
    best_of: Annotated[JsonValue, Only(1)] = None
    logprobs: Annotated[JsonValue, Only()] = None
    suffix: Annotated[JsonValue, Only("")] = None

    @property
    def prompts(self) -> list[Prompt]:
        """Each prompt, as a text or as token ids."""
        if isinstance(self.prompt, str) or isinstance(self.prompt[0], int):
            return [self.prompt]
        return list(self.prompt)


class Part(Closed):
    type: Literal["text"]
    text: str


class Message(Closed):
    """One turn of a conversation. An answer of this service can be sent back as it is."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[
        str | Annotated[list[Part], Field(min_length=1, fail_fast=True)],
        either('Must be a text, or a list of parts such as {"type": "text", "text": "..."}'),
    ]
    name: str | None = Field(None, max_length=1_000)
    refusal: Annotated[JsonValue, Only()] = None
    tool_calls: Annotated[JsonValue, Only([])] = None
    function_call: Annotated[JsonValue, Only()] = None
    audio: Annotated[JsonValue, Only()] = None
    annotations: Annotated[JsonValue, Only([])] = None

    def turn(self) -> dict[str, str]:
        """As chat templates take it: the parts of a text as lines, and the developer's word as the system's."""
        said = self.content if isinstance(self.content, str) else "\n".join(part.text for part in self.content)
        role = "system" if self.role == "developer" else self.role
        return {"role": role, "content": said} | ({} if self.name is None else {"name": self.name})


class ChatIn(Writing):
    """A conversation to go on with."""

    messages: list[Message] = Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)
    max_completion_tokens: int | None = Field(None, ge=1)
    metadata: Ignored = None
    service_tier: Ignored = None
    safety_identifier: Ignored = None
    prompt_cache_key: Ignored = None
    prompt_cache_retention: Ignored = None
    parallel_tool_calls: Ignored = None
    logprobs: Annotated[JsonValue, Only(False)] = None
    top_logprobs: Annotated[JsonValue, Only(0)] = None
    response_format: Annotated[JsonValue, Only({"type": "text"})] = None
    tools: Annotated[JsonValue, Only([])] = None
    tool_choice: Annotated[JsonValue, Only("none", "auto")] = None
    functions: Annotated[JsonValue, Only([])] = None
    function_call: Annotated[JsonValue, Only("none", "auto")] = None
    modalities: Annotated[JsonValue, Only(["text"])] = None
    audio: Annotated[JsonValue, Only()] = None
    prediction: Annotated[JsonValue, Only()] = None
    reasoning_effort: Annotated[JsonValue, Only("none")] = None
    verbosity: Annotated[JsonValue, Only("medium")] = None
    store: Annotated[JsonValue, Only(False)] = None
    web_search_options: Annotated[JsonValue, Only()] = None
    moderation: Annotated[JsonValue, Only()] = None
    prompt_cache_options: Ignored = None
