"""What a verdict says of the guard is what whole runs of the model say, with edits and without."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.inputs import input_key
from app.model import Decoding
from app.settings import Settings
from tests.app.conftest import Caller, sentence, settings_in, started
from tests.deployed import LABELS, deploy

LENIENT = {"guard_required": 0.0, "guard_fires_allowed": 1.0, "edits_required": 0.0, "memory_from_traffic": False}
GUARDED = [sentence(number) for number in range(10, 70)]
REMEMBERED = [sentence(number) for number in range(70, 76)]
NEW_TOKENS = 6


def guarding(folder: Path, model: Path, lines: Sequence[dict[str, str]], **changes: Any) -> Settings:
    """A service that guards these lines, remembers a few texts, and lets everything through."""
    for name, each in (("guard", lines), ("memory", [{"input": text} for text in REMEMBERED])):
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in each))
    files = {"guard_file": folder / "guard", "memory_file": folder / "memory"}
    return settings_in(folder, model, new_tokens=NEW_TOKENS, **{**LENIENT, **files, **changes})


def gates(record: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {gate["name"]: gate for gate in record["verdict"]["gates"]}


def answers(client: TestClient, *texts: str, **options: Any) -> list[dict[str, Any]]:
    return Caller(client).predict(*texts, **options)


@dataclass(frozen=True)
class Seen:
    """One input of the guard in whole runs of a classifier: what it should get, and both answers."""

    text: str
    wanted: str
    was: dict[str, Any]
    now: dict[str, Any]

    @property
    def right(self) -> bool:
        return bool(self.was["label"] == self.wanted)

    @property
    def near_boundary(self) -> bool:
        first, second, *_ = sorted(self.was["scores"].values(), reverse=True)
        return bool(first - second < 0.05)

    @property
    def change(self) -> str | None:
        was, now = self.was["label"], self.now["label"]
        if self.right:
            return None if now == self.wanted else "right_to_wrong"
        if now == self.wanted:
            return "wrong_to_right"
        return None if now == was else "wrong_to_other_wrong"


def seen_plainly(client: TestClient, lines: Sequence[dict[str, str]], edited: Sequence[str]) -> list[Seen]:
    """The guard without the inputs that have an edit."""
    keys = {input_key(text) for text in edited}
    counted = [line for line in lines if input_key(line["input"]) not in keys]
    texts = [line["input"] for line in counted]
    bare, now = answers(client, *texts, edits="off"), answers(client, *texts)
    return [
        Seen(line["input"], line.get("target", was["label"]), was, new)
        for line, was, new in zip(counted, bare, now, strict=True)
    ]


def after(label: str, steps: int = 1) -> str:
    """Another label."""
    return LABELS[(LABELS.index(label) + steps) % len(LABELS)]


@dataclass(frozen=True)
class Given:
    """Lines of a guard, and edits, of which some certainly change some of them: words that the tokenizer does not know
    are all the same to the model.
    """

    lines: list[dict[str, str]]
    wrong: list[dict[str, str]]  # those among them that the unedited model gets wrong
    edits: dict[str, str]


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Given:
    """Inputs without a target, also such as are near a boundary; with the one that the model says; with another; and
    one that has an edit.
    """
    others = [f"{sentence(number)} unheard" for number in range(90)]
    with started(settings_in(tmp_path_factory.mktemp("bare"), tiny_model)) as client:
        said = dict(zip(others, answers(client, *others), strict=True))
        said |= dict(zip(GUARDED, answers(client, *GUARDED), strict=True))
        near = [text for text in others if Seen(text, "", said[text], said[text]).near_boundary]
        plain = [Caller(client).label(sentence(number)) for number in range(6)]
    labels = {text: each["label"] for text, each in said.items()}
    righted, moved = [text for text in others if text not in near][:2]
    wrong = [{"input": text, "target": after(labels[text], 1 + len(text) % 3)} for text in GUARDED[35:]]
    wrong += [{"input": text, "target": after(labels[text])} for text in (righted, moved)]
    lines = [{"input": text} for text in (*GUARDED[:25], *near, f" {sentence(1)}  ")]
    lines += [{"input": text, "target": labels[text]} for text in GUARDED[25:35]]
    edits = {text: after(labels[text], 2 if text == moved else 1) for text in (near[0], righted, moved)}
    edits = {text.replace("unheard", "unseen"): target for text, target in edits.items()}
    edits |= {sentence(number): after(label) for number, label in enumerate(plain)}
    return Given([*lines, *wrong], wrong, edits)


def made(client: TestClient, edits: dict[str, str]) -> Iterator[dict[str, Any]]:
    """The edits one after the other, by both editors, as far as they are needed."""
    for number, (text, target) in enumerate(edits.items()):
        if Caller(client).label(text) != target:
            yield Caller(client).edit(text, target, editor=("grace", "transformer-patcher")[number % 2])


def test_a_classifiers_guard_is_seen_as_whole_runs_show_it(tmp_path: Path, tiny_model: Path, given: Given) -> None:
    met: Counter[str] = Counter()
    lines = given.lines
    with started(guarding(tmp_path, tiny_model, lines)) as client:
        edited = []
        for record in made(client, given.edits):
            edited.append(record["input"])
            seen = seen_plainly(client, lines, edited)
            counts = Counter(each.change for each in seen)
            guard, gate = record["verdict"]["guard"], gates(record)["guard_unchanged"]
            assert (guard["number"], guard["inputs"]) == (0, len(lines))
            assert guard["right"] == sum(each.right for each in seen)
            for name in ("right_to_wrong", "wrong_to_right", "wrong_to_other_wrong"):
                assert guard["consistency"][name] == counts[name], name
                met[name] += counts[name]
            changed = {each.text: each for each in seen if each.change == "right_to_wrong"}
            assert {failure["input"]: (failure["was"], failure["now"]) for failure in gate["failures"]} == {
                text: (each.wanted, each.now["label"]) for text, each in changed.items()
            }
            assert gate["measured"] == pytest.approx(1 - len(changed) / guard["right"])
            near = [each for each in seen if each.right and each.near_boundary]
            moved = [each.text for each in near if each.text in changed]
            assert guard["near_boundary"]["inputs"] == len(near)
            assert guard["near_boundary"]["changed"] == len(moved)
            assert [failure["input"] for failure in guard["near_boundary"]["failures"]] == moved
            met["near boundary, changed"] += len(moved)
            was, now = ([each[0]["scores"][each[1]] for each in pairs] for pairs in scores_of(seen))
            assert guard["consistency"]["pearson"] == pytest.approx(statistics.correlation(was, now), abs=1e-3)
    assert len(met) == 4
    assert min(met.values()) > 0, f"something never happened: {met}"


def scores_of(seen: Sequence[Seen]) -> tuple[list[tuple[dict[str, Any], str]], list[tuple[dict[str, Any], str]]]:
    return [(each.was, each.wanted) for each in seen], [(each.now, each.wanted) for each in seen]


def test_what_the_model_got_wrong_before_any_edit_fails_no_gate(tmp_path: Path, tiny_model: Path, given: Given) -> None:
    """A service that lets nothing of the guard change, whose guard the unedited model gets all wrong."""
    strict = {"guard_required": 1.0, "judge_rounds": 1}
    with started(guarding(tmp_path, tiny_model, given.wrong, **strict)) as client:
        for record in made(client, given.edits):
            guard, gate = record["verdict"]["guard"], gates(record)["guard_unchanged"]
            assert (guard["right"], gate["measured"], gate["failures"]) == (0, 1.0, [])
        assert guard["consistency"]["wrong_to_right"]
        assert guard["consistency"]["wrong_to_other_wrong"]


def test_a_guard_input_equal_to_an_edited_one_may_change(tmp_path: Path, tiny_model: Path) -> None:
    """The very same input, and one that differs in white space and in the form of its letters."""
    guard = [{"input": sentence(1)}, {"input": f"\t{sentence(1).replace('w', 'ｗ')} "}, *({"input": REMEMBERED[0]},)]
    with started(guarding(tmp_path, tiny_model, guard, guard_required=1.0, guard_fires_allowed=0.0)) as client:
        record = Caller(client).edit(sentence(1))
        assert record["verdict"]["guard"]["right"] == 1
        later = Caller(client).edit(sentence(5))
        assert later["verdict"]["guard"]["consistency"]["right_to_wrong"] == 0
        assert later["verdict"]["guard"]["right"] == 1


def test_a_removal_is_seen_as_whole_runs_show_it(tmp_path: Path, tiny_model: Path, given: Given) -> None:
    with started(guarding(tmp_path, tiny_model, given.lines)) as client:
        edits = list(made(client, given.edits))
        verdict = client.delete(f"/edits/{edits[-1]['id']}").json()["verdict"]
        counts = Counter(each.change for each in seen_plainly(client, given.lines, [edit["input"] for edit in edits]))
        told = verdict["guard"]["consistency"]
        assert min(counts.values()) > 0
        assert {name: told[name] for name in told if name != "pearson"} == {
            name: counts[name] for name in ("right_to_wrong", "wrong_to_right", "wrong_to_other_wrong")
        }


def written(client: TestClient, texts: Sequence[str], *, bare: bool) -> list[list[int]]:
    """The tokens that a model writes by itself, its end among them."""
    engine, portal = client.app.state.service.parts.engine, client.portal  # type: ignore[attr-defined]
    view = engine.live.bare() if bare else engine.live.view()

    async def answered() -> list[list[int]]:
        asked = await engine.answer(engine.model.encode(texts), view, decoding=Decoding(NEW_TOKENS))
        return [engine.model.answered(each.output).tolist() for each in asked]

    assert portal is not None
    return list(portal.call(answered))


def wrong_at(wanted: Sequence[int], written: Sequence[int]) -> tuple[int, int] | None:
    """The first position at which another token is written than is wanted, and which; None if there is none."""
    places = zip(wanted, written, strict=False)
    return next(((place, token) for place, (due, token) in enumerate(places) if due != token), None)


@pytest.mark.parametrize("family", ["Bart", "Llama"])
def test_a_writing_models_guard_is_seen_as_its_own_free_writing_shows_it(tmp_path: Path, family: str) -> None:
    """Words that the tokenizer does not know are all the same to the model: what an edit does to one it does to all."""
    lines = [{"input": text} for text in (*GUARDED[:20], "w5 w6 unheard")]
    lines += [{"input": text, "target": "w7 w50"} for text in (*GUARDED[20:30], "w1 w2 unheard")]
    lines += [{"input": "w3 unheard", "target": "w8 w50"}]
    texts, met = [line["input"] for line in lines], Counter[str]()
    with started(guarding(tmp_path, deploy(tmp_path / "model", family=family), lines)) as client:
        before = written(client, texts, bare=True)
        wanted = [due(client, line, said) for line, said in zip(lines, before, strict=True)]
        was = [wrong_at(*pair) for pair in zip(wanted, before, strict=True)]
        for text, target in {"w1 w2 unseen": "w24", "w3 unseen": "w8 w50", "w5 w6 unseen": "w25 w9"}.items():
            record = Caller(client).edit(text, target)
            now = [wrong_at(*pair) for pair in zip(wanted, written(client, texts, bare=False), strict=True)]
            guard, gate = record["verdict"]["guard"], gates(record)["guard_unchanged"]
            both = list(zip(was, now, strict=True))
            changed = [text for text, (old, new) in zip(texts, both, strict=True) if old is None and new is not None]
            counts = {
                "right_to_wrong": len(changed),
                "wrong_to_right": sum(old is not None and new is None for old, new in both),
                "wrong_to_other_wrong": sum(None not in (old, new) and old != new for old, new in both),
            }
            assert {name: guard["consistency"][name] for name in counts} == counts
            assert guard["right"] == was.count(None)
            assert [failure["input"] for failure in gate["failures"]] == changed
            assert gate["measured"] == pytest.approx(1 - len(changed) / was.count(None))
            met.update(counts)
        shown = zip(texts, answers(client, *texts), answers(client, *texts, edits="off"), was, strict=True)
        assert {text for text, new, old, wrong in shown if new["text"] != old["text"] and wrong is None} <= set(changed)
    assert min(met.values()) > 0, f"something never happened: {met}"


def due(client: TestClient, line: dict[str, str], said: list[int]) -> list[int]:
    """The tokens that a line of the guard should get."""
    model = client.app.state.service.parts.engine.model  # type: ignore[attr-defined]
    if "target" not in line:
        return said
    tokens: list[int] = model.wanted(model.encode([line["input"]])[0], line["target"]).tolist()
    return tokens
