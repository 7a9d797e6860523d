"""The one learning object: an associative memory that is written by gradient steps on its own objective."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor

from nestling.core.apply import Weights, linear, tape
from nestling.core.architecture import Architecture
from nestling.core.gates import Gates
from nestling.core.objective import L2, Objective
from nestling.core.omega import Omega, Pairs
from nestling.core.retention import Decay, Retention, Returning
from nestling.core.rule import Descend, Rule, RuleState
from nestling.errors import NestlingError
from nestling.tree import leaves, state
from nestling.tree import map as tree_map


@state
class MemoryState:
    """What a memory knows now."""

    dual: Weights
    """The running weights, in the space of the retention's mirror map."""
    anchor: Weights
    """The weights at the last commit, where surprise is measured."""
    rule: dict[str, RuleState]
    """What the rule remembers, for each weight."""
    phase: Tensor
    """Writes since the last commit (int64)."""
    origin: Weights = field(default_factory=dict)
    """The weights where the memory began, for ``Returning``; the dual counts from there."""
    objective: Any = ()
    """What the objective remembers: the pairs of a window, a running threshold."""


@state
class Surprise:
    """The gradient of the objective at the anchor, as a pair for each weight: ∂ℓ/∂W = cotangent ⊗ input."""

    loss: Tensor
    """ℓ(M(k), v)"""
    cotangents: Weights
    """∂ℓ/∂(W x), for each weight W."""
    inputs: Weights
    """x, for each weight W."""

    def gradient(self, name: str) -> Tensor:
        """∂ℓ/∂W for one weight, (..., out, in)."""
        return self.cotangents[name][..., :, None] * self.inputs[name][..., None, :]

    def sum(self, name: str) -> Tensor:
        """Σ ∂ℓ/∂W over examples that share W, (out, in): a product of matrices, where ``gradient`` has one for each."""
        return self.cotangents[name].mT @ self.inputs[name]


@dataclass(frozen=True)
class Memory:
    """An associative memory (NL definition 1): the four choices of MIRAS as one value, one example at a time.

    ``write`` is one step of the rule on ℓ(M(W, k), v), with surprise taken at the anchor, the weights at the last commit::

        Aₜ = decay(Aₜ₋₁) + rule(∇ℓ(W_anchor; kₜ, vₜ)),   Wₜ = primal(Aₜ)

    ``period`` is the number of writes between commits (Titans' chunk b, Hope's C): it changes the answer, where a kernel's
    block size never does. ``period=inf`` with ``read_at="commit"`` is a memory that never takes in what is written.
    ``read_at="commit"`` reads the anchor (Hope eq. 90) instead of the running weights (Titans eq. 15).

    >>> from nestling.core import Matrix
    >>> memory = Memory(Matrix())
    >>> state = memory.init({"w1": torch.zeros(2, 2)})
    >>> key, value = torch.tensor([1.0, 0.0]), torch.tensor([3.0, 4.0])
    >>> state = memory.write(state, key, value, Gates(lr=1.0))
    >>> memory.read(state, key)
    tensor([3., 4.])
    """

    architecture: Architecture
    objective: Objective = L2()
    retention: Retention = Decay()
    rule: Rule = Descend()
    period: float = 1
    read_at: Literal["current", "commit"] = "current"

    def __post_init__(self) -> None:
        if not (self.period >= 1 and (self.period == float("inf") or self.period % 1 == 0)):
            raise NestlingError(f"period is a whole number of writes ≥ 1 or inf, got {self.period}.")
        if self.read_at not in ("current", "commit"):
            raise NestlingError(f"read_at is 'current' or 'commit', got {self.read_at!r}.")

    def init(self, weights: Weights) -> MemoryState:
        """The state of a memory that starts at ``weights``."""
        returning = isinstance(self.retention, Returning)
        dual = {
            name: torch.zeros_like(weight) if returning else self.retention.dual(weight)
            for name, weight in weights.items()
        }
        phase = torch.zeros((), dtype=torch.int64, device=next(iter(weights.values())).device)
        rule = {name: self.rule.init(weight) for name, weight in dual.items()}
        origin = dict(weights) if returning else {}
        return MemoryState(
            dual, dict(weights), rule, phase, origin, self.objective.init(lambda: self._example(weights))
        )

    def read(self, state: MemoryState, query: Tensor) -> Tensor:
        """Y = M(W, q): ``query`` (keys,) -> (values,). Changes nothing."""
        return self.architecture(linear(self.running(state)), query)

    def running(self, state: MemoryState) -> Weights:
        """The weights that are read."""
        if self.read_at == "commit":
            return state.anchor
        if isinstance(self.retention, Returning):
            return self.primal(state.dual, state.origin)
        return {name: self.retention.running(dual, state.anchor[name]) for name, dual in state.dual.items()}

    def surprise(self, state: MemoryState, key: Tensor, value: Tensor, gates: Gates) -> Surprise:
        """∇ℓ(W_anchor; k, v), with ``key`` (keys,) and ``value`` (values,), or (n, keys) and (n, values)."""
        threshold = self.objective.bound(state.objective, gates.threshold)
        return surprise(self.architecture, self.objective, self._seen(state, gates), key, value, threshold)

    def loss(self, state: MemoryState, key: Tensor, value: Tensor, gates: Gates) -> Tensor:
        """ℓ(M(W_anchor, k), v): how surprising a pair is, whether it is written or not."""
        prediction = self.architecture(linear(self._seen(state, gates)), key)
        return self.objective.raw()(prediction, value, gates.threshold)

    def write(self, state: MemoryState, key: Tensor, value: Tensor, gates: Gates) -> MemoryState:
        """One step of the rule, after a commit where the period is full.

        ``key`` is (keys,) and ``value`` (values,). With a dimension before, (n, keys) and (n, values), it is still one step, on
        the sum of the objective over n examples.
        """
        state = self.commit(state)
        pairs = self._window(state, key, value, gates)
        seen = self.surprise(state, key, value, gates) if pairs is None else self._shared(state, pairs, gates)
        # A memory that never commits has no period that could begin.
        first = (state.phase == 0) & (self.period != math.inf)
        dual, anchor, rule = {}, {}, {}
        for name, before in state.dual.items():
            gradient = seen.gradient(name) if seen.loss.dim() == 0 else seen.sum(name)
            update, rule[name] = self.rule.update(gradient, state.rule[name], gates.of(name))
            inputs = seen.inputs[name] if pairs is None else seen.inputs[name][-1]
            dual[name] = self.retention.of(name).write(before, update, gates.of(name), inputs, first)
            anchor[name] = self.retention.anchored(state.anchor[name], dual[name], first)
        held = state.objective
        if leaves(held):
            held = self.objective.learn(held, self.loss(state, key, value, gates).reshape(-1), None)
        if pairs is not None:
            held = (tree_map(lambda each: each[1:], pairs), held[1])
        return MemoryState(dual, anchor, rule, state.phase + 1, state.origin, held)

    def _seen(self, state: MemoryState, gates: Gates) -> Weights:
        return {name: self.retention.seen(weight, gates.of(name)) for name, weight in state.anchor.items()}

    def _example(self, weights: Weights) -> tuple[Tensor, Tensor]:
        """A key and a value, for their shapes."""
        key = weights["w1"].new_zeros(weights["w1"].shape[-1])
        return key, self.architecture(linear(weights), key)

    def _window(self, state: MemoryState, key: Tensor, value: Tensor, gates: Gates) -> Pairs | None:
        """The pairs that ``Omega`` minimises over, the present one last; None without a window."""
        if not isinstance(self.objective, Omega):
            return None
        if key.dim() > 1:
            raise NestlingError(f"a memory with a window is written one pair at a time, got keys {tuple(key.shape)}.")
        largest = torch.finfo(key.dtype).max
        share, threshold = (
            torch.as_tensor(each, dtype=key.dtype, device=key.device) for each in (gates.share, gates.threshold)
        )
        now = Pairs(key[None], value[None], share.expand(1), threshold.clamp(max=largest).expand(1))
        return state.objective[0].then(now)

    def _shared(self, state: MemoryState, pairs: Pairs, gates: Gates) -> Surprise:
        """γᵢ∇ℓ(W_anchor; kᵢ, vᵢ) for each pair i of the window."""
        threshold = torch.as_tensor(self.objective.bound(state.objective, pairs.threshold))[..., None]
        found = surprise(self.architecture, self.objective, self._seen(state, gates), pairs.key, pairs.value, threshold)
        shared = {name: pairs.share[:, None] * each for name, each in found.cotangents.items()}
        return Surprise(found.loss, shared, found.inputs)

    def commit(self, state: MemoryState) -> MemoryState:
        """Move the anchor to the running weights where the period is full.

        The next write does it, not the one that fills the period: all tokens of a period see the same anchor.
        """
        due = state.phase >= self.period
        now = self.primal(state.dual, state.origin)
        moved = {name: torch.where(due, primal, state.anchor[name]) for name, primal in now.items()}
        held = tree_map(
            lambda new, old: torch.where(due, new, old), self.objective.commit(state.objective), state.objective
        )
        return MemoryState(state.dual, moved, state.rule, torch.where(due, 0, state.phase), state.origin, held)

    def primal(self, dual: Weights, origin: Mapping[str, Tensor] = MappingProxyType({})) -> Weights:
        """The weights that are read, from the accumulated ones (and, for ``Returning``, from where they began)."""
        read = {name: self.retention.primal(weight) for name, weight in dual.items()}
        return {name: weight + origin[name] if name in origin else weight for name, weight in read.items()}


def surprise(
    architecture: Architecture,
    objective: Objective,
    weights: Weights,
    key: Tensor,
    value: Tensor,
    threshold: Tensor | float,
) -> Surprise:
    """∇ℓ(M(W, k), v) by W as (cotangent, input) pairs: the objective is differentiated by a nudge ε on each W x.

    For one example, or for many that share ``weights`` when a dimension is put before the last.
    """
    nudges = {name: key.new_zeros(*key.shape[:-1], weight.shape[-2]) for name, weight in weights.items()}

    def loss(nudges: Weights) -> tuple[Tensor, tuple[Tensor, Weights]]:
        inputs: Weights = {}
        each = objective(architecture(tape(weights, nudges, inputs), key), value, threshold)
        return each.sum(), (each, inputs)

    # torch declares vjp as a pair; with has_aux it is a triple.
    pulled: Any = torch.func.vjp(loss, nudges, has_aux=True)
    total, pullback, (each, inputs) = pulled
    (cotangents,) = pullback(torch.ones_like(total))
    return Surprise(each, cotangents, inputs)
