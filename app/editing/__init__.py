"""The life of an edit: report, claim, fit, judge, commit; revert, re-apply, restore."""

from app.editing.editing import Editing, Report
from app.editing.events import Event
from app.editing.worker import Worker

__all__ = ["Editing", "Event", "Report", "Worker"]
