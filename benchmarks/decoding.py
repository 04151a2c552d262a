"""What decoding costs: one call of `generate`, the same in slices, continuous batching; and answers that take turns.

Prompts are given to a causal model, twice each, and the second time counts. Times are of this machine: compare them
within one run.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from app.engine import Engine, Live
from app.model import Ask, Decoding, Encoding, Generator, load
from app.observe import Metrics
from editors.composition import Composition
from editors.registry import editors

PROMPTS = (
    *("Once upon a time", "The dog", "Lily went to the park and", "She said", "A big", "Tom had a red", "One day"),
    "The sun is",
)
NEW_TOKENS = 32
LONG, SHORT = 256, 4
ARRIVALS, EVERY_SECONDS = 32, 0.01


@dataclass(frozen=True, slots=True)
class Way:
    """How long one way of decoding takes for the same batch, and whether it writes the same."""

    name: str
    milliseconds: float
    same: bool


@dataclass(frozen=True, slots=True)
class Turns:
    """How long answers take when so many batches take turns."""

    few_running: int
    short_milliseconds: float  # of a short answer that comes while a long one is being written
    shorter_milliseconds: float  # of one that comes while four long ones are
    mean_milliseconds: float  # of many that come one after the other
    worst_milliseconds: float
    tokens_a_second: float  # of these


def ways(folder: str) -> list[Way]:
    """The same batch by `generate`, by `generate` in slices, and by transformers' continuous batching."""
    served = load(folder, device="cpu")
    assert isinstance(served, Generator)
    theirs = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    encodings = served.encode(PROMPTS)
    batch = tokenizer(list(PROMPTS), return_tensors="pt", padding=True)
    config = GenerationConfig(
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )

    def in_one_call() -> list[list[int]]:
        width = batch["input_ids"].shape[1]
        tokens = theirs.generate(**batch, generation_config=config)[:, width:]
        return [_ended(row, tokenizer.eos_token_id) for row in tokens.tolist()]

    def in_slices() -> list[list[int]]:
        asks = [Ask(encoding, Decoding(NEW_TOKENS)) for encoding in encodings]
        finished = {row: output for some in served.run(asks, None) for row, output in some}
        return [finished[row].raw.tolist() for row in range(len(asks))]

    def continuously() -> list[list[int]]:
        ids = [encoding.input_ids.tolist() for encoding in encodings]
        answers: Any = theirs.generate_batch(inputs=ids, generation_config=config, progress_bar=False)
        in_order = sorted(answers.values(), key=lambda answer: ids.index(list(answer.prompt_ids)))
        return [_ended(answer.generated_tokens, tokenizer.eos_token_id) for answer in in_order]

    expected = in_one_call()
    named = {"one call": in_one_call, "in slices": in_slices, "continuous batching": continuously}
    return [Way(name, *_timed(way, expected)) for name, way in named.items()]


def turns(folder: str, few_running: int) -> Turns:
    """Answers through the engine, when so many batches take turns."""
    served = load(folder, device="cpu")
    assert isinstance(served, Generator)
    live = Live(0, Composition(editors(), served.sites, served.device), ())
    engine = Engine(served, live, Metrics(), max_batch=32, fit_share=0.3, few_running=few_running)
    try:
        return asyncio.run(_taking_turns(engine, few_running))
    finally:
        engine.close()


async def _taking_turns(engine: Engine, few_running: int) -> Turns:
    encodings = engine.model.encode(PROMPTS)

    async def answered(encoding: Encoding, new_tokens: int) -> tuple[float, int]:
        began = time.perf_counter()
        (answer,) = await engine.answer([encoding], engine.live.bare(), decoding=Decoding(new_tokens))
        return time.perf_counter() - began, len(answer.output.raw)

    async def short_beside(long_ones: int) -> float:
        running = []
        for number in range(long_ones):
            running.append(asyncio.ensure_future(answered(encodings[number], LONG)))
            await asyncio.sleep(0.05)
        seconds, _ = await answered(encodings[-1], SHORT)
        await asyncio.gather(*running)
        return seconds

    await answered(encodings[0], SHORT)
    beside_one, beside_four = await short_beside(1), await short_beside(4)
    began = time.perf_counter()
    seconds, tokens = zip(*await _one_after_the_other(answered, encodings), strict=True)
    return Turns(
        few_running,
        1000 * beside_one,
        1000 * beside_four,
        1000 * sum(seconds) / len(seconds),
        1000 * max(seconds),
        sum(tokens) / (time.perf_counter() - began),
    )


async def _one_after_the_other(
    answered: Callable[[Encoding, int], Awaitable[tuple[float, int]]], encodings: Sequence[Encoding]
) -> list[tuple[float, int]]:
    """Requests that come at a steady pace, whether the former are answered or not."""
    running = []
    for number in range(ARRIVALS):
        running.append(asyncio.ensure_future(answered(encodings[number % len(encodings)], NEW_TOKENS)))
        await asyncio.sleep(EVERY_SECONDS)
    return await asyncio.gather(*running)


def _timed(way: Callable[[], list[list[int]]], expected: list[list[int]]) -> tuple[float, bool]:
    same = way() == expected
    began = time.perf_counter()
    way()
    return 1000 * (time.perf_counter() - began), same


def _ended(tokens: Sequence[int], end: int) -> list[int]:
    tokens = list(tokens)
    return tokens[: tokens.index(end)] if end in tokens else tokens


def show(found: Sequence[Way], taken: Sequence[Turns], console: Console) -> None:
    """Both experiments as tables."""
    table = Table(
        "way", "ms", "writes the same", title=f"{len(PROMPTS)} answers of {NEW_TOKENS} tokens", box=SIMPLE_HEAD
    )
    for way in found:
        table.add_row(way.name, f"{way.milliseconds:.0f}", "yes" if way.same else "no")
    console.print(table)
    measured = ("beside one, ms", "beside four, ms", "steady, mean ms", "worst ms", "tokens a second")
    table = Table("batches that take turns", *measured, title="Through the engine", box=SIMPLE_HEAD)
    for one in taken:
        _, *times = astuple(one)
        table.add_row(str(one.few_running), *(f"{value:.0f}" for value in times))
    console.print(table)
    console.print(
        f"beside: an answer of {SHORT} tokens while one, or four, of {LONG} are written; "
        f"steady: {ARRIVALS} requests for {NEW_TOKENS} tokens, one every {1000 * EVERY_SECONDS:.0f} ms"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or hub id of a causal model")
    parser.add_argument("--output", type=Path, help="folder for decoding.json")
    given = parser.parse_args()
    torch.manual_seed(0)
    found = ways(given.model)
    taken = [turns(given.model, few_running) for few_running in (1, 2, 4, 8)]
    if given.output is not None:
        given.output.mkdir(parents=True, exist_ok=True)
        kept = {"ways": [asdict(way) for way in found], "turns": [asdict(one) for one in taken]}
        (given.output / "decoding.json").write_text(json.dumps(kept, indent=2) + "\n")
    show(found, taken, Console(width=None if sys.stdout.isatty() else 120))


if __name__ == "__main__":
    main()
