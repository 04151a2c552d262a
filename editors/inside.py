"""The texts of one edit inside a model, at one layer site: their keys, and the network from there on.

Activations before the layer where values are put are computed once. Trying values runs the model's own forward on a
shell in which the layers before have been replaced by what they gave.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from editors.join import Join, Pass, Transform
from editors.layers import LayerSite
from editors.shell import Recorded, with_layers
from editors.visit import Found, Look, Places, Visit, column_of


@dataclass(frozen=True, slots=True)
class Fed:
    """A batch of texts with the answers that they are fed.

    inputs: what the model's forward takes. given: (batch, width) bool, the columns of the stack that reads the input
    which are tokens of it. rows, columns: (n,) int64 each, the positions that the head reads, text by text. labels:
    (n,) int64, what it should say there.
    """

    inputs: dict[str, Tensor]
    given: Tensor
    rows: Tensor
    columns: Tensor
    labels: Tensor


class Inside:
    """Texts at one layer site of a model, and what the model would answer if values stood there."""

    def __init__(self, join: Join, fed: Fed, site: LayerSite, transform: Transform | None = None) -> None:
        """Run the model once. transform: what other patches do at the join, while values are tried."""
        self._join, self._fed, self._site, self._transform = join, fed, site, transform
        recorded: dict[str, Any] = {}
        seen: list[Tensor] = []
        visit = Visit(fed.given, [Look(site, partial(_take, seen))])
        before = _layers_before(join.model, site)
        with ExitStack() as stack, torch.no_grad():
            for name in before:
                hook = join.model.get_submodule(name).register_forward_hook(partial(_record, recorded, name))
                stack.callback(hook.remove)
            self._run(join.model, visit)
        self.labels, self.owners = fed.labels, fed.rows
        """(n,) each: what the head should say at each position of the answers, and which text that is of."""
        self.keys = seen[0]
        """(texts, hidden): of the input first, then of its rephrases."""
        self._outputs = visit.outputs[site.writes.down][0]
        self._suffix = join.model
        for name in {site.reads.stack, site.writes.stack}:
            layers = join.model.get_submodule(name)
            assert isinstance(layers, nn.ModuleList)
            numbered = [(f"{name}.{number}", layer) for number, layer in enumerate(layers)]
            kept = [Recorded(layer, recorded[each]) if each in recorded else layer for each, layer in numbered]
            self._suffix = with_layers(self._suffix, name, kept)

    def own(self, reach: Places) -> Tensor:
        """What the layer gives by itself to the input, where values would stand: (values, hidden).

        One at the key's token, or, where each position of the answer has its own, as many as these.
        """
        if reach is Places.EACH:
            return self._outputs[self._fed.columns[self._fed.rows == 0]]
        first = self._fed.given[:1]
        return self._outputs[:1] if self._site.apart else self._outputs[column_of(first, self._site.own)]

    def logits(self, values: Tensor, reach: Places) -> Tensor:
        """What the head says at each position of the answers, if the values stand in every text.

        (values, hidden) -> (n, labels), differentiable in the values.
        """
        texts = torch.arange(len(self._fed.given), device=values.device)
        nobody, counts = torch.zeros_like(texts), torch.full_like(texts, len(values))
        places = torch.full_like(texts, int(reach))
        found = Found(texts, nobody, nobody.float(), values.expand(len(texts), -1, -1), counts, places)
        return self._run(self._suffix, Visit(self._fed.given, placed={self._site: found}))

    def _run(self, model: nn.Module, visit: Visit) -> Tensor:
        fed = self._fed
        with self._join.during(Pass(fed.rows, fed.columns, self._transform), visit):
            logits: Tensor = model(**fed.inputs, **({"use_cache": False} if self._writes else {})).logits
        return logits[fed.rows, fed.columns] if self._writes else logits

    @property
    def _writes(self) -> bool:
        return self._join.site.position == "every"


def _layers_before(model: nn.Module, site: LayerSite) -> list[str]:
    """The layers that run before the one where values are put; of an encoder-decoder's decoder all of the encoder."""
    encoder = model.get_submodule(site.reads.stack)
    assert isinstance(encoder, nn.ModuleList)
    reading = [f"{site.reads.stack}.{number}" for number in range(len(encoder) if site.apart else 0)]
    return [*reading, *(f"{site.writes.stack}.{number}" for number in range(site.writes.number))]


def _take(seen: list[Tensor], keys: Tensor) -> None:
    seen.append(keys)


def _record(recorded: dict[str, Any], name: str, module: nn.Module, args: Any, output: Any) -> None:
    recorded[name] = output
