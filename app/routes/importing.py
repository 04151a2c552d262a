"""Many edits in one request: the lines of an import, learned together where they can be, answered in their order."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from pydantic import ValidationError

from app.editing import Editing, Report
from app.errors import QueueFull, ServiceError, translate
from app.routes.problems import invalid, problem
from app.routes.reports import outcome_of, report_of
from app.routes.schemas import EditIn
from app.settings import Settings
from app.store import EditRecord
from editors.errors import EditorError

A_TURN = 64
"""Lines that are queued at once; while they are worked on, the next wait behind them."""

Line = tuple[int, bytes]
"""A line and its number."""
Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Importing:
    """The lines of one import."""

    editing: Editing
    settings: Settings
    actor: str

    async def outcomes(self, lines: Sequence[Line]) -> AsyncIterator[tuple[int, Json]]:
        """What became of each line, by its number: the edit's id and status, or the problem."""
        turns = iter(range(0, len(lines), A_TURN))
        queued = [await self._queued(lines[start : start + A_TURN]) for start in islice(turns, 1)]
        while queued:
            queued += [await self._queued(lines[start : start + A_TURN]) for start in islice(turns, 1)]
            async for outcome in self._ended(queued.pop(0)):
                yield outcome

    async def _queued(self, lines: Sequence[Line]) -> list[tuple[int, Report | None, str | Json]]:
        """Of each line its number, its report, and the id of its edit, or the problem."""
        reports = [(number, self._read(line)) for number, line in lines]
        good = [report for _, report in reports if isinstance(report, Report)]
        accepted = iter(await self.editing.report_each(good, actor=self.actor))
        return [
            (number, report, _told(next(accepted))) if isinstance(report, Report) else (number, None, report)
            for number, report in reports
        ]

    async def _ended(self, queued: Sequence[tuple[int, Report | None, str | Json]]) -> AsyncIterator[tuple[int, Json]]:
        edit_ids = [found for _, _, found in queued if isinstance(found, str)]
        endings = self.editing.endings(edit_ids)
        for number, report, found in queued:
            if isinstance(found, str):
                yield number, _outcome(await anext(endings))
            elif report is not None and found["error"]["code"] == QueueFull.code:  # those before it have made room
                yield number, await self._again(report)
            else:
                yield number, found

    async def _again(self, report: Report) -> Json:
        (accepted,) = map(_told, await self.editing.report_each([report], actor=self.actor))
        if not isinstance(accepted, str):
            return accepted
        return _outcome(await anext(self.editing.endings([accepted])))

    def _read(self, line: bytes) -> Report | Json:
        try:
            return report_of(EditIn.model_validate_json(line), self.settings)
        except ValidationError as error:
            return _problem(invalid(error.errors()))
        except ServiceError as error:
            return _problem(error)


def _told(accepted: str | ServiceError | EditorError) -> str | Json:
    if isinstance(accepted, str):
        return accepted
    return _problem(translate(accepted) if isinstance(accepted, EditorError) else accepted)


def _outcome(record: EditRecord) -> Json:
    try:
        outcome_of(record)
    except ServiceError as error:
        return _problem(error)
    return {"edit_id": record.id, "status": record.status.value, "revision": record.revision}


def _problem(error: ServiceError) -> Json:
    return {"error": json.loads(bytes(problem(error).body))}
