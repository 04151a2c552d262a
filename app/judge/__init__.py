"""Every edit is a regression test for all later ones: gates, measured before anything goes live."""

from app.judge.judge import Coming, Exemption, Judge, Judged, Mark, Offended, Outdated
from app.judge.verdict import Conflict, Gate, Required, Verdict

__all__ = [
    "Coming",
    "Conflict",
    "Exemption",
    "Gate",
    "Judge",
    "Judged",
    "Mark",
    "Offended",
    "Outdated",
    "Required",
    "Verdict",
]
