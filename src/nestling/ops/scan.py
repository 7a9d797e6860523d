"""``scan``: a memory written and read once per token, over (batch, heads, tokens, width)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor

from nestling.core import Gates, Memory, MemoryState, Weights
from nestling.errors import NestlingError
from nestling.ops.chunk import BlockState, Tokens, block, supported
from nestling.ops.drive import Chunk, begin, drive
from nestling.ops.layout import Marks
from nestling.ops.reference import scan_reference


@dataclass(frozen=True)
class Reference:
    """Token by token: the definition, for any memory."""


@dataclass(frozen=True)
class Resumed:
    """A state to go on from, and the initial weights (H, out, in) at which documents begin on the way."""

    state: MemoryState
    initial: Weights


Path = Reference | Chunk | Literal["auto"]


def scan(
    memory: Memory,
    state: MemoryState | Weights | Resumed,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Gates,
    *,
    marks: Marks = Marks(),
    path: Path = "auto",
) -> tuple[Tensor, MemoryState]:
    """Write token t into the memory, then read it: yₜ = M(Wₜ, qₜ), for t = 1 … T (Titans eq. 15).

    ``q``, ``k`` (B, H, T, keys); ``v`` (B, H, T, values); gates broadcast to (B, H, T), one for all weights or one for each.
    ``state``: a state to go on from, or the initial weights (H, out, in) for a fresh start, or both as ``Resumed``.
    ``marks``: padding, and where documents begin: there the memory is reset to its initial weights.
    ``path``: "auto" takes the chunk-parallel form where the memory has one; every path gives the same answer.

    Returns y (B, H, T, values) and the state after the last token. Any split of a stream into calls gives the same.

    >>> import torch
    >>> from nestling.core import Gates, Matrix, Memory
    >>> q = k = v = torch.nn.functional.normalize(torch.randn(1, 2, 5, 4), dim=-1)
    >>> y, state = scan(Memory(Matrix()), {"w1": torch.zeros(2, 4, 4)}, q, k, v, Gates(lr=1.0))
    >>> torch.allclose(y[:, :, 0], v[:, :, 0], atol=1e-6)
    True
    """
    _check(q, k, v)
    going, fresh = _parts(state)
    if marks.starts is not None and fresh is None:
        raise NestlingError(
            "documents begin inside the batch, but where their memories begin is not known: pass state=Resumed(state, weights)."
        )
    example = going.dual if going is not None else fresh
    assert example is not None
    dtype = next(iter(example.values())).dtype
    spread = _spread(gates, q.shape[:3], dtype, q.device)
    with torch.autocast(q.device.type, enabled=False):
        args = (q.to(dtype), k.to(dtype), v.to(dtype), spread)
        match path if path != "auto" else _choose(memory):
            case Reference():
                origin = begin(memory, fresh, q.shape[0]) if fresh is not None else None
                y, after = scan_reference(memory, going or origin, origin, *args, marks)
            case Chunk() as chunk:
                if not supported(memory):
                    raise NestlingError(f"{memory!r} has no chunk-parallel form. Use path=Reference() or path='auto'.")
                run = _compiled(memory) if chunk.compiled else _eager(memory)
                states, weights = (None if going is None else (going,)), (None if fresh is None else (fresh,))
                y, (after,) = drive((memory,), states, weights, args, marks, chunk, run)
            case other:
                raise NestlingError(f"unknown path {other!r}: use 'auto', Reference() or Chunk(...).")
    return y.to(q.dtype), after


def _parts(state: MemoryState | Weights | Resumed) -> tuple[MemoryState | None, Weights | None]:
    match state:
        case Resumed(going, fresh):
            return going, fresh
        case MemoryState():
            return state, None
        case _:
            return None, state


def _choose(memory: Memory) -> Reference | Chunk:
    return Chunk() if supported(memory) else Reference()


def _check(q: Tensor, k: Tensor, v: Tensor) -> None:
    if q.dim() != 4 or q.shape != k.shape or v.shape[:3] != k.shape[:3]:
        shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
        raise NestlingError(f"scan needs q and k (B, H, T, keys) and v (B, H, T, values), got {shapes}.")
    if q.shape[2] == 0:
        raise NestlingError("scan needs at least one token, got T = 0.")


def _spread(gates: Gates, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Gates:
    """Every gate as a tensor (B, H, T), or a mapping of them."""

    def one(name: str, gate: Any) -> Any:
        if isinstance(gate, Mapping):
            return {weight: one(f"{name}[{weight!r}]", each) for weight, each in gate.items()}
        tensor = torch.as_tensor(gate, dtype=dtype, device=device)
        try:
            return tensor.expand(shape)
        except RuntimeError:
            raise NestlingError(
                f"gate {name} has shape {tuple(tensor.shape)}: it must broadcast to (B, H, T) = {tuple(shape)}."
            ) from None

    return Gates(*(one(n, g) for n, g in vars(gates).items()))


def _eager(memory: Memory) -> Any:
    def run(before: tuple[BlockState, ...], args: Any, filled: Tensor | None) -> Any:
        q, k, v, gates = args
        y, dual, trace = block(memory, before[0], Tokens(q, k, v, gates, filled))
        return y, ((dual, trace),)

    return run


@lru_cache(maxsize=64)
def _compiled(memory: Memory) -> Any:
    return torch.compile(_eager(memory), fullgraph=True, dynamic=False)
