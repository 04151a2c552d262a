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
from torch import Tensor

from editors import codec
from editors.errors import CorruptPatch, ForeignPatch, NotFinite
from editors.neuron import TransformerPatcher
from editors.types import Header, Patch, Reading, Rows

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
    with pytest.raises(CorruptPatch, match="'errata-rows/3'"):
        codec.decode(codec.encode_rows(reading()))


def test_nan_in_stored_bytes_is_refused() -> None:
    data = bytearray(codec.encode(Patch(HEADER, {"keys": torch.zeros(1, 8)})))
    data[-4:] = struct.pack("<f", float("nan"))
    with pytest.raises(NotFinite, match="'keys'"):
        codec.decode(bytes(data))


def test_the_address_is_the_sha256_of_the_bytes() -> None:
    assert codec.sha256(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_patch_made_for_this_place_is_accepted() -> None:
    sites = {"norm@first", "layer@mean"}
    codec.check(patch(), base="sha256:0", sites=sites, dtype="float32", editor=TransformerPatcher())


@pytest.mark.parametrize(
    ("changed", "theirs", "ours"),
    [
        ({"base": "sha256:9"}, "sha256:9", "sha256:0"),
        ({"site": "norm@last"}, "norm@last", "none of that name"),
        ({"dtype": "bfloat16"}, "bfloat16", "float32"),
        ({"editor": "codebook"}, "codebook", "transformer-patcher"),
        ({"editor_version": 2}, "2", "1"),
    ],
)
def test_a_foreign_patch_is_refused_naming_both_values(changed: dict[str, object], theirs: str, ours: str) -> None:
    foreign = replace(patch(), header=replace(HEADER, **changed))
    with pytest.raises(ForeignPatch) as refusal:
        codec.check(foreign, base="sha256:0", sites={"norm@first"}, dtype="float32", editor=TransformerPatcher())
    assert theirs in str(refusal.value)
    assert ours in str(refusal.value)


def reading() -> Reading:
    """Two texts, of one row and of two."""
    generator = torch.Generator().manual_seed(0)
    queries, residuals = torch.randn(2, 3, 8, generator=generator)
    return Reading(Rows(queries, residuals.bfloat16(), torch.tensor([4, 0, 2])), lengths=(1, 2))


def stored_rows(form: str, **changed: Tensor) -> bytes:
    """Three rows of two texts as bytes of the format `form`, some of their tensors other than they should be."""
    rows = {"queries": torch.zeros(3, 4), "residuals": torch.ones(3, 4), "labels": torch.tensor([4, 0, 2])}
    return save({**rows, **changed}, metadata={"errata": json.dumps({"format": form})})


def test_rows_survive_their_bytes() -> None:
    loaded = codec.decode_rows(codec.encode_rows(reading()))
    assert torch.equal(loaded.rows.queries, reading().rows.queries)
    assert torch.equal(loaded.rows.residuals, reading().rows.residuals)
    assert torch.equal(loaded.rows.labels, reading().rows.labels)
    assert loaded.lengths == (1, 2)


def keyed() -> Reading:
    """The two texts with their keys at two sites."""
    keys = torch.randn(2, 2, 6, generator=torch.Generator().manual_seed(1))
    return replace(reading(), keys={"up@mean -> down": keys[0], "up@last -> down": keys[1]})


def test_keys_survive_their_bytes_with_the_names_of_their_sites() -> None:
    loaded = codec.decode_rows(codec.encode_rows(keyed()))
    assert loaded.keys.keys() == keyed().keys.keys()
    assert all(torch.equal(loaded.keys[site], keys) for site, keys in keyed().keys.items())
    assert loaded.lengths == (1, 2)
    assert codec.encode_rows(loaded) == codec.encode_rows(keyed())


@pytest.mark.parametrize("shape", [(3, 6), (1, 6), (2,), ()])
def test_keys_of_another_number_of_texts_are_refused_naming_the_site(shape: tuple[int, ...]) -> None:
    keys: dict[str, Tensor] = {"keys up@mean": torch.zeros(shape), "lengths": torch.tensor([1, 2])}
    with pytest.raises(CorruptPatch, match=r"keys at up@mean are .*; there are 2 texts"):
        codec.decode_rows(stored_rows("errata-rows/3", **keys))


def test_rows_stored_before_there_were_keys_have_none() -> None:
    loaded = codec.decode_rows(stored_rows("errata-rows/2", lengths=torch.tensor([1, 2])))
    assert dict(loaded.keys) == {}
    assert loaded.lengths == (1, 2)


def test_no_rows_survive_their_bytes() -> None:
    none = Reading(reading().rows[:0], lengths=())
    assert codec.decode_rows(codec.encode_rows(none)).lengths == ()


def test_the_same_rows_give_the_same_bytes() -> None:
    assert codec.encode_rows(reading()) == codec.encode_rows(codec.decode_rows(codec.encode_rows(reading())))


def test_every_truncation_of_rows_is_refused() -> None:
    data = codec.encode_rows(reading())
    for length in range(len(data)):
        with pytest.raises(CorruptPatch):
            codec.decode_rows(data[:length])


def test_a_patch_is_not_taken_for_rows() -> None:
    with pytest.raises(CorruptPatch, match="'errata-patch/1'"):
        codec.decode_rows(codec.encode(patch()))


def test_of_rows_stored_without_lengths_each_is_a_text_of_its_own() -> None:
    loaded = codec.decode_rows(stored_rows("errata-rows/1"))
    assert loaded.lengths == (1, 1, 1)
    assert loaded.rows.labels.tolist() == [4, 0, 2]
    assert torch.equal(loaded.rows.residuals, torch.ones(3, 4))


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param({"labels": torch.zeros(4, dtype=torch.int64)}, id="labels"),
        pytest.param({"residuals": torch.zeros(2, 4)}, id="residuals"),
        pytest.param({"residuals": torch.zeros(3, 5)}, id="width"),
        pytest.param({"queries": torch.zeros(()), "residuals": torch.zeros(())}, id="scalars"),
        pytest.param({"labels": torch.tensor(4)}, id="scalar label"),
    ],
)
@pytest.mark.parametrize("form", ["errata-rows/1", "errata-rows/2", "errata-rows/3"])
def test_rows_of_unequal_number_are_refused(form: str, changed: dict[str, Tensor]) -> None:
    lengths = {} if form == "errata-rows/1" else {"lengths": torch.tensor([1, 2])}
    with pytest.raises(CorruptPatch, match="of unequal number"):
        codec.decode_rows(stored_rows(form, **lengths, **changed))


@pytest.mark.parametrize(
    ("lengths", "sentence"),
    [
        pytest.param(torch.tensor([1, 1]), "are 3, but the lengths of their texts add up to 2", id="too few"),
        pytest.param(torch.tensor([2, 2]), "are 3, but the lengths of their texts add up to 4", id="too many"),
        pytest.param(torch.tensor([2**62] * 4 + [3]), "add up to 18446744073709551619", id="beyond 64 bits"),
        pytest.param(torch.tensor([3, 0]), "each has at least 1 row", id="an empty text"),
        pytest.param(torch.tensor([4, -1]), "each has at least 1 row", id="a negative length"),
        pytest.param(torch.tensor([1.0, 2.0]), "each has at least 1 row", id="no integers"),
        pytest.param(torch.tensor(3), "each has at least 1 row", id="not a list"),
    ],
)
def test_lengths_that_cannot_be_are_refused(lengths: Tensor, sentence: str) -> None:
    with pytest.raises(CorruptPatch, match=sentence):
        codec.decode_rows(stored_rows("errata-rows/2", lengths=lengths))


@pytest.mark.parametrize(
    ("form", "changed"),
    [
        pytest.param("errata-rows/3", {}, id="no lengths"),
        pytest.param("errata-rows/2", {}, id="no lengths in the former format"),
        pytest.param(
            "errata-rows/2",
            {"lengths": torch.tensor([3]), "keys up": torch.zeros(1, 6)},
            id="keys too early",
        ),
        pytest.param("errata-rows/2", {"lengths": torch.tensor([3]), "more": torch.zeros(3)}, id="one too many"),
        pytest.param("errata-rows/1", {"lengths": torch.tensor([3])}, id="lengths in the former format"),
    ],
)
def test_rows_with_other_tensors_are_refused_by_their_names(form: str, changed: dict[str, Tensor]) -> None:
    with pytest.raises(CorruptPatch, match=r"hold the tensors .*labels.*queries, residuals"):
        codec.decode_rows(stored_rows(form, **changed))


def some_patches() -> list[Patch]:
    """Of several layouts, in runs, among them one without any numbers, and one without tensors."""
    generator = torch.Generator().manual_seed(1)
    other = replace(HEADER, site="another")
    wide = [Patch(HEADER, {"keys": torch.randn(2, 8, generator=generator)}) for _ in range(3)]
    named = [Patch(other, {"keys": torch.randn(2, 8, generator=generator)}) for _ in range(2)]
    empty = [Patch(HEADER, {"keys": torch.zeros(0, 8)}) for _ in range(2)]
    bare = [Patch(HEADER, {})] * 2
    return [*wide, patch(), *named, *wide, *empty, *bare, patch(), patch()]


def test_patches_decoded_together_are_those_decoded_one_by_one() -> None:
    patches = some_patches()
    decoded = codec.decode_each(codec.encode(one) for one in patches)
    assert [one.header for one in decoded] == [one.header for one in patches]
    for one, expected in zip(decoded, patches, strict=True):
        assert one.tensors.keys() == expected.tensors.keys()
        assert all(torch.equal(one.tensors[name], tensor) for name, tensor in expected.tensors.items())
        assert all(one.tensors[name].dtype == tensor.dtype for name, tensor in expected.tensors.items())


def test_one_corrupt_patch_among_many_is_refused() -> None:
    good = codec.encode(patch())
    for bad in (good[:-1], good + b"x", b"", good[:8] + b"[" + good[9:]):
        with pytest.raises(CorruptPatch):
            codec.decode_each([good, good, bad, good])


def test_a_patch_with_nan_among_many_is_refused() -> None:
    good = codec.encode(Patch(HEADER, {"keys": torch.ones(2, 8)}))
    bad = bytearray(good)
    bad[-4:] = struct.pack("<f", float("nan"))
    with pytest.raises(NotFinite):
        codec.decode_each([good, bytes(bad), good])


def test_rows_decoded_together_are_those_decoded_one_by_one() -> None:
    readings = [
        Reading(Rows(torch.randn(count, 8), torch.randn(count, 8), torch.arange(count)), (count,), keys)
        for count in (1, 1, 1, 2, 2, 1)
        for keys in ({}, {}, {"up@first": torch.randn(1, 8)})
    ]
    decoded = codec.decode_rows_each(codec.encode_rows(reading) for reading in readings)
    for one, expected in zip(decoded, readings, strict=True):
        assert one.lengths == expected.lengths
        assert torch.equal(one.rows.queries, expected.rows.queries)
        assert torch.equal(one.rows.residuals, expected.rows.residuals)
        assert torch.equal(one.rows.labels, expected.rows.labels)
        assert one.keys.keys() == expected.keys.keys()
        assert all(torch.equal(one.keys[name], keys) for name, keys in expected.keys.items())
