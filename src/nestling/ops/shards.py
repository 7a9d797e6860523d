"""Memories that begin anew every so many tokens of a document (TNT, arXiv 2511.07343): resets are starts at fixed positions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import nestling.tree as tree
from nestling.core import Gates, Memory, MemoryState, Weights
from nestling.ops.layout import Marks
from nestling.ops.scan import Path, Resumed, scan


def positions(count: Tensor, marks: Marks, length: int) -> tuple[Tensor, Tensor]:
    """Where each token stands in its document (B, T), from the ``count`` (B,) of tokens that came before; and the count after.

    >>> marks = Marks(starts=torch.tensor([[False, False, True, False]]))
    >>> positions(torch.tensor([5]), marks, 4)
    (tensor([[5, 6, 0, 1]]), tensor([2]))
    """
    rows = count.shape[0]
    live = count.new_ones(rows, length) if marks.valid is None else marks.valid.long()
    total = live.cumsum(1)
    base = -count[:, None].expand(-1, length)
    if marks.starts is not None:
        base = torch.where(marks.starts, total - live, base).cummax(1).values
    return total - live - base, total[:, -1] - base[:, -1]


def resets(position: Tensor, every: int, marks: Marks) -> Marks:
    """``marks``, and a start wherever ``every`` tokens of a document are through."""
    again = (position % every == 0) & (position > 0)
    again = again if marks.valid is None else again & marks.valid
    return Marks(marks.valid, again if marks.starts is None else again | marks.starts)


def scan_shards(
    memory: Memory, weights: Weights, inputs: tuple[Tensor, Tensor, Tensor, Gates], every: int, path: Path = "auto"
) -> tuple[Tensor, MemoryState]:
    """``scan`` from a fresh start, without marks, of a memory that begins anew every ``every`` tokens: shards side by side.

    They share nothing but ``weights``, so they are rows of one scan. Returns y (B, H, T, values) and the last shard's state.
    """
    rows, _, length = inputs[0].shape[:3]
    whole = (length - 1) // every * every
    last = tree.map(lambda x: x[:, :, whole:] if x.dim() > 2 else x, inputs)
    y, state = scan(memory, weights, *last, path=path)
    if not whole:
        return y, state

    def beside(x: Tensor) -> Tensor:
        return x[:, :, :whole].unflatten(2, (-1, every)).transpose(1, 2).flatten(0, 1) if x.dim() > 2 else x

    folded: Any = tree.map(beside, inputs)
    before, _ = scan(memory, weights, *folded, path=path)
    return torch.cat((before.unflatten(0, (rows, -1)).transpose(1, 2).flatten(2, 3), y), 2), state


def scan_anew(
    memory: Memory,
    states: tuple[MemoryState | None, Weights],
    inputs: tuple[Tensor, Tensor, Tensor, Gates],
    every: int | None,
    marks: tuple[Marks, Tensor],
    path: Path = "auto",
) -> tuple[Tensor, MemoryState]:
    """``scan`` of a memory that begins anew every ``every`` tokens of a document (None: never).

    ``states``: to go on from (None: a fresh start), and the initial weights. ``marks``: those of the batch, and the tokens' positions.
    """
    going, weights = states
    given, position = marks
    if every is not None and going is None and given == Marks():
        return scan_shards(memory, weights, inputs, every, path)
    given = given if every is None else resets(position, every, given)
    return scan(memory, weights if going is None else Resumed(going, weights), *inputs, marks=given, path=path)
