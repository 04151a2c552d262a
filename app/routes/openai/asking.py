"""From a request on /v1 to what the engine is asked."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePath

from app.engine import Engine, Place, View
from app.errors import NotFound, Unprocessable
from app.model import Decoding, Encoding, Generator, Sampling
from app.model import Model as ServedModel
from app.routes.answering import view_of
from app.routes.openai.requests import MAX_SEED, ChatIn, CompletionIn, Message, Prompt, Writing
from app.routes.schemas import Under, check_texts
from app.settings import Settings

COMPLETION_TOKENS = 16
"""Tokens of a completion when the request does not say; a turn of a conversation gets all that one may have."""
COLDEST = 1e-4
"""Below this temperature an answer is greedy: logits divided by less would not be numbers any more."""


@dataclass(frozen=True, slots=True)
class Asked:
    """The prompts, how to write each choice of one, and under which edits."""

    prompts: Sequence[Encoding]
    decodings: Sequence[Decoding]  # one a choice of a prompt
    view: View
    remember: bool
    """Whether the answers may join the memory."""
    input: str | None = None
    """What to report if the answer is a mistake, where the caller does not know it."""

    @property
    def encodings(self) -> list[Encoding]:
        """One a choice, the choices of a prompt together."""
        return [prompt for prompt in self.prompts for _ in self.decodings]

    @property
    def how(self) -> list[Decoding]:
        """How to write each of the `encodings`."""
        return [*self.decodings] * len(self.prompts)

    @property
    def prompt_tokens(self) -> int:
        return sum(map(len, self.prompts))


def causal(model: ServedModel, named: str | None = None) -> Generator:
    """The served model, as a causal one of this name. Raises NotFound."""
    if not is_causal(model):
        why = f"{model.name} is no causal language model, so that /v1 does not serve it; ask it with POST /predict."
        raise NotFound(why, code="model_not_found", param="model")
    if named is not None and named not in (model.name, PurePath(model.name).name, model.fingerprint):
        why = f"There is no model {named!r}; this service serves {model.name!r}."
        raise NotFound(why, code="model_not_found", param="model")
    assert isinstance(model, Generator)
    return model


def is_causal(model: ServedModel) -> bool:
    """Whether the model goes on with texts, which is all that /v1 is for."""
    return model.task == "causal"


async def asked_to_complete(engine: Engine, body: CompletionIn, settings: Settings, place: Place) -> Asked:
    """What a completion asks; takes the place for it. Raises what a caller can have asked wrongly, and Overloaded."""
    model = causal(engine.model, body.model)
    prompts = body.prompts
    _check_choices(len(prompts), body, settings)
    decodings = _decodings(body, "max_tokens", body.max_tokens, COMPLETION_TOKENS, settings)
    view = _view(engine, body)
    place.take(len(prompts) * len(decodings))
    with _about("prompt"):
        encodings = await _encodings(engine, model, prompts, settings)
    return Asked(_not_empty(encodings, "prompt"), decodings, view, _remembered(body))


async def asked_to_chat(engine: Engine, body: ChatIn, settings: Settings, place: Place) -> Asked:
    """What a conversation asks; takes the place for it. Raises what a caller can have asked wrongly, and Overloaded."""
    model = causal(engine.model, body.model)
    _check_choices(1, body, settings)
    if body.max_tokens is not None and body.max_completion_tokens is not None:
        raise Unprocessable("Send max_tokens or max_completion_tokens, not both.", param="max_tokens")
    name = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
    wanted = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    decodings = _decodings(body, name, wanted, settings.max_new_tokens, settings)
    view = _view(engine, body)
    prompt = _rendered(model, body.messages, settings)
    place.take(len(decodings))
    with _about("messages"):
        encodings = await engine.encode([prompt])
    return Asked(encodings, decodings, view, _remembered(body), prompt)


def _rendered(model: Generator, messages: Sequence[Message], settings: Settings) -> str:
    """The prompt that a conversation makes. Raises Unprocessable."""
    if not model.has_chat_template:
        why = f"{model.name} has no chat template, so that it takes no conversation; use /v1/completions."
        raise Unprocessable(why, code="no_chat_template", param="messages")
    prompt = model.render([message.turn() for message in messages])
    if len(prompt) > settings.max_input_characters:
        at_most = settings.max_input_characters
        why = f"The messages make a prompt of {len(prompt)} characters; at most {at_most} are read."
        raise Unprocessable(why, code="context_length_exceeded", param="messages")
    return prompt


@contextmanager
def _about(param: str) -> Iterator[None]:
    """Let what is refused name the parameter that it is about, unless it names the place itself."""
    try:
        yield
    except Unprocessable as error:
        if "errors" not in error.members:
            error.members.setdefault("param", param)
        raise


async def _encodings(engine: Engine, model: Generator, prompts: Sequence[Prompt], settings: Settings) -> list[Encoding]:
    """Prompts are all texts, or all token ids."""
    texts = [prompt for prompt in prompts if isinstance(prompt, str)]
    if texts:
        check_texts(texts, "prompt", at_most=len(texts), settings=settings)
        return await engine.encode(texts)
    return [model.encoding(prompt) for prompt in prompts if not isinstance(prompt, str)]


def _not_empty(encodings: Sequence[Encoding], name: str) -> Sequence[Encoding]:
    """An answer cannot begin where there is nothing. Raises Unprocessable."""
    empty = next((index for index, encoding in enumerate(encodings) if not len(encoding)), None)
    if empty is not None:
        raise Unprocessable(f"{name}: prompt {empty} has no tokens.", param=name)
    return encodings


def _check_choices(prompts: int, body: Writing, settings: Settings) -> None:
    choices = prompts * (body.n or 1)
    if choices > settings.max_inputs:
        why = f"{choices} answers are asked for; at most {settings.max_inputs} are written at once."
        raise Unprocessable(why, param="n" if prompts == 1 else "prompt")
    if body.stream_options is not None and not body.stream:
        raise Unprocessable("stream_options: are for streams; send stream: true with them.", param="stream_options")


def _decodings(body: Writing, name: str, wanted: int | None, otherwise: int, settings: Settings) -> list[Decoding]:
    """How to write each choice of a prompt; the answer to one prompt does not depend on the others."""
    if wanted is not None and wanted > settings.max_new_tokens:
        raise Unprocessable(f"{name}: is {wanted}; at most {settings.max_new_tokens} are written.", param=name)
    new_tokens = min(otherwise, settings.max_new_tokens) if wanted is None else wanted
    seed = secrets.randbelow(MAX_SEED) if body.seed is None else body.seed
    return [Decoding(new_tokens, _sampling(body, (seed + choice) % 2**63), body.stops) for choice in range(body.n or 1)]


def _sampling(body: Writing, seed: int) -> Sampling | None:
    """None for greedy: when nothing is said of sampling, and when what is said leaves one token to draw from."""
    temperature = body.temperature
    if temperature is None and body.top_p is None:
        return None
    if body.top_p == 0 or (temperature is not None and temperature < COLDEST):
        return None
    return Sampling(temperature=1.0 if temperature is None else temperature, top_p=body.top_p, seed=seed)


def _view(engine: Engine, body: Writing) -> View:
    return view_of(engine, body.errata or Under())


def _remembered(body: Writing) -> bool:
    """Whether what is answered is what the newest revision says by itself."""
    under = body.errata or Under()
    return under.edits == "on" and under.as_of is None and _sampling(body, 0) is None
