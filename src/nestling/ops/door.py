"""Shapes at the door: checked once where a batch enters a scan. Inside, all is trusted, and broadcasting would hide mistakes."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

import torch
from torch import Tensor

from nestling.core import Gates, Memory, MemoryState, Weights
from nestling.errors import NestlingError
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


def spread(gates: Gates, names: Set[str], like: Tensor, dtype: torch.dtype) -> Gates:
    """Every gate as a tensor (B, H, T) of ``like`` (B, H, T, ...), or a mapping with one for each of ``names``."""
    shape = like.shape[:3]

    def one(name: str, gate: Any) -> Any:
        if isinstance(gate, Mapping):
            if gate.keys() != names:
                raise NestlingError(
                    f"gate {name} is for {sorted(gate)}, the weights are {sorted(names)}: give each one."
                )
            return {weight: one(f"{name}[{weight!r}]", each) for weight, each in gate.items()}
        tensor = torch.as_tensor(gate, dtype=dtype, device=like.device)
        try:
            return tensor.expand(shape)
        except RuntimeError:
            raise NestlingError(
                f"gate {name} has shape {tuple(tensor.shape)}: it must broadcast to (B, H, T) = {tuple(shape)}."
            ) from None

    return Gates(*(one(n, g) for n, g in vars(gates).items()))
