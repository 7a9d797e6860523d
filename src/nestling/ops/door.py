"""Shapes at the door: checked once where a batch enters a scan. Inside, all is trusted, and broadcasting would hide mistakes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nestling.core import Gates, KeyDecay, Memory, MemoryState, Retention, Weights
from nestling.errors import NestlingError
from nestling.ops.channels import sided
from nestling.ops.layout import Marks


def check_tokens(q: Tensor, k: Tensor, v: Tensor, marks: Marks) -> None:
    """``q``, ``k`` (B, H, T, keys) and ``v`` (B, H, T, values) with T ≥ 1; marks (B, T)."""
    if q.dim() != 4 or q.shape != k.shape or v.shape[:3] != k.shape[:3]:
        shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
        raise NestlingError(f"scan needs q and k (B, H, T, keys) and v (B, H, T, values), got {shapes}.")
    if q.shape[2] == 0:
        raise NestlingError("scan needs at least one token, got T = 0.")
    wanted = (q.shape[0], q.shape[2])
    for name, mark in vars(marks).items():
        if mark is not None and (tuple(mark.shape) != wanted or mark.dtype != torch.bool):
            raise NestlingError(f"{name} must be bool (B, T) = {wanted}, got {tuple(mark.shape)} {mark.dtype}.")


def check_memory(memory: Memory, state: MemoryState | None, initial: Weights | None, k: Tensor, v: Tensor) -> None:
    """Initial weights (H, out, in), a state's (B, H, out, in), as the architecture has them for these keys and values."""
    rows, heads = k.shape[:2]
    needed = memory.architecture.shapes(k.shape[-1], v.shape[-1])
    for what, weights, lead in (
        ("initial weights", initial, (heads,)),
        ("the state", None if state is None else state.dual, (rows, heads)),
    ):
        if weights is None:
            continue
        given = {name: tuple(weight.shape) for name, weight in weights.items()}
        for name in {**needed, **given}:
            wanted = (*lead, *needed[name]) if name in needed else "no such weight"
            got = given.get(name, "nothing")
            if got != wanted:
                raise NestlingError(f"{what} {name}: {memory.architecture!r} needs {wanted} here, got {got}.")


def spread(gates: Gates, weights: Mapping[str, Tensor], like: Tensor, retention: Retention) -> Gates:
    """Every gate as a tensor (B, H, T) of ``like`` (B, H, T, ...), or a mapping with one for each of ``weights``.

    For ``KeyDecay`` the retain gate has one more dimension, the inputs of the weight. A gate by channel, (B, H, T, channels of the
    narrower side of one weight), comes out as (B, H, T, 1, inputs) or (B, H, T, outputs, 1).
    """
    widths = {weight.shape[-1] for weight in weights.values()}
    door = _Spread(weights, like, next(iter(weights.values())).dtype, isinstance(retention, KeyDecay))
    return Gates(*(door.one(name, gate, widths) for name, gate in vars(gates).items()))


@dataclass(frozen=True)
class _Spread:
    """What gates are spread over. Functions that close over one another would keep these tensors until garbage is collected."""

    weights: Mapping[str, Tensor]
    like: Tensor
    dtype: torch.dtype
    by_key: bool

    def one(self, name: str, gate: Any, inputs: set[int]) -> Any:
        """A gate, or one for each weight; ``inputs`` of the weights that it is for"""
        if isinstance(gate, Mapping):
            return self.each(name, gate)
        lead = self.like.shape[:3]
        if isinstance(gate, Tensor) and not self.by_key and gate.shape == lead:
            return gate.to(self.like.device, self.dtype)
        tensor = torch.as_tensor(gate, dtype=self.dtype, device=self.like.device)
        shape, letters = tuple(lead), "(B, H, T)"
        if self.by_key and name.startswith("retain"):
            if len(inputs) > 1:
                raise NestlingError(f"gate {name} is one for weights with {sorted(inputs)} inputs: give each one.")
            shape, letters = (*shape, *inputs), "(B, H, T, inputs)"
        try:
            # Three dimensions would be read as (H, T, inputs): a vector for each key says so.
            return tensor.expand(shape if tensor.dim() in (0, 4) or len(shape) == 3 else ())
        except RuntimeError:
            raise NestlingError(
                f"gate {name} has shape {tuple(tensor.shape)}: it must broadcast to {letters} = {tuple(shape)}."
            ) from None

    def each(self, name: str, gates: Mapping[str, Any]) -> dict[str, Any]:
        """One for each weight"""
        if gates.keys() != self.weights.keys():
            raise NestlingError(
                f"gate {name} is for {sorted(gates)}, the weights are {sorted(self.weights)}: give each one."
            )
        found = {}
        for weight, gate in gates.items():
            named = f"{name}[{weight!r}]"
            if isinstance(gate, Tensor) and gate.dim() == 4 and not (self.by_key and name == "retain"):
                found[weight] = self.channels(named, gate, self.weights[weight])
            else:
                found[weight] = self.one(named, gate, {self.weights[weight].shape[-1]})
        return found

    def channels(self, name: str, gate: Tensor, weight: Tensor) -> Tensor:
        """A gate by channel of one weight"""
        if self.by_key:
            raise NestlingError(f"gate {name} is by channel, and KeyDecay has channels of its own: use Decay().")
        wide = sided(name, gate.to(self.dtype), weight)
        try:
            return wide.expand(*self.like.shape[:3], *wide.shape[3:])
        except RuntimeError:
            raise NestlingError(
                f"gate {name} has shape {tuple(gate.shape)}: it must broadcast to (B, H, T, channels) = "
                f"{(*self.like.shape[:3], gate.shape[-1])}."
            ) from None
