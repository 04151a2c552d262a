"""A large language model on the device: a billion random parameters, and ten thousand random patches at its last layer.

Nothing is downloaded: the weights are drawn, and the tokenizer knows the 256 bytes.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.speed import inside
from benchmarks.speed.bench import Bench
from benchmarks.speed.changing import timed
from benchmarks.speed.figures import Bound, Figure, Skipped, Spread, Way, in_turn, milliseconds, ratio
from benchmarks.speed.serving import write_lines
from benchmarks.speed.texts import ASKED, PREPARED, Report, some

SPECIAL = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
VOCABULARY = 32_000
POSITIONS = 512
NEW_TOKENS = 128
TARGET = "yes"
WARM = 3
KNOWN = 200
"""Inputs whose answers must stay what they are."""


@dataclass(frozen=True, slots=True)
class Size:
    """Of a decoder."""

    hidden: int = 2_048
    layers: int = 16
    heads: int = 32
    feed_forward: int = 8_192
    dtype: torch.dtype = torch.bfloat16


def decoding(bench: Bench) -> list[Figure]:
    """Tokens a second with all the patches beside the unedited model, and the time of an edit. Raises Skipped."""
    if bench.bare.device.type != "cuda":
        raise Skipped("there is no CUDA device")
    folder = bench.new_folder()
    return measure(bench, deploy(folder, Size()), folder)


def measure(bench: Bench, bare: Any, folder: Path) -> list[Figure]:
    """The figures of the model that is saved in the folder, and that `bare` is, too."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    bare = bare.to(bench.bare.device).eval()
    texts = some(ASKED, bench.plan.rounds + WARM)

    def unedited(turn: int) -> float:
        asked = tokenizer([texts[turn]], return_tensors="pt", return_token_type_ids=False).to(bare.device)
        began = time.perf_counter()
        written = bare.generate(**asked, max_new_tokens=NEW_TOKENS, do_sample=False)[0]
        tokens = len(written.tolist()) - int(asked["input_ids"].shape[1])
        return tokens / (time.perf_counter() - began)

    dtype = str(bare.dtype).removeprefix("torch.")
    writer = inside.Writer(folder, bench.plan.device, dtype, bench.plan.edits)
    ways: list[Way] = [partial(_written, writer, texts), unedited]
    in_turn(ways, WARM)
    within, without = in_turn(ways, bench.plan.rounds)
    parts = {"tokens/s": Spread.of(within), "tokens/s unedited": Spread.of(without)}
    case = f"greedy decoding under {bench.plan.edits:,} random patches / unedited"
    decoded = Figure("gpu", case, ratio(within, without), Bound(0.97, at_least=True), parts=parts)
    return [decoded, *_edits(bench, folder, dtype)]


def _written(writer: inside.Writer, texts: list[str], turn: int) -> float:
    began = time.perf_counter()
    tokens = writer.write(texts[turn], NEW_TOKENS)
    return tokens / (time.perf_counter() - began)


def _edits(bench: Bench, folder: Path, dtype: str) -> list[Figure]:
    """Of whole edits over HTTP, in a service without any before; none if none of them passes its gates."""
    lines = write_lines(folder / "memory.jsonl", [{"input": text} for text in some(PREPARED, KNOWN)])
    settings = {"MODEL": str(folder), "DTYPE": dtype, "MEMORY_FILE": str(lines)}
    service = bench.at(bench.new_folder(), settings)
    with service.started():
        taken = [timed(service.client, Report(text, TARGET)) for text in some(ASKED, WARM + bench.plan.rounds)]
    live = [seconds for seconds, made in taken[WARM:] if made is not None]
    case = f"a whole edit over HTTP, beside {KNOWN} known inputs"
    return [Figure("gpu", case, milliseconds(live), unit="ms")] if live else []


def deploy(folder: Path, size: Size) -> Any:
    """A random decoder, saved with a tokenizer of bytes."""
    alphabet = [*SPECIAL.values(), *sorted(pre_tokenizers.ByteLevel.alphabet())]
    spelling = Tokenizer(models.BPE({token: number for number, token in enumerate(alphabet)}, merges=[]))
    spelling.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    spelling.decoder = decoders.ByteLevel()
    named: dict[str, Any] = {**SPECIAL, "model_max_length": POSITIONS}
    PreTrainedTokenizerFast(tokenizer_object=spelling, **named).save_pretrained(folder)
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=size.hidden,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            num_key_value_heads=size.heads // 4,
            intermediate_size=size.feed_forward,
            max_position_embeddings=POSITIONS,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=3,
        )
    ).to(size.dtype)
    model.save_pretrained(folder)
    return model
