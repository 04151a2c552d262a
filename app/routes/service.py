"""What routes depend on: the parts of this process, once they are open, and who is calling."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Header, Request

from app.editing import Editing as EditingPart
from app.engine import Engine as EnginePart
from app.errors import BadRequest, Unavailable
from app.guarding import Guarding as GuardingPart
from app.hits import Hits
from app.memory import Memory
from app.observe import Metrics
from app.settings import Settings
from app.store import Ledger as LedgerPart
from editors.types import Editor

LOCAL = "local"
"""The actor of every change, until there are keys."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What answers need, joined by app.main."""

    engine: EnginePart
    ledger: LedgerPart
    editing: EditingPart
    editors: Mapping[str, Editor]
    hits: Hits
    memory: Memory
    guarding: GuardingPart


@dataclass(slots=True)
class Service:
    """One process: its parts are there once the model is loaded and caught up."""

    metrics: Metrics
    settings: Settings
    _parts: Parts | None = field(default=None)

    def open(self, parts: Parts) -> None:
        """Answer requests from now on."""
        self._parts = parts

    def stop_waiting(self) -> None:
        """Let go of requests that wait for an edit, and of streams about one."""
        if self._parts is not None:
            self._parts.editing.stop_waiting()

    def close(self) -> None:
        """Answer no more requests that need the parts."""
        self._parts = None

    @property
    def ready(self) -> bool:
        return self._parts is not None

    @property
    def parts(self) -> Parts:
        """Raises Unavailable until they are there."""
        if self._parts is None:
            raise Unavailable("The model is not loaded yet, or the service is stopping.", headers={"Retry-After": "1"})
        return self._parts


# What follows is async only because FastAPI would run it in a thread otherwise, once for each request.
async def service(request: Request) -> Service:
    """The service that this application is."""
    found = request.app.state.service
    assert isinstance(found, Service)
    return found


async def actor() -> str:
    """Who makes a change; kept with it for ever."""
    return LOCAL


ServiceOf = Annotated[Service, Depends(service)]


async def _settings(service: ServiceOf) -> Settings:
    return service.settings


async def _engine(service: ServiceOf) -> EnginePart:
    return service.parts.engine


async def _ledger(service: ServiceOf) -> LedgerPart:
    return service.parts.ledger


async def _editing(service: ServiceOf) -> EditingPart:
    return service.parts.editing


async def _guarding(service: ServiceOf) -> GuardingPart:
    return service.parts.guarding


async def _if_match(
    if_match: Annotated[str | None, Header(description='Only if this is still the revision, as `"r12"`.')] = None,
) -> int | None:
    """The revision that the caller built on; None if it does not say, or says `*`."""
    if if_match is None or if_match.strip() == "*":
        return None
    found = re.fullmatch(r'\s*"r(\d{1,18})"\s*', if_match, re.ASCII)
    if found is None:
        raise BadRequest(f'If-Match is {if_match!r}; it must be a revision such as "r12", with the quotes, or *.')
    return int(found[1])


async def _wait(
    service: ServiceOf,
    prefer: Annotated[str | None, Header(description="`wait=30`: how many seconds to wait for the outcome.")] = None,
) -> float:
    """Seconds to wait (RFC 7240). A preference that is not understood is no error."""
    found = re.search(r"(?:^|[,;\s])wait\s*=\s*\"?(\d{1,6})", prefer or "", re.ASCII | re.IGNORECASE)
    return min(float(found[1]), service.settings.max_wait_seconds) if found else 0.0


SettingsOf = Annotated[Settings, Depends(_settings)]
Engine = Annotated[EnginePart, Depends(_engine)]
Ledger = Annotated[LedgerPart, Depends(_ledger)]
Editing = Annotated[EditingPart, Depends(_editing)]
Guarding = Annotated[GuardingPart, Depends(_guarding)]
Actor = Annotated[str, Depends(actor)]
IfMatch = Annotated[int | None, Depends(_if_match)]
Wait = Annotated[float, Depends(_wait)]
