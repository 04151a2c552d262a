"""The model and the one thread that may run it: batches of predictions, slices of fits, the live swap.

Knows no store and no HTTP.
"""

from app.engine.admission import Place
from app.engine.engine import Answer, Engine
from app.engine.live import Entry, Live, View
from app.engine.patched import Fired

__all__ = ["Answer", "Engine", "Entry", "Fired", "Live", "Place", "View"]
