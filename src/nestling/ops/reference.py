"""The reference: token by token, ``Memory.write`` and ``Memory.read`` lifted over batch and heads by ``vmap``. Slow and plain."""

from __future__ import annotations

import torch
from torch import Tensor

import nestling.tree as tree
from nestling.core import Gates, Memory, MemoryState
from nestling.ops.layout import Marks


def scan_reference(
    memory: Memory,
    state: MemoryState | None,
    fresh: MemoryState | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Gates,
    marks: Marks,
) -> tuple[Tensor, MemoryState]:
    """Write token t, then read it; padding leaves the state as it is, and a document begins at ``fresh``."""
    if state is None:
        raise ValueError("the reference needs a state to go on from or one to begin at; got neither.")
    write = torch.vmap(torch.vmap(memory.write))
    read = torch.vmap(torch.vmap(memory.read))
    outputs = []
    for t in range(q.shape[2]):
        if marks.starts is not None and fresh is not None:
            state = tree.where(marks.starts[:, t, None].expand(state.phase.shape), fresh, state)
        now = tree.map(lambda gate, t=t: gate[:, :, t], gates)
        written = write(state, k[:, :, t], v[:, :, t], now)
        y = read(written, q[:, :, t])
        if marks.valid is None:
            state = written
        else:
            live = marks.valid[:, t, None].expand(state.phase.shape)
            state = tree.where(live, written, state)
            y = torch.where(live[..., None], y, torch.zeros_like(y))
        outputs.append(y)
    return torch.stack(outputs, 2), state
