"""A model with its site opened: what forward passes see and change there, and the short computation behind it.

Which overlay applies belongs to the call: `Join.during` sets it in a context variable, and the hooks do nothing outside
of it. `Join.readout` runs the model's own forward with a stand-in for its stack of layers, so no head is written twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from editors.errors import UnsupportedModel
from editors.features import Features
from editors.layers import Layer, Sites, find_sites_of_layers
from editors.shell import StandIn, with_layers
from editors.site import Site, find_sites, kind, modules_after
from editors.visit import Layers, Visit

Transform = Callable[[Tensor, Tensor], Tensor]
"""From (queries, residuals), both (n, hidden), to the residuals that the norm shall receive."""

ENOUGH_ROWS = 4
"""A product of fewer rows is computed by other routines, whose last bits are others (MKL, oneDNN)."""


@dataclass(slots=True)
class Pass:
    """What forward passes do at the site: where they look, what they change there, and what the last one saw."""

    rows: Tensor  # (n,) int64, of the batch
    columns: Tensor  # (n,) int64, the position in each of these rows
    transform: Transform | None = None
    queries: Tensor | None = None  # (n, hidden) after the pass
    residuals: Tensor | None = None  # (n, hidden), before the transform
    ends: bool = False
    """Whether the pass ends at the site, by `Ended`: for whoever computes the rest by `Join.readout`."""
    narrow: bool = False
    """Whether the last feed-forward layer is computed at these positions alone, of one row. Of passes that end."""
    width: int = 0  # of that row

    @classmethod
    def at(cls, columns: Tensor, transform: Transform | None = None) -> Pass:
        """One position in every row of the batch: (batch,). Position -1 is the last, however many there are."""
        return cls(torch.arange(len(columns), device=columns.device), columns, transform)

    @classmethod
    def where(cls, mask: Tensor, transform: Transform | None = None) -> Pass:
        """The positions of a mask, row by row: (batch, tokens) bool."""
        rows, columns = mask.nonzero(as_tuple=True)
        return cls(rows, columns, transform)


class Ended(Exception):
    """A pass has given all that was wanted of it."""


class Join:
    """A model with its site opened, once, when it is loaded. The model's parameters are never touched."""

    def __init__(self, model: nn.Module, site: Site, inputs: Mapping[str, Tensor]) -> None:
        self.site = site
        self.sites: Sites = find_sites_of_layers(model, inputs, site)
        self.model = model
        self._layers = Layers(model)
        self._passes: ContextVar[Pass | None] = ContextVar("pass", default=None)
        layers = model.get_submodule(site.stack)
        assert isinstance(layers, nn.ModuleList)
        self._norm = model.get_submodule(site.joins)
        self._entrance = _Entrance(layers[-1], self._norm if site.post_norm else nn.Identity(), site.layer_returns)
        self._tail = with_layers(model, site.stack, [self._entrance])
        self._head: nn.Module | None = None  # where norm and this are all there is
        self._two_sided = "decoder_input_ids" in inputs
        self.device = next(model.parameters()).device
        self.features = Features(model, self.sites, inputs, self._aside)
        self._hooks = [
            model.get_submodule(site.reads).register_forward_pre_hook(self._read),
            self._norm.register_forward_pre_hook(self._join),
        ]
        self.last: Layer | None = next((each for each in reversed(self.sites.layers) if each.up == site.reads), None)
        """The last feed-forward layer, where it is of a known kind."""
        if self.last is not None:
            self._hooks.append(model.get_submodule(self.last.down).register_forward_hook(self._widen))

    @classmethod
    @torch.no_grad()
    def open(cls, model: nn.Module, inputs: Mapping[str, Tensor]) -> Join:
        """Find the site of `model` and prove on `inputs` that norm and head alone give its logits.

        inputs: as `find_sites` takes them. Raises UnsupportedModel.
        """
        refused: UnsupportedModel | None = None
        for site in find_sites(model, inputs):
            join = cls(model, site, inputs)
            try:
                join._prove(model, inputs)
            except UnsupportedModel as error:
                join.close()
                refused = refused or error
            else:
                return join
        assert refused is not None
        raise refused

    def close(self) -> None:
        """Let go of the model: it runs as if it had never been opened."""
        for hook in self._hooks:
            hook.remove()
        self._layers.close()

    def _prove(self, model: nn.Module, inputs: Mapping[str, Tensor]) -> None:
        call = self._everywhere(inputs)
        with self.during(call):
            logits = model(**inputs).logits
        if self.site.position == "every":
            logits = logits[call.rows, call.columns]
        assert call.residuals is not None
        try:
            short = self.readout(call.residuals)
        except (TypeError, ValueError, RuntimeError, IndexError, AttributeError, KeyError) as error:
            raise UnsupportedModel(f"{kind(model)} cannot be run from {self.site.joins} on: {error}") from error
        if not torch.allclose(short, logits, rtol=1e-4, atol=1e-5):
            raise UnsupportedModel(
                f"{kind(model)} does more than its norm and its head after {self.site.joins}; "
                "a patch at its last feed-forward layer could not be judged exactly."
            )
        self._head = self._only_head(model, inputs, call.residuals, short)

    def _only_head(
        self, model: nn.Module, inputs: Mapping[str, Tensor], residuals: Tensor, logits: Tensor
    ) -> nn.Module | None:
        """What makes logits of what the norm gives, if modules one after the other do; saves the model's detours."""
        head = nn.Sequential(*modules_after(model, inputs, self.site.joins))
        try:
            alone = _of_one_token(head(self._norm(enough(residuals).unsqueeze(1))))
        except (TypeError, ValueError, RuntimeError, IndexError, AttributeError, KeyError):
            return None  # one of them takes more than what the one before it gives
        return head if isinstance(alone, Tensor) and torch.equal(alone[: len(logits)], logits) else None

    def _everywhere(self, inputs: Mapping[str, Tensor]) -> Pass:
        """All positions that the head reads."""
        if self.site.position == "every":
            tokens = inputs.get("decoder_input_ids")
            return Pass.where(inputs["attention_mask"].bool() if tokens is None else torch.ones_like(tokens).bool())
        return Pass.at(self.positions(inputs["attention_mask"]))

    @contextmanager
    def during(self, call: Pass, visit: Visit | None = None) -> Iterator[Pass]:
        """Let `call` see, and transform, what the forward passes inside the block compute; all of one batch.

        visit: what happens to the batch at inner layers.
        """
        token = self._passes.set(call)
        try:
            with self._layers.during(visit):
                yield call
        finally:
            self._passes.reset(token)

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """Let no call, and no visit, see the forward passes inside the block."""
        token = self._passes.set(None)
        try:
            with self._layers.during(None):
                yield
        finally:
            self._passes.reset(token)

    def positions(self, attention_mask: Tensor) -> Tensor:
        """The position that a classifier's head reads in each row: (batch, tokens) -> (batch,)."""
        if self.site.position == "first":
            return torch.zeros(len(attention_mask), dtype=torch.int64, device=attention_mask.device)
        tokens = attention_mask.shape[-1]
        return tokens - 1 - attention_mask.flip(-1).argmax(-1)

    def readout(self, residuals: Tensor) -> Tensor:
        """Logits from residuals: the norm and the head alone, (n, hidden) -> (n, labels)."""
        return self._readout(enough(residuals))[: len(residuals)]

    def _readout(self, residuals: Tensor) -> Tensor:
        entering = residuals.unsqueeze(1)  # a batch of texts of one token
        if self._head is not None:
            alone: Tensor = _of_one_token(self._head(self._norm(entering)))
            return alone
        ones = torch.ones(entering.shape[:2], dtype=torch.int64, device=self.device)
        inputs: dict[str, Any] = {"input_ids": torch.zeros_like(ones), "attention_mask": ones}
        if self._two_sided:
            inputs["decoder_input_ids"] = inputs.pop("input_ids")
            inputs["encoder_outputs"] = (torch.zeros_like(entering),)
        with self._entrance.admitting(entering):
            logits = self._tail(**inputs).logits
        return logits.squeeze(1) if self.site.position == "every" else logits  # type: ignore[no-any-return]

    def _read(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        call = self._passes.get()
        if call is None:
            return None
        if not call.narrow:
            call.queries = args[0]
            return None
        call.width = args[0].shape[1]
        call.queries = args[0][call.rows, call.columns]
        return (call.queries.unsqueeze(0), *args[1:])

    def _widen(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        """What the narrowed layer gave, in its places among zeros that nobody reads."""
        call = self._passes.get()
        if call is None or not call.narrow:
            return None
        wide = output.new_zeros(1, call.width, output.shape[-1])
        wide[call.rows, call.columns] = output[0]
        return wide

    def _join(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        call = self._passes.get()
        if call is None:
            return None
        assert call.queries is not None, "the norm ran before the feed-forward layer"
        if not call.narrow:
            # Some models (OPT) flatten batch and tokens in front of their feed-forward layers.
            call.queries = call.queries.reshape(args[0].shape)[call.rows, call.columns]
        call.residuals = args[0][call.rows, call.columns]
        if call.ends:
            raise Ended
        if call.transform is None:
            return None
        patched = call.transform(call.queries, call.residuals)
        if patched is call.residuals:
            return None
        entering = args[0].clone()
        entering[call.rows, call.columns] = patched.to(entering.dtype)
        return (entering, *args[1:])


def enough(rows: Tensor) -> Tensor:
    """The rows, the last one again until there are so many that each is computed as it would be among any number."""
    missing = ENOUGH_ROWS - len(rows) if len(rows) else 0
    return torch.cat([rows, rows[-1:].expand(missing, *rows.shape[1:])]) if missing > 0 else rows


def _of_one_token(logits: Any) -> Any:
    """The logits of texts of one token, without a dimension for it: (n, labels)."""
    return logits.squeeze(1) if isinstance(logits, Tensor) and logits.dim() == 3 else logits


class _Entrance(StandIn):
    """Stands in for the whole stack of layers: whatever comes in, the admitted residuals go out, normed."""

    def __init__(self, layer: nn.Module, norm: nn.Module, returns: int) -> None:
        super().__init__(layer)
        self.norm = norm
        self.returns = returns
        self._residuals: ContextVar[Tensor] = ContextVar("residuals")

    @contextmanager
    def admitting(self, residuals: Tensor) -> Iterator[None]:
        token = self._residuals.set(residuals)
        try:
            yield
        finally:
            self._residuals.reset(token)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor | tuple[Tensor | None, ...]:
        hidden_states = self.norm(self._residuals.get())
        if self.returns == 0:
            return hidden_states  # type: ignore[no-any-return]
        return (hidden_states, *(None,) * (self.returns - 1))
