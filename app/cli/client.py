"""The service as a client sees it: one method a request, answers as the contract shows them.

ClientError
    Unreachable     no answer came: nothing listens there, or the connection broke
    Problem         the service refused, and says why
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, Self, cast

import httpx

from app.cli.documents import Answer, Draft, Edit, GuardShown, Json, Page, Robustness

SECONDS_TO_CONNECT = 5.0
SECONDS_TO_ANSWER = 60.0
SECONDS_TO_MEASURE = 600.0
JSON_LINES = "application/jsonl"
TRIES = 3
"""How often a report of an edit is sent when the connection breaks under it; its key makes that safe."""

BROKEN = (httpx.ReadError, httpx.WriteError, httpx.CloseError, httpx.RemoteProtocolError)


class ClientError(Exception):
    """The root of what a client meets; the message is for a person."""


class Unreachable(ClientError):
    """No answer came. `broken` says that a connection had been made and was lost."""

    def __init__(self, sentence: str, *, broken: bool = False) -> None:
        super().__init__(sentence)
        self.broken = broken


class Problem(ClientError):
    """The service refused. `document` is its problem document (RFC 9457)."""

    def __init__(self, document: Json, *, status: int, retry_after: str | None = None) -> None:
        super().__init__(str(document.get("detail") or document.get("title") or f"The service answered {status}."))
        self.document = document
        self.status = status
        self.retry_after = retry_after

    @property
    def code(self) -> str:
        """The stable code of the contract; empty when something else than Errata answered."""
        return str(self.document.get("code", ""))


@dataclass(frozen=True, slots=True)
class Event:
    """One server-sent event. `id` is what `Last-Event-ID` takes to resume after it."""

    name: str
    data: Json
    id: str | None = None


class Client:
    """A connection to one service. Raises ClientError from every method."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._http = httpx.Client(
            base_url=self.url,
            timeout=httpx.Timeout(SECONDS_TO_ANSWER, connect=SECONDS_TO_CONNECT),
            trust_env=not _on_this_machine(self.url),  # a proxy from the environment cannot reach our own loopback
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def ready(self) -> bool:
        """Whether the service has loaded its model and caught up with its database."""
        try:
            self._json("GET", "/readyz")
        except ClientError:
            return False
        return True

    def model(self) -> Json:
        """The deployed model, its labels, revision and editors."""
        return self._json("GET", "/model")

    def predict(
        self,
        inputs: Sequence[str],
        *,
        edited: bool = True,
        as_of: int | None = None,
        exclude: Sequence[str] = (),
        explain: bool = False,
        max_new_tokens: int | None = None,
    ) -> Answer:
        """Answers at one revision, with or without edits."""
        body: dict[str, Any] = {"inputs": list(inputs)}
        if not edited:
            body["edits"] = "off"
        if as_of is not None:
            body["as_of"] = as_of
        if exclude:
            body["exclude"] = list(exclude)
        if explain:
            body["explain"] = True
        if max_new_tokens is not None:
            body["generation"] = {"max_new_tokens": max_new_tokens}
        return cast(Answer, self._json("POST", "/predict", json=body))

    def report(self, draft: Draft, *, key: str, wait: float = 0) -> Edit:
        """Report a mistake and wait up to `wait` seconds for its end. One `key` is one edit, however often sent."""
        headers = {"Idempotency-Key": key}
        if wait:
            headers["Prefer"] = f"wait={math.ceil(wait)}"
        for _ in range(TRIES - 1):
            try:
                return self._report(draft, headers, wait)
            except Unreachable as error:
                if not error.broken:
                    raise
        return self._report(draft, headers, wait)

    def _report(self, draft: Draft, headers: Mapping[str, str], wait: float) -> Edit:
        timeout = httpx.Timeout(SECONDS_TO_ANSWER + wait, connect=SECONDS_TO_CONNECT)
        return cast(Edit, self._json("POST", "/edits", json=draft, headers=headers, timeout=timeout))

    def edit(self, edit_id: str) -> Edit:
        """The audit record of one edit."""
        return cast(Edit, self._json("GET", f"/edits/{edit_id}"))

    def edits(self, **filters: str | int | None) -> Page:
        """One page of edits. `filters` are the query parameters of the listing; None leaves one out."""
        return cast(Page, self._json("GET", "/edits", params=_given(filters)))

    def guard(self) -> GuardShown:
        """The guard that edits are measured on."""
        return cast(GuardShown, self._json("GET", "/guard"))

    def put_guard(self, lines: bytes, *, wait: float) -> GuardShown:
        """Measure edits on these JSON Lines; waits so many seconds until the model has read them."""
        headers = {"Content-Type": JSON_LINES, "Prefer": f"wait={math.ceil(wait)}"}
        timeout = httpx.Timeout(SECONDS_TO_ANSWER + wait, connect=SECONDS_TO_CONNECT)
        return cast(GuardShown, self._json("PUT", "/guard", content=lines, headers=headers, timeout=timeout))

    def withdraw_guard(self) -> GuardShown:
        """Measure edits on the guard of the service's files again."""
        return cast(GuardShown, self._json("DELETE", "/guard"))

    def robustness(self, edit_id: str, *, seed: int, versions: int, guard: bool) -> Robustness:
        """How an edit bears small changes of its input, and the guard the same; measured now."""
        asked: dict[str, str | int | None] = {"seed": seed, "versions": versions, "guard": str(guard).lower()}
        timeout = httpx.Timeout(SECONDS_TO_MEASURE, connect=SECONDS_TO_CONNECT)
        measured = self._json("GET", f"/edits/{edit_id}/robustness", params=_given(asked), timeout=timeout)
        return cast(Robustness, measured)

    def revert(self, edit_id: str, *, reason: str | None = None) -> Edit:
        """Take an edit's patch out of service, or cancel one that is still waiting."""
        return cast(Edit, self._json("DELETE", f"/edits/{edit_id}", params=_given({"reason": reason})))

    def events(self, edit_id: str, *, wait: float) -> Iterator[Event]:
        """What happens to an edit, until it ends or `wait` seconds are over; a broken connection is taken up again."""
        deadline = time.monotonic() + wait
        last: str | None = None
        while (left := deadline - time.monotonic()) > 0:
            try:
                for event in self._events(edit_id, last, seconds=left):
                    last = event.id or last
                    yield event
            except Unreachable as error:
                if not error.broken:
                    raise
            else:
                return

    def _events(self, edit_id: str, last: str | None, *, seconds: float) -> Iterator[Event]:
        deadline = time.monotonic() + seconds
        headers = _given({"Last-Event-ID": last})
        try:
            with self._stream("GET", f"/edits/{edit_id}/events", headers=headers, seconds=seconds) as lines:
                yield from _parsed(_before(deadline, lines))
        except _Silent:
            return

    def import_edits(self, lines: bytes) -> Iterator[str]:
        """Report many edits, one JSON body a line; one JSON answer a line, as each edit ends."""
        headers = {"Content-Type": "application/x-ndjson"}
        with self._stream("POST", "/edits/import", content=lines, headers=headers) as answers:
            yield from answers

    def export_edits(self) -> Iterator[str]:
        """Every edit as a line that `import_edits` accepts."""
        with self._stream("GET", "/edits/export") as lines:
            yield from lines

    def patch(self, edit_id: str) -> bytes:
        """The patch of an edit as safetensors bytes."""
        with self._translated():
            response = self._http.get(f"/edits/{edit_id}/patch")
        if response.is_error:
            raise _problem(response)
        return response.content

    def _json(self, method: str, path: str, **request: Any) -> Json:
        with self._translated():
            response = self._http.request(method, path, **request)
        if response.is_error:
            raise _problem(response)
        try:
            document = response.json()
        except ValueError:
            document = None
        if not isinstance(document, dict):
            raise Problem(
                {"detail": f"What answers at {self.url} is not Errata: {path} gave no JSON object."},
                status=response.status_code,
            )
        return document

    @contextmanager
    def _stream(
        self, method: str, path: str, *, seconds: float | None = None, **request: Any
    ) -> Iterator[Iterator[str]]:
        """The lines of an answer as they come. Raises _Silent when none comes for `seconds`."""
        timeout = httpx.Timeout(SECONDS_TO_ANSWER, connect=SECONDS_TO_CONNECT, read=seconds)
        try:
            with self._translated(), self._http.stream(method, path, timeout=timeout, **request) as response:
                if response.is_error:
                    response.read()
                    raise _problem(response)
                yield response.iter_lines()
        except Unreachable as error:
            if isinstance(error.__cause__, httpx.ReadTimeout):
                raise _Silent from error
            raise

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except BROKEN as error:
            raise Unreachable(f"The connection to {self.url} broke: {error}", broken=True) from error
        except httpx.TimeoutException as error:
            raise Unreachable(f"{self.url} did not answer in time.") from error
        except (httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
            raise Unreachable(f"{self.url!r} is no address; it should look like http://127.0.0.1:8000.") from error
        except httpx.TransportError as error:
            raise Unreachable(
                f"Nothing answers at {self.url}. Start the service with `errata serve`, "
                "or say where it is with --url or ERRATA_URL."
            ) from error


class _Silent(Exception):
    """A stream had nothing to say for too long."""


def _on_this_machine(url: str) -> bool:
    try:
        host = httpx.URL(url).host
        return host == "localhost" or ip_address(host).is_loopback
    except (httpx.InvalidURL, ValueError):
        return False


def _given(values: Mapping[str, str | int | None]) -> dict[str, str]:
    return {name: str(value) for name, value in values.items() if value is not None}


def _problem(response: httpx.Response) -> Problem:
    try:
        document = response.json()
    except ValueError:
        document = None
    if not isinstance(document, dict) or "title" not in document:
        answer = f"{response.status_code} {response.reason_phrase}".strip()
        document = {"title": answer, "detail": f"What answers at {response.url} is not Errata: {answer}."}
    return Problem(document, status=response.status_code, retry_after=response.headers.get("Retry-After"))


def _before(deadline: float, lines: Iterable[str]) -> Iterator[str]:
    """Lines until the deadline; keep-alive comments would otherwise hold a stream open for ever."""
    for line in lines:
        yield line
        if time.monotonic() > deadline:
            return


def _parsed(lines: Iterable[str]) -> Iterator[Event]:
    """Server-sent events from their lines (WHATWG HTML, 9.2.6); a comment is a line without a field name."""
    fields: dict[str, str] = {}
    for line in lines:
        if not line:
            if "data" in fields:
                yield Event(fields.get("event", "message"), json.loads(fields["data"]), fields.get("id"))
            fields = {}
            continue
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        fields[name] = f"{fields[name]}\n{value}" if name == "data" and name in fields else value
