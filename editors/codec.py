"""Patches and rows as bytes: safetensors with a versioned header, addressed by SHA-256.

Same patch, same bytes. Knows nothing of where the bytes are kept.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import asdict, fields
from itertools import groupby
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from editors.errors import CorruptPatch, ForeignPatch
from editors.types import Editor, Header, Patch, Reading, Rows

FORMAT = "errata-patch/1"
ROWS_FORMAT = "errata-rows/3"
ROWS_WITHOUT_KEYS = "errata-rows/2"
ROWS_WITHOUT_LENGTHS = "errata-rows/1"
"""The former formats, still read; in the first every row is a text of its own."""
_ROWS_FORMATS = (ROWS_FORMAT, ROWS_WITHOUT_KEYS, ROWS_WITHOUT_LENGTHS)
_KEYS = "keys "
"""What the names of tensors that hold keys begin with; then comes the site's."""
_ENTRY = "errata"
"""The one metadata entry: safetensors does not keep the order of several, so the bytes would not be repeatable."""


def encode(patch: Patch) -> bytes:
    """The patch as safetensors bytes."""
    return _pack(patch.tensors, {"format": FORMAT, **asdict(patch.header)})


def decode(data: bytes) -> Patch:
    """The patch that `encode` made these bytes of. Raises CorruptPatch, and NotFinite for NaN or infinity in it."""
    tensors, described = _unpack(data, FORMAT)
    return Patch(_header(described), tensors)


def decode_each(data: Iterable[bytes]) -> list[Patch]:
    """The patches that `encode` made these of, as `decode` gives them, faster where their headers are alike."""
    patches: list[Patch] = []
    for described, columns in _unpack_each(data, FORMAT):
        header = _header(described)
        patches += Patch.each(header, columns) if columns else [Patch(header, {})]
    return patches


def encode_rows(reading: Reading) -> bytes:
    """Activations of an edit as safetensors bytes."""
    rows, lengths = reading.rows, torch.tensor(reading.lengths, dtype=torch.int64)
    tensors = {"queries": rows.queries, "residuals": rows.residuals, "labels": rows.labels, "lengths": lengths}
    tensors |= {_KEYS + site: keys for site, keys in reading.keys.items()}
    return _pack(tensors, {"format": ROWS_FORMAT})


def decode_rows(data: bytes) -> Reading:
    """The reading that `encode_rows` made these bytes of. Raises CorruptPatch."""
    tensors, described = _unpack(data, *_ROWS_FORMATS)
    (reading,) = _readings(_alone(tensors), described)
    return reading


def decode_rows_each(data: Iterable[bytes]) -> list[Reading]:
    """The readings that `encode_rows` made these of, as `decode_rows` gives them, faster where headers are alike."""
    return [
        reading
        for described, columns in _unpack_each(data, *_ROWS_FORMATS)
        for reading in _readings(columns, described)
    ]


def _readings(columns: dict[str, Tensor], described: Mapping[str, Any]) -> list[Reading]:
    """The readings whose tensors lie stacked in these: (readings, ...) each."""
    keys = {name.removeprefix(_KEYS): columns.pop(name) for name in list(columns) if name.startswith(_KEYS)}
    names = {"queries", "residuals", "labels"} | ({"lengths"} if described["format"] != ROWS_WITHOUT_LENGTHS else set())
    if columns.keys() != names or (keys and described["format"] != ROWS_FORMAT):
        raise CorruptPatch(f"The stored rows hold the tensors {', '.join(sorted([*columns, *keys]))}.")
    lengths = columns.pop("lengths", torch.ones(columns["labels"].shape, dtype=torch.int64))
    count = _count(columns)
    for each in (every := lengths.tolist()):
        if lengths.dim() != 2 or lengths.dtype != torch.int64 or min(each, default=1) < 1:
            raise CorruptPatch(f"The stored rows give their texts the lengths {each}; each has at least 1 row.")
        if (total := sum(each)) != count:
            raise CorruptPatch(f"The stored rows are {count}, but the lengths of their texts add up to {total}.")
    for site, column in keys.items():
        if column.dim() != 3 or column.shape[1] != lengths.shape[1]:
            raise CorruptPatch(
                f"The stored keys at {site} are {tuple(column.shape[1:])}; there are {lengths.shape[1]} texts."
            )
    rows = (columns[name].unbind() for name in ("queries", "residuals", "labels"))
    keys_of = [
        dict(zip(keys, each, strict=True)) for each in zip(*(column.unbind() for column in keys.values()), strict=True)
    ]
    return [
        Reading(Rows(*tensors), tuple(each), kept)
        for *tensors, each, kept in zip(*rows, every, keys_of or [{} for _ in every], strict=True)
    ]


def _alone(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as a stack of one each."""
    return {name: tensor.unsqueeze(0) for name, tensor in tensors.items()}


def _count(columns: Mapping[str, Tensor]) -> int:
    """How many rows each reading has whose tensors lie stacked in these."""
    shapes = {name: tuple(column.shape[1:]) for name, column in columns.items()}
    count, *_ = (*shapes["labels"], 0)
    if shapes["labels"] != (count,) or shapes["queries"] != shapes["residuals"] or shapes["queries"][:-1] != (count,):
        raise CorruptPatch(f"The stored rows are of unequal number: {shapes}.")
    return count


def sha256(data: bytes) -> str:
    """The address of these bytes, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def check(patch: Patch, *, base: str, sites: Container[str], dtype: str, editor: Editor) -> None:
    """Raise ForeignPatch unless the patch was made by this editor for these weights, one of the sites, this dtype."""
    header = patch.header
    if header.site not in sites:
        raise ForeignPatch(f"The patch was made for the site {header.site!r}; this model has none of that name.")
    here = Header(editor.name, editor.version, base, header.site, dtype)
    for field in fields(Header):
        theirs, ours = getattr(header, field.name), getattr(here, field.name)
        if theirs != ours:
            noun = field.name.replace("_", " ")
            raise ForeignPatch(f"The patch was made for the {noun} {theirs!r}; here it is {ours!r}.")


def _pack(tensors: Mapping[str, Tensor], described: Mapping[str, Any]) -> bytes:
    own = {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    return save(own, metadata={_ENTRY: json.dumps(described, sort_keys=True, separators=(",", ":"))})


def _unpack(data: bytes, *formats: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        length = int.from_bytes(data[:8], "little")
        described = json.loads(json.loads(data[8 : 8 + length])["__metadata__"][_ENTRY])
        found = described["format"]
        tensors = load(data)
    except (ValueError, KeyError, TypeError, RecursionError, SafetensorError) as error:
        raise CorruptPatch(f"These {len(data)} bytes are not of the format {formats[0]}: {error!r}.") from error
    if found not in formats:
        understood = " and ".join(map(repr, formats))
        raise CorruptPatch(f"These bytes are of the format {found!r}; {understood} is understood here.")
    return tensors, described


def _unpack_each(data: Iterable[bytes], *formats: str) -> Iterator[tuple[dict[str, Any], dict[str, Tensor]]]:
    """What `_unpack` gives, runs of bytes with equal headers and sizes stacked: they have one layout."""
    for (header, size), run in groupby(data, key=_layout):
        alike = list(run)
        tensors, described = _unpack(alike[0], *formats)
        if len(alike) == 1 or not tensors or not all(tensor.numel() for tensor in tensors.values()):
            yield described, _alone(tensors)
            for each in alike[1:]:
                yield described, _alone(_unpack(each, *formats)[0])
            continue
        block = torch.frombuffer(bytearray().join(alike), dtype=torch.uint8).view(len(alike), size)
        places = json.loads(header)
        columns = {}
        for name, first in tensors.items():
            start, end = (8 + len(header) + offset for offset in places[name]["data_offsets"])
            column = block[:, start:end].contiguous().view(first.dtype)
            columns[name] = column.view(len(alike), *first.shape)
        yield described, columns


def _layout(data: bytes) -> tuple[bytes, int]:
    """The header of safetensors bytes, which says what lies where in them, and how many they are."""
    return data[8 : 8 + int.from_bytes(data[:8], "little")], len(data)


def _header(described: Mapping[str, Any]) -> Header:
    values = {name: value for name, value in described.items() if name != "format"}
    expected = {"editor": str, "editor_version": int, "base": str, "site": str, "dtype": str}
    if {name: type(value) for name, value in values.items()} != expected:
        raise CorruptPatch(f"The patch's header holds {sorted(values)}; {sorted(expected)} of their types are needed.")
    return Header(**values)
