"""What enters the last down-projection, from queries alone: equal to the full model's, on every family."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from editors.errors import UnsupportedModel
from editors.features import last_layer
from editors.join import Join, Pass
from tests.editors.editing import anew, tiny
from tests.editors.tiny import FAMILIES, Tiny, batch, build, texts

PROBES = texts(10, seed=4)
CHANGED_AFTERWARDS = "gemma2-causal"
"""Its layers norm what the down-projection gives."""
TUNABLE = [family for family in FAMILIES if family != CHANGED_AFTERWARDS]


def fed_to_the_down_projection(model: Tiny, answers: list[list[int]]) -> tuple[Tensor, Tensor]:
    """In one pass of the full model, at each position that the head reads: the query, and what follows from it."""
    layer = last_layer(model.join.sites)
    assert layer is not None
    fed, seen = model.fed(PROBES, answers), list[Tensor]()
    hook = model.model.get_submodule(layer.down).register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad(), model.join.during(Pass(fed.rows, fed.columns)) as call:
        model.model(**fed.inputs)
    hook.remove()
    assert call.queries is not None
    tokens = fed.inputs.get("decoder_input_ids", fed.inputs["input_ids"])
    return call.queries, seen[0].reshape(*tokens.shape, -1)[fed.rows, fed.columns]


@pytest.mark.parametrize("family", TUNABLE)
def test_features_of_captured_queries_equal_what_the_full_model_feeds_its_down_projection(family: str) -> None:
    model = tiny(family)
    queries, features = fed_to_the_down_projection(model, model.answer(PROBES).tokens)
    torch.testing.assert_close(model.join.features(queries), features, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama-causal", "t5-gated-seq2seq"])
def test_features_depend_on_the_query_as_the_finite_difference_says(family: str) -> None:
    """So a value at an inner layer can be fitted while weights are tuned."""
    model = anew(family)
    model.model.double()
    queries = torch.randn(3, model.join.site.hidden, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.autograd.gradcheck(model.join.features, queries.requires_grad_())


@pytest.mark.parametrize("family", ["bert", "llama", "opt-causal", "bart-seq2seq"])
def test_features_asked_for_in_the_midst_of_a_pass_leave_it_as_it_was(family: str) -> None:
    model = tiny(family)
    fed = model.answer(PROBES).tokens
    bare = model.forward(PROBES, fed)

    def transform(queries: Tensor, residuals: Tensor) -> Tensor:
        model.join.features(queries.flip(0))
        return residuals.clone()

    meanwhile = model.forward(PROBES, fed, transform)
    for name in ("queries", "residuals", "logits"):
        assert torch.equal(getattr(meanwhile, name), getattr(bare, name))


@pytest.mark.parametrize("family", ["bert", "llama-causal"])
def test_features_leave_no_hook_behind(family: str) -> None:
    model = anew(family)

    def hooks() -> int:
        return sum(len(each._forward_pre_hooks) + len(each._forward_hooks) for each in model.model.modules())

    before = hooks()
    model.join.features(torch.ones(2, model.join.site.hidden))
    assert hooks() == before


def test_a_bias_is_tuned_where_there_is_one() -> None:
    biased = {family: tiny(family).join.features.biased for family in ("bert", "gpt2", "llama", "t5-seq2seq")}
    assert biased == {"bert": True, "gpt2": True, "llama": False, "t5-seq2seq": False}


def test_a_model_that_norms_what_the_projection_gives_is_refused_when_features_are_asked_for() -> None:
    join = tiny(CHANGED_AFTERWARDS).join
    with pytest.raises(UnsupportedModel, match=r"Gemma2ForCausalLM does more than add what .*down_proj gives"):
        join.features(torch.zeros(1, join.site.hidden))


class Mixing(nn.Module):
    """A feed-forward layer in which each token sees those before it."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, hidden_states: Tensor) -> Any:
        return self.inner(hidden_states).cumsum(1)


def test_a_model_whose_features_need_other_tokens_is_refused_when_features_are_asked_for() -> None:
    model: Any = build("bert").eval()
    model.bert.encoder.layer[-1].intermediate = Mixing(model.bert.encoder.layer[-1].intermediate)
    join = Join.open(model, batch([[5, 6, 7], [8, 9, 10, 11, 12]]))
    with pytest.raises(UnsupportedModel, match=r"does not follow from what .*intermediate"):
        join.features(torch.zeros(1, join.site.hidden))
