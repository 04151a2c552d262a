"""Patches as bytes: the same patch the same bytes, and nothing else is taken for one."""

from __future__ import annotations

import json
import struct
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from editors import codec
from editors.errors import CorruptPatch, ForeignPatch, NotFinite
from editors.neuron import TransformerPatcher
from editors.types import Header, Patch, Rows

HEADER = Header("transformer-patcher", 1, base="sha256:0", site="norm@first", dtype="float32")


def patch() -> Patch:
    generator = torch.Generator().manual_seed(0)
    return Patch(
        HEADER,
        {
            "values": torch.randn(2, 8, generator=generator),
            "keys": torch.randn(2, 8, generator=generator),
            "biases": torch.randn(2, generator=generator),
            "activations": torch.zeros(2, dtype=torch.uint8),
        },
    )


def with_header(described: object) -> bytes:
    return save({"keys": torch.zeros(1)}, metadata={"errata": json.dumps(described)})


def test_a_patch_survives_its_bytes() -> None:
    loaded = codec.decode(codec.encode(patch()))
    assert loaded.header == HEADER
    assert loaded.tensors.keys() == patch().tensors.keys()
    assert all(torch.equal(loaded.tensors[name], tensor) for name, tensor in patch().tensors.items())


def test_the_same_patch_gives_the_same_bytes_whatever_the_order_of_its_tensors() -> None:
    one = patch()
    reversed_order = replace(one, tensors=dict(reversed(one.tensors.items())))
    assert codec.encode(one) == codec.encode(reversed_order) == codec.encode(codec.decode(codec.encode(one)))


def test_tensors_that_are_views_of_one_storage_are_stored() -> None:
    whole = torch.arange(8.0).reshape(2, 4)
    loaded = codec.decode(codec.encode(Patch(HEADER, {"keys": whole[:, :2], "values": whole[:, 2:]})))
    assert torch.equal(loaded.tensors["values"], whole[:, 2:])


def test_every_truncation_is_refused() -> None:
    data = codec.encode(patch())
    for length in range(len(data)):
        with pytest.raises(CorruptPatch):
            codec.decode(data[:length])


@given(data=st.binary(max_size=200))
@settings(max_examples=200)
def test_arbitrary_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(CorruptPatch):
        codec.decode(data)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(save({"keys": torch.zeros(1)}), id="no metadata"),
        pytest.param(save({"keys": torch.zeros(1)}, metadata={"other": "{}"}), id="no entry of ours"),
        pytest.param(save({"keys": torch.zeros(1)}, metadata={"errata": "not json"}), id="entry not JSON"),
        pytest.param(with_header([1, 2]), id="header not an object"),
        pytest.param(with_header({"format": codec.FORMAT}), id="header empty"),
        pytest.param(struct.pack("<Q", 2**60) + b"{}", id="length beyond the data"),
        pytest.param(codec.encode(patch()) + b"x", id="bytes after the end"),
    ],
)
def test_what_is_no_patch_is_refused(data: bytes) -> None:
    with pytest.raises(CorruptPatch):
        codec.decode(data)


def test_a_header_with_an_unknown_field_is_refused() -> None:
    described = {"editor": "a", "editor_version": 1, "base": "b", "site": "s", "dtype": "d", "colour": "red"}
    with pytest.raises(CorruptPatch, match="colour"):
        codec.decode(with_header({"format": codec.FORMAT, **described}))


def test_a_later_format_is_refused_by_its_name() -> None:
    with pytest.raises(CorruptPatch, match="'errata-patch/2'"):
        codec.decode(with_header({"format": "errata-patch/2"}))


def test_rows_are_not_taken_for_a_patch() -> None:
    rows = Rows(torch.zeros(1, 4), torch.zeros(1, 4), torch.zeros(1, dtype=torch.int64))
    with pytest.raises(CorruptPatch, match="'errata-rows/1'"):
        codec.decode(codec.encode_rows(rows))


def test_nan_in_stored_bytes_is_refused() -> None:
    data = bytearray(codec.encode(Patch(HEADER, {"keys": torch.zeros(1, 8)})))
    data[-4:] = struct.pack("<f", float("nan"))
    with pytest.raises(NotFinite, match="'keys'"):
        codec.decode(bytes(data))


def test_the_address_is_the_sha256_of_the_bytes() -> None:
    assert codec.sha256(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_patch_made_for_this_place_is_accepted() -> None:
    codec.check(patch(), base="sha256:0", site="norm@first", dtype="float32", editor=TransformerPatcher())


@pytest.mark.parametrize(
    ("changed", "theirs", "ours"),
    [
        ({"base": "sha256:9"}, "sha256:9", "sha256:0"),
        ({"site": "norm@last"}, "norm@last", "norm@first"),
        ({"dtype": "bfloat16"}, "bfloat16", "float32"),
        ({"editor": "codebook"}, "codebook", "transformer-patcher"),
        ({"editor_version": 2}, "2", "1"),
    ],
)
def test_a_foreign_patch_is_refused_naming_both_values(changed: dict[str, object], theirs: str, ours: str) -> None:
    foreign = replace(patch(), header=replace(HEADER, **changed))
    with pytest.raises(ForeignPatch) as refusal:
        codec.check(foreign, base="sha256:0", site="norm@first", dtype="float32", editor=TransformerPatcher())
    assert theirs in str(refusal.value)
    assert ours in str(refusal.value)


def test_rows_survive_their_bytes() -> None:
    rows = Rows(torch.randn(3, 8), torch.randn(3, 8).bfloat16(), torch.tensor([4, 0, 2]))
    loaded = codec.decode_rows(codec.encode_rows(rows))
    assert torch.equal(loaded.queries, rows.queries)
    assert torch.equal(loaded.residuals, rows.residuals)
    assert torch.equal(loaded.labels, rows.labels)


def test_rows_of_unequal_number_are_refused() -> None:
    described = {"errata": json.dumps({"format": "errata-rows/1"})}
    tensors = {"queries": torch.zeros(2, 4), "residuals": torch.zeros(2, 4), "labels": torch.zeros(3)}
    with pytest.raises(CorruptPatch):
        codec.decode_rows(save(tensors, metadata=described))
