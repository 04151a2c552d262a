"""What must stay as it is, and what verdicts are measured on: known inputs, traffic, edits, and the guard."""

from app.memory.known import Known, KnownInput, learn, nothing_known, parse, read_inputs
from app.memory.memory import Guard, Memory, Shelf, Shelved, Shelving
from app.memory.saying import CHUNK, Said, said, said_by
from app.memory.texts import Shown, Texts

__all__ = [
    "CHUNK",
    "Guard",
    "Known",
    "KnownInput",
    "Memory",
    "Said",
    "Shelf",
    "Shelved",
    "Shelving",
    "Shown",
    "Texts",
    "learn",
    "nothing_known",
    "parse",
    "read_inputs",
    "said",
    "said_by",
]
