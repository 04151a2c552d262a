"""Deployed models: loading, refusing, encoding, naming."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from app.errors import InputTooLong, UnknownLabel
from app.model import Ask, Classifier, Output, load
from editors.errors import UnsupportedModel
from tests.app.conftest import Caller, sentence, settings_in, started
from tests.app.running import run
from tests.deployed import LABELS, deploy

FAMILIES = ("Bert", "Roberta", "DistilBert")


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Classifier:
    loaded = load(deploy(tmp_path, family=request.param), device="cpu")
    assert isinstance(loaded, Classifier)
    return loaded


def test_logits_are_those_of_transformers_itself(model: Classifier, tmp_path: Path) -> None:
    texts = [sentence(number) for number in range(6)]
    pipeline = transformers.pipeline("text-classification", str(tmp_path), top_k=None, device="cpu")
    asks = [Ask(encoding) for encoding in model.encode(texts)]
    ours = model.decode(asks, run(model, asks))
    for theirs, prediction in zip(pipeline(texts), ours, strict=True):
        expected = {each["label"]: each["score"] for each in theirs}
        assert prediction.scores == pytest.approx(expected, abs=1e-6)
        assert prediction.label == max(expected, key=expected.__getitem__)


def test_an_answer_is_the_same_to_the_last_bit_whether_it_is_read_off_alone_or_with_its_batch(
    model: Classifier,
) -> None:
    asks = [Ask(encoding) for encoding in model.encode([sentence(number) for number in range(7)])]
    outputs = run(model, asks)
    alone = [model.decode([ask], [Output(output.raw, 1)]) for ask, output in zip(asks, outputs, strict=True)]
    assert [[each] for each in model.decode(asks, outputs)] == alone


def test_norm_and_head_alone_give_the_logits_of_the_whole_model(model: Classifier) -> None:
    asks = [Ask(encoding, remember=True) for encoding in model.encode([sentence(number) for number in range(7)])]
    outputs = run(model, asks)
    residuals = torch.cat([output.seen.residuals for output in outputs if output.seen is not None])
    assert torch.equal(model.readout(residuals), torch.stack([output.raw for output in outputs]))


def test_the_loop_closes_on_every_family(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    for family in FAMILIES:
        folder = deploy(tmp_path / family, family=family)
        with started(settings_in(tmp_path / family, folder)) as client:
            caller = Caller(client)
            before = caller.predict(sentence(1))
            edit = caller.edit(sentence(1))
            assert caller.label(sentence(1)) == edit["target"]
            client.delete(f"/edits/{edit['id']}")
            assert caller.predict(sentence(1)) == before


def test_a_text_is_read_up_to_the_last_token_that_the_model_has_a_position_for(model: Classifier) -> None:
    longest = " ".join(["w1"] * (model.max_tokens - 2))
    assert model.max_tokens == 40
    (output,) = run(model, [Ask(encoding) for encoding in model.encode([longest])])
    assert output.raw.shape == (len(LABELS),)
    with pytest.raises(InputTooLong, match=r"has 41 tokens; .* reads at most 40"):
        model.encode([longest + " w1"])


def test_an_unknown_label_is_refused_with_those_there_are(model: Classifier) -> None:
    with pytest.raises(UnknownLabel, match=r"'mauve' is not a label of .* red, green, blue, yellow"):
        model.label_index("mauve")


def test_the_same_weights_have_the_same_name_wherever_they_lie(tmp_path: Path) -> None:
    one, same = (load(deploy(tmp_path / name), device="cpu") for name in ("one", "same"))
    assert one.fingerprint == same.fingerprint


@pytest.mark.parametrize("change", ["weights", "labels", "tokenizer", "dtype"])
def test_whatever_answers_depend_on_is_in_the_name(tmp_path: Path, change: str) -> None:
    one = load(deploy(tmp_path / "one"), device="cpu")
    folder = deploy(tmp_path / "other", seed=1 if change == "weights" else 0)
    if change == "labels":
        rewrite(folder / "config.json", lambda config: config["id2label"].update({"0": "crimson"}))
    if change == "tokenizer":
        rewrite(
            folder / "tokenizer.json", lambda tokenizer: tokenizer.update(pre_tokenizer={"type": "WhitespaceSplit"})
        )
    other = load(folder, device="cpu", dtype="bfloat16" if change == "dtype" else "float32")
    assert one.fingerprint != other.fingerprint


def test_a_model_without_safetensors_is_refused(tmp_path: Path) -> None:
    folder = deploy(tmp_path)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UnsupportedModel, match="safetensors"):
        load(folder, device="cpu")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"architectures": ["BertForMaskedLM"]}, "declares BertForMaskedLM .* an architecture for .* is needed"),
        ({"architectures": None}, "no architecture at all"),
        ({"problem_type": "multi_label_classification"}, "does not choose one label"),
        ({"model_type": "unheard-of"}, "cannot be loaded"),
    ],
)
def test_a_model_that_is_no_classifier_is_refused_with_what_is_missing(
    tmp_path: Path, change: dict[str, Any], sentence: str
) -> None:
    folder = deploy(tmp_path)
    rewrite(folder / "config.json", lambda config: config.update(change))
    with pytest.raises(UnsupportedModel, match=sentence):
        load(folder, device="cpu")


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="nowhere"):
        load(tmp_path / "nowhere", device="cpu")


def test_weights_are_the_same_bits_after_edits_and_reverts(tmp_path: Path) -> None:
    folder = deploy(tmp_path / "model")
    app_settings = settings_in(tmp_path, folder)
    with started(app_settings) as client:
        caller = Caller(client)
        fingerprint = client.get("/model").json()["fingerprint"]
        engine = client.app.state.service.parts.engine  # type: ignore[attr-defined]
        before = {name: tensor.clone() for name, tensor in engine.model._model.state_dict().items()}
        edit = caller.edit(sentence(1))
        caller.edit(sentence(2), options={"fit": "gradient", "steps": 30})
        client.delete(f"/edits/{edit['id']}")
        for name, tensor in engine.model._model.state_dict().items():
            assert torch.equal(tensor, before[name]), name
    assert load(folder, device="cpu").fingerprint == fingerprint


def test_two_models_on_one_database_have_ledgers_of_their_own(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/shared.db"
    one, other = (deploy(tmp_path / str(seed), seed=seed) for seed in (0, 1))
    with started(settings_in(tmp_path, one, database_url=url)) as first:
        edit = Caller(first).edit(sentence(1))
        with started(settings_in(tmp_path, other, database_url=url)) as second:
            assert second.get("/model").json()["revision"] == 0
            assert second.get("/edits").json()["items"] == []
            assert second.get(f"/edits/{edit['id']}").status_code == 404
            Caller(second).edit(sentence(2))
            assert Caller(first).label(sentence(1)) == edit["target"]
            assert first.get("/model").json()["revision"] == second.get("/model").json()["revision"] == 1


def rewrite(path: Path, change: Any) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
