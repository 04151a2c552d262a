"""Deployed models that write: what they are fed, how they answer, and that batches, draws and slices change nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest
import torch
import transformers

from app.errors import InputTooLong, Unprocessable, UnwritableTarget
from app.model import Ask, Decoding, Encoding, Generation, Generator, Output, Sampling, load
from app.model.steps import Draw, first_stop
from editors.errors import UnsupportedModel
from tests.app.conftest import sentence
from tests.app.running import run
from tests.deployed import deploy

FAMILIES = ("Bart", "T5", "Llama", "GPT2")
TEXTS = [sentence(number) for number in range(12)]
SHARED = Path(__file__).parents[3] / "shared" / "models"
REAL = ("g2p-us", "stories260k")
GREEDY = Decoding(max_new_tokens=12)


@pytest.fixture(scope="session", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return deploy(tmp_path_factory.mktemp("model") / request.param, family=request.param)


@cache
def opened(folder: Path) -> Generator:
    model = load(folder, device="cpu")
    assert isinstance(model, Generator)
    return model


@pytest.fixture
def model(folder: Path) -> Generator:
    return opened(folder)


@pytest.fixture(params=REAL)
def real(request: pytest.FixtureRequest) -> Generator:
    if not (SHARED / request.param).exists():
        pytest.skip(f"the model {request.param} is not there")
    return opened(SHARED / request.param)


def written(model: Generator, texts: Sequence[str], decoding: Decoding = GREEDY) -> list[Generation]:
    """The answers to one batch."""
    asks = [Ask(encoding, decoding) for encoding in model.encode(texts)]
    answers = model.decode(asks, run(model, asks))
    assert all(isinstance(answer, Generation) for answer in answers)
    return [answer for answer in answers if isinstance(answer, Generation)]


def outputs(model: Generator, texts: Sequence[str], decoding: Decoding = GREEDY) -> list[Output]:
    return run(model, [Ask(encoding, decoding, remember=True) for encoding in model.encode(texts)])


def by_transformers(folder: Path, model: Generator, text: str, count: int) -> list[int]:
    """The answer of `transformers` itself to one text alone, end token included."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    kind = transformers.AutoModelForSeq2SeqLM if model.task == "seq2seq" else transformers.AutoModelForCausalLM
    theirs = kind.from_pretrained(folder).eval()
    theirs.generation_config.forced_eos_token_id = None  # would end an answer where it is cut off
    inputs = tokenizer([text], return_tensors="pt", return_token_type_ids=False)
    tokens = theirs.generate(**inputs, max_new_tokens=count, do_sample=False)[0].tolist()
    return tokens[1:] if model.task == "seq2seq" else tokens[inputs["input_ids"].shape[1] :]


def test_greedy_answers_are_those_of_transformers_generate(folder: Path, model: Generator) -> None:
    for text, output in zip(TEXTS[:4], outputs(model, TEXTS[:4]), strict=True):
        assert model.answered(output).tolist() == by_transformers(folder, model, text, GREEDY.max_new_tokens)


def test_greedy_answers_of_real_models_are_those_of_transformers_generate(real: Generator) -> None:
    folder = SHARED / REAL[0 if real.task == "seq2seq" else 1]
    texts = ["pronunciation", "Errata"] if real.task == "seq2seq" else ["Once upon a time", "Lily and the dog"]
    for text, output in zip(texts, outputs(real, texts), strict=True):
        assert real.answered(output).tolist() == by_transformers(folder, real, text, GREEDY.max_new_tokens)


def test_answers_in_a_batch_of_mixed_lengths_equal_answers_alone(model: Generator) -> None:
    assert written(model, TEXTS) == [written(model, [text])[0] for text in TEXTS]


def test_rows_of_one_batch_may_be_decoded_differently(model: Generator) -> None:
    how = [Decoding(3), Decoding(9), Decoding(9, Sampling(seed=5))]
    asks = [Ask(encoding, each) for encoding, each in zip(model.encode(TEXTS[:3]), how, strict=True)]
    together = model.decode(asks, run(model, asks))
    assert together == [model.decode([ask], run(model, [ask]))[0] for ask in asks]


def test_the_same_seed_draws_the_same_answer_in_any_batch_and_another_seed_another(model: Generator) -> None:
    drawn = [written(model, TEXTS, Decoding(12, Sampling(1.5, seed=seed))) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert drawn[0] == [written(model, [text], Decoding(12, Sampling(1.5, seed=1)))[0] for text in TEXTS]


def test_draws_follow_the_softmax_of_what_the_filters_leave() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, -9.0])
    encoding = Encoding(torch.tensor([5]))
    asks = [Ask(encoding, Decoding(1, Sampling(2.0, top_k=3, seed=seed))) for seed in range(4000)]
    scores = Draw(asks)(torch.zeros(len(asks), 1, dtype=torch.int64), logits.repeat(len(asks), 1))
    shares = scores.argmax(-1).bincount(minlength=5) / len(asks)
    expected = torch.cat([(logits[:3] / 2.0).softmax(-1), torch.zeros(2)])
    torch.testing.assert_close(shares, expected, atol=0.03, rtol=0)


def test_an_answer_that_is_fed_back_is_said_at_every_position(model: Generator) -> None:
    encodings = model.encode(TEXTS)
    answers = [model.answered(output) for output in outputs(model, TEXTS)]
    assert torch.equal(model.read(encodings, answers).answered, torch.cat(answers))


def test_what_was_seen_while_writing_are_the_rows_that_feeding_reads(model: Generator) -> None:
    encodings, seen = model.encode(TEXTS), outputs(model, TEXTS)
    read = model.read(encodings, [model.answered(output) for output in seen]).reading
    for index, output in enumerate(seen):
        assert output.seen is not None
        torch.testing.assert_close(output.seen.queries, read.of_text(index).queries, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(output.seen.residuals, read.of_text(index).residuals, atol=1e-4, rtol=1e-4)
        assert torch.equal(output.seen.labels, read.of_text(index).labels)


def test_reading_in_a_batch_equals_reading_alone(model: Generator) -> None:
    encodings = model.encode(TEXTS)
    wanted = [model.wanted(encoding, sentence(number + 3)) for number, encoding in enumerate(encodings)]
    together = model.read(encodings, wanted).reading
    for index, pair in enumerate(zip(encodings, wanted, strict=True)):
        alone = model.read([pair[0]], [pair[1]]).reading.rows
        torch.testing.assert_close(together.of_text(index).queries, alone.queries, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(together.of_text(index).residuals, alone.residuals, atol=1e-4, rtol=1e-4)


def test_an_answer_says_whether_it_ended_or_was_cut_off(real: Generator) -> None:
    text = "hello" if real.task == "seq2seq" else "Once upon a time"
    (short,) = written(real, [text], Decoding(2))
    assert short.finish_reason == "length"
    if real.task == "seq2seq":
        (whole,) = written(real, [text], Decoding(20))
        assert whole == Generation("hˈɛlO", "stop")


def test_an_answer_ends_before_the_first_stop_text(model: Generator) -> None:
    drawn = Sampling(2.0, seed=1)  # the greedy answer of a random model may be one word over and over
    (whole,) = written(model, TEXTS[:1], Decoding(12, drawn))
    words = whole.text.split()
    stop = next(word for word in words[1:] if word != words[0])
    (cut,) = written(model, TEXTS[:1], Decoding(12, drawn, stop=("never said", stop)))
    assert cut == Generation(whole.text[: whole.text.index(stop)], "stop")
    assert first_stop("abcabc", ("c", "b")) == 1
    assert first_stop("abc", ("x",)) is None


def test_an_input_longer_than_the_model_reads_is_refused(model: Generator) -> None:
    with pytest.raises(InputTooLong, match=r"Input 1 has \d+ tokens"):
        model.encode(["w1", " ".join(["w1"] * 60)])


def test_a_prompt_without_tokens_is_refused(tmp_path: Path) -> None:
    model = opened(deploy(tmp_path / "model", family="GPT2"))
    with pytest.raises(Unprocessable, match="Input 1 has no tokens"):
        model.encode(["w1", " "])


def test_a_target_longer_than_there_is_room_for_is_refused(model: Generator) -> None:
    (encoding,) = model.encode(["w1"])
    with pytest.raises(InputTooLong, match=r"The target has \d+ tokens with its end; there is room for \d+"):
        model.wanted(encoding, " ".join(["w1"] * 60))


def test_a_target_that_the_tokenizer_cannot_write_is_refused(model: Generator) -> None:
    (encoding,) = model.encode(["w1"])
    with pytest.raises(UnwritableTarget, match=r"'w1 unheard'"):
        model.wanted(encoding, "w1 unheard")


def test_labels_are_those_that_transformers_trains_with() -> None:
    """The pronunciation model expects its start token as the first label."""
    if not (SHARED / "g2p-us").exists():
        pytest.skip("the model g2p-us is not there")
    model = opened(SHARED / "g2p-us")
    tokenizer = transformers.AutoTokenizer.from_pretrained(SHARED / "g2p-us")
    (encoding,) = model.encode(["hello"])
    wanted = model.wanted(encoding, "hˈɛlO")
    assert wanted.tolist() == tokenizer(text_target="hˈɛlO")["input_ids"]
    assert wanted[0] == tokenizer.bos_token_id
    assert wanted[-1] == tokenizer.eos_token_id


def test_a_continuation_is_written_as_it_would_stand_in_the_text() -> None:
    if not (SHARED / "stories260k").exists():
        pytest.skip("the model stories260k is not there")
    model = opened(SHARED / "stories260k")
    cases = {
        ("Once upon a time", ", there was"): ", there was",
        ("The capital of France is", "Paris"): " Paris",
        ("The capital of France is", " Paris"): " Paris",
        ("A line\n", "Another"): "Another",
    }
    for (prompt, target), said in cases.items():
        (encoding,) = model.encode([prompt])
        wanted = model.wanted(encoding, target)
        assert model.decode([Ask(encoding, GREEDY)], [Output(wanted[:-1], 0, "stop")]) == [Generation(said, "stop")]


def test_a_text_that_begins_with_a_special_token_gets_no_other() -> None:
    if not (SHARED / "stories260k").exists():
        pytest.skip("the model stories260k is not there")
    model = opened(SHARED / "stories260k")
    plain, marked = model.encode(["Once upon", "<s> Once upon"])
    assert plain.input_ids.tolist().count(1) == marked.input_ids.tolist().count(1) == 1


def test_pieces_of_an_answer_add_up_to_it_and_cut_no_character(tmp_path: Path) -> None:
    model = opened(deploy(tmp_path / "bytes", family="GPT2", bytewise=True))
    (encoding,) = model.encode(["naïve café"])
    wanted = model.wanted(encoding, "Ünïcödé ✓ 你好")
    pieces = model.pieces(encoding)
    shown = [pieces.add(int(token)) for token in wanted[:-1]]
    assert "".join(shown) == " Ünïcödé ✓ 你好"
    assert "�" not in "".join(shown)
    assert "" in shown  # bytes of an unfinished character


def test_where_settings_count_padding_only_equal_lengths_share_a_batch(tmp_path: Path) -> None:
    folder = deploy(tmp_path / "model", family="Llama")
    assert opened(folder).mixes_lengths
    config = transformers.GenerationConfig.from_pretrained(folder)
    config.repetition_penalty = 1.3
    config.save_pretrained(folder)
    model = load(folder, device="cpu")
    assert not model.mixes_lengths


def saved_with(folder: Path, **settings: object) -> Path:
    """The model with these settings in its generation_config.json."""
    config = transformers.GenerationConfig.from_pretrained(folder)
    config.update(**settings)
    (folder / "generation_config.json").write_text(json.dumps(config.to_diff_dict()))
    return folder


@pytest.mark.parametrize(
    "settings",
    [
        {"num_beams": 4, "early_stopping": True, "length_penalty": 2.0},
        {"do_sample": True, "temperature": 0.1, "top_k": 5},
        {"prompt_lookup_num_tokens": 3},
        {"penalty_alpha": 0.6, "top_k": 4},
        {"dola_layers": "low"},
        {"guidance_scale": 1.5},
        {"cache_implementation": "offloaded"},
        {"token_healing": True},
        {"max_length": 9, "forced_eos_token_id": 3},
    ],
    ids=str,
)
def test_other_ways_to_decode_are_left_out(tmp_path: Path, settings: dict[str, object]) -> None:
    folder = deploy(tmp_path / "model", family="Llama")
    plain = written(opened(folder), TEXTS[:3])
    other = load(saved_with(folder, **settings), device="cpu")
    assert isinstance(other, Generator)
    assert written(other, TEXTS[:3]) == plain


def test_settings_that_shape_the_logits_are_kept_and_named(tmp_path: Path) -> None:
    folder = saved_with(deploy(tmp_path / "model", family="Llama"), repetition_penalty=1.5, suppress_tokens=[9])
    model = opened(folder)
    assert model.decoding_settings == {"repetition_penalty": 1.5, "suppress_tokens": [9]}
    (output,) = outputs(model, TEXTS[:1])
    assert model.answered(output).tolist() == by_transformers(folder, model, TEXTS[0], GREEDY.max_new_tokens)


BOS, END = "{{ bos_token }}", "{% if add_generation_prompt %} w3{% endif %}"
TURNS = "{% for message in messages %} w1 {{ message['content'] }}{% endfor %}"


@pytest.mark.parametrize("template", [f"{BOS}{TURNS}{END}", f"\n{BOS}{TURNS}{END}", f"w2{TURNS}{END}"], ids=str)
def test_a_rendered_conversation_is_read_as_transformers_reads_it(tmp_path: Path, template: str) -> None:
    folder = deploy(tmp_path / "model", family="Llama", chat_template=template)
    model, messages = opened(folder), [{"role": "user", "content": "w5"}]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    theirs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    (ours,) = model.encode([model.render(messages)])
    assert ours.input_ids.tolist() == theirs


def test_settings_that_change_answers_change_the_fingerprint(tmp_path: Path) -> None:
    folder = deploy(tmp_path / "model", family="Bart")
    before = load(folder, device="cpu").fingerprint
    assert load(folder, device="cpu").fingerprint == before
    config = transformers.GenerationConfig.from_pretrained(folder)
    config.repetition_penalty = 1.3
    config.save_pretrained(folder)
    assert load(folder, device="cpu").fingerprint != before


def test_a_model_is_taken_for_what_its_architecture_says(folder: Path, model: Generator) -> None:
    assert model.task == ("causal" if folder.name in ("Llama", "GPT2") else "seq2seq")
    other = "classification" if model.task == "causal" else "causal"
    with pytest.raises(UnsupportedModel, match=f"an architecture for {other} is needed"):
        load(folder, device="cpu", task=other)


def test_weights_are_bit_identical_after_writing_and_reading(folder: Path) -> None:
    model = load(folder, device="cpu")
    assert isinstance(model, Generator)
    before = {name: tensor.clone() for name, tensor in model._model.state_dict().items()}
    written(model, TEXTS)
    model.read(model.encode(TEXTS[:2]), [torch.tensor([5, 6]), torch.tensor([7])])
    assert all(torch.equal(before[name], tensor) for name, tensor in model._model.state_dict().items())
