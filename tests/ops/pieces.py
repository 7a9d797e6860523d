"""A stream that is cut, and documents and padding in it."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

import nestling.tree as tree
from nestling.core import Memory
from nestling.ops import Path, scan


def in_pieces(
    memory: Memory, weights: dict[str, Tensor], tokens: Any, ends: tuple[int, ...], path: Path | str = "auto"
) -> tuple[Tensor, Any]:
    """(y, last state) of (q, k, v, gates) that are read in pieces, each gone on with from the state of the one before it."""
    state, outputs = weights, []
    for low, high in pairwise((0, *ends)):
        part = tree.map(lambda x, low=low, high=high: x[:, :, low:high], tuple(tokens))
        y, state = scan(memory, state, *part, path=path)
        outputs.append(y)
    return torch.cat(outputs, 2), state


def marked(rows: int, length: int) -> tuple[Tensor, Tensor]:
    """(valid, starts) at random; the last row is all padding, and the one before it ends with a document that begins at padding."""
    generator = torch.Generator().manual_seed(1)
    valid = torch.rand(rows, length, generator=generator) < 0.8
    starts = torch.rand(rows, length, generator=generator) < 0.2
    valid[-1], starts[-2, -1], valid[-2, -1] = False, True, False
    return valid, starts
