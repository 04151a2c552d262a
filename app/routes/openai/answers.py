"""The bodies that /v1 answers, as OpenAI's clients read them, with the extension field `errata`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol
from uuid import uuid4

from pydantic import BaseModel, Field

from app.model import Generation
from app.routes.schemas import FiredOut

FinishReason = Literal["stop", "length"]


def _absent(value: object) -> bool:
    return value is None


class ModelCard(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int = Field(default=0, description="Not known.")
    owned_by: str = "errata"


class ModelsOut(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelCard]


class Usage(BaseModel):
    """Tokens, counted exactly: a prompt once, however many choices it has, and of each answer its end token too."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int

    @classmethod
    def of(cls, prompt: int, completion: int) -> Usage:
        return cls(prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion)


class Errata(BaseModel):
    """What made the answer, and what to report if it is a mistake."""

    revision: int
    model: str = Field(description="Its fingerprint.")
    fired: list[list[FiredOut]] = Field(description="Of each choice the edits that took part, strongest first.")
    input: str | None = Field(
        default=None,
        exclude_if=_absent,
        description="Of a conversation its prompt: the `input` of an edit of this answer.",
    )


class Body(BaseModel):
    """What all answers have in common."""

    id: str
    created: int
    model: str
    usage: Usage | None = None
    errata: Errata | None = Field(default=None, exclude_if=_absent)


class TextChoice(BaseModel):
    index: int
    text: str
    finish_reason: FinishReason | None = None
    logprobs: None = None


class CompletionOut(Body):
    """A text that goes on, or of a stream some of it."""

    object: Literal["text_completion"] = "text_completion"
    choices: list[TextChoice]


class MessageOut(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(BaseModel):
    index: int
    message: MessageOut
    finish_reason: FinishReason
    logprobs: None = None


class ChatOut(Body):
    """The next turn of a conversation."""

    object: Literal["chat.completion"] = "chat.completion"
    choices: list[ChatChoice]


class Delta(BaseModel):
    role: Literal["assistant"] | None = Field(default=None, exclude_if=_absent)
    content: str | None = Field(default=None, exclude_if=_absent)


class DeltaChoice(BaseModel):
    index: int
    delta: Delta
    finish_reason: FinishReason | None = None
    logprobs: None = None


class ChatChunkOut(Body):
    """Of a stream: some of the next turn."""

    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    choices: list[DeltaChoice]


class Form(Protocol):
    """How the answers to one request are written down, whole or in chunks; the choices are counted through."""

    def whole(self, said: Sequence[Generation], usage: Usage, errata: Errata) -> Body:
        """All answers."""

    def opening(self, index: int) -> Body | None:
        """The chunk that opens a choice, if there is one."""

    def piece(self, index: int, text: str) -> Body:
        """Some more text of a choice."""

    def closing(self, index: int, said: Generation, errata: Errata) -> Body:
        """The end of a choice."""

    def counted(self, usage: Usage) -> Body:
        """The end of all of them."""


@dataclass(frozen=True, slots=True)
class CompletionForm:
    """Texts that go on. echoed: what each choice begins with."""

    model: str
    echoed: Sequence[str]
    id: str = field(default_factory=lambda: f"cmpl-{uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, said: Sequence[Generation], usage: Usage, errata: Errata) -> CompletionOut:
        texts = [f"{echo}{each.text}" for echo, each in zip(self.echoed, said, strict=True)]
        choices = [
            TextChoice(index=index, text=text, finish_reason=_reason(each))
            for index, (text, each) in enumerate(zip(texts, said, strict=True))
        ]
        return self._out(choices, usage, errata)

    def opening(self, index: int) -> CompletionOut | None:
        return self.piece(index, self.echoed[index]) if self.echoed[index] else None

    def piece(self, index: int, text: str) -> CompletionOut:
        return self._out([TextChoice(index=index, text=text)])

    def closing(self, index: int, said: Generation, errata: Errata) -> CompletionOut:
        return self._out([TextChoice(index=index, text="", finish_reason=_reason(said))], errata=errata)

    def counted(self, usage: Usage) -> CompletionOut:
        return self._out([], usage)

    def _out(
        self, choices: list[TextChoice], usage: Usage | None = None, errata: Errata | None = None
    ) -> CompletionOut:
        return CompletionOut(
            id=self.id, created=self.created, model=self.model, choices=choices, usage=usage, errata=errata
        )


@dataclass(frozen=True, slots=True)
class ChatForm:
    """Next turns of a conversation."""

    model: str
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, said: Sequence[Generation], usage: Usage, errata: Errata) -> ChatOut:
        choices = [
            ChatChoice(index=index, message=MessageOut(content=each.text), finish_reason=_reason(each))
            for index, each in enumerate(said)
        ]
        return ChatOut(id=self.id, created=self.created, model=self.model, choices=choices, usage=usage, errata=errata)

    def opening(self, index: int) -> ChatChunkOut:
        return self._chunk([DeltaChoice(index=index, delta=Delta(role="assistant", content=""))])

    def piece(self, index: int, text: str) -> ChatChunkOut:
        return self._chunk([DeltaChoice(index=index, delta=Delta(content=text))])

    def closing(self, index: int, said: Generation, errata: Errata) -> ChatChunkOut:
        return self._chunk([DeltaChoice(index=index, delta=Delta(), finish_reason=_reason(said))], errata=errata)

    def counted(self, usage: Usage) -> ChatChunkOut:
        return self._chunk([], usage)

    def _chunk(
        self, choices: list[DeltaChoice], usage: Usage | None = None, errata: Errata | None = None
    ) -> ChatChunkOut:
        return ChatChunkOut(
            id=self.id, created=self.created, model=self.model, choices=choices, usage=usage, errata=errata
        )


def _reason(said: Generation) -> FinishReason:
    return "stop" if said.finish_reason == "stop" else "length"
