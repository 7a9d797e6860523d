"""How surprising each token of a scan is, and whether it is written: the scan again, with another thing read."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import nestling.tree as tree
from nestling.core import Above, Gates, Lag, Memory, MemoryState, Omega, Weights
from nestling.ops.chunk import BlockState, Tokens, block, supported
from nestling.ops.door import check_memory, check_tokens, spread
from nestling.ops.drive import Chunk, begin, drive
from nestling.ops.layout import Marks
from nestling.ops.window import losses


def watch(
    memory: Memory,
    states: tuple[MemoryState | None, Weights],
    k: Tensor,
    v: Tensor,
    gates: Gates,
    marks: Marks = Marks(),
) -> tuple[Tensor, Tensor]:
    """(ℓ(M(W_anchor, k), v), 1 where the token is written and 0 where ``Above`` leaves it out), each (B, H, T).

    ``states``: the state before the first token (None: none), and the initial weights (H, out, in). Padding has zeros.

    >>> from nestling.core import L2, Matrix
    >>> k = v = torch.eye(4)[None, None, [0, 1, 0]]
    >>> watch(Memory(Matrix(), Above(L2(), 0.1)), (None, {"w1": torch.zeros(1, 4, 4)}), k, v, Gates())
    (tensor([[[0.5000, 0.5000, 0.0000]]]), tensor([[[1., 1., 0.]]]))
    """
    going, fresh = states
    check_tokens(k, k, v, marks)
    check_memory(memory, going, fresh, k, v)
    dtype = next(iter(fresh.values())).dtype
    with torch.no_grad(), torch.autocast(k.device.type, enabled=False):
        each = spread(gates, fresh, k, memory.retention)
        args = (k.to(dtype), v.to(dtype), each)
        if supported(memory, each) and not isinstance(memory.retention, Lag):
            held = None if going is None else (going,)
            seen, _ = drive((memory,), held, (fresh,), args, marks, Chunk(), _work(memory))
        else:
            seen = _by_token(memory, going, begin(memory, fresh, k.shape[0]), args, marks)
    surprise, written = seen.unbind(-1)
    return surprise, written


def told(memory: Memory, before: BlockState, key: Tensor, value: Tensor, gates: Gates) -> Tensor:
    """(surprise, written) of the tokens of a block, (B, H, C, 2)."""
    surprise = losses(memory, before.anchor, key, value, gates)
    return torch.stack((surprise, _written(memory, before.objective, surprise, gates)), -1)


def _written(memory: Memory, held: Any, surprise: Tensor, gates: Gates) -> Tensor:
    """1[ℓ > τ], for softened judges too"""
    judge = memory.objective.objective if isinstance(memory.objective, Omega) else memory.objective
    if not isinstance(judge, Above):
        return torch.ones_like(surprise)
    bound = torch.as_tensor(memory.objective.bound(held, gates.threshold))[..., None]
    return (judge.weight(surprise, bound) > (0.5 if judge.softness else 0.0)).to(surprise.dtype)


def _work(memory: Memory) -> Any:
    def work(before: tuple[BlockState, ...], inputs: Any, filled: Tensor | None) -> Any:
        k, v, gates = inputs
        _, *wrote = block(memory, before[0], Tokens(k, k, v, gates, filled))
        return told(memory, before[0], k, v, gates), (tuple(wrote),)

    return work


def _by_token(memory: Memory, going: MemoryState | None, fresh: MemoryState, inputs: Any, marks: Marks) -> Tensor:
    lifted: list[Any] = [torch.vmap(torch.vmap(each)) for each in (memory.commit, memory.loss, memory.write)]
    commit, loss, write = lifted
    state, seen = fresh if going is None else going, []
    for t in range(inputs[0].shape[2]):
        if marks.starts is not None:
            state = tree.where(marks.starts[:, t, None].expand(state.phase.shape), fresh, state)
        key, value, gates = tree.map(lambda x, t=t: x[:, :, t], inputs)
        before = commit(state)
        surprise = loss(before, key, value, gates)
        wrote = _written(memory, before.objective, surprise[..., None], tree.map(lambda gate: gate[..., None], gates))
        now = torch.stack((surprise, wrote[..., 0]), -1)
        after = write(state, key, value, gates)
        if marks.valid is not None:
            live = marks.valid[:, t, None].expand(state.phase.shape)
            after, now = tree.where(live, after, state), torch.where(live[..., None], now, torch.zeros_like(now))
        state = after
        seen.append(now)
    return torch.stack(seen, 2)
