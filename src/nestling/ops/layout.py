"""Where the tokens of a batch lie in the blocks of a chunk-parallel scan.

A block never straddles a commit. Rows can be at different phases of their period, have padding anywhere, and begin new
documents anywhere; so the tokens of each row are moved to *slots*, such that every block of slots belongs to one period of one
document. Empty slots are inert. With nothing of the kind (a fresh state, no padding) slots are the tokens themselves.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Marks:
    """What the tokens of a batch are, where they are not all alike."""

    valid: Tensor | None = None
    """(B, T): tokens that are no padding; padding changes no state, and what is read there is zero. None: all are tokens."""
    starts: Tensor | None = None
    """(B, T): tokens that begin a document, where state begins anew. None: none does."""


@dataclass(frozen=True)
class Layout:
    """Slots for the tokens of each row."""

    source: Tensor
    """(B, S): the token that lies in a slot; any token where the slot is empty."""
    filled: Tensor
    """(B, S): does a token lie in the slot?"""
    slot: Tensor
    """(B, T): where a token lies; any slot where the token is padding."""
    begins: Tensor | None
    """(B, S / block): does the block begin a new document? None where none can."""

    def place(self, x: Tensor) -> Tensor:
        """Tokens (B, H, T, ...) to slots (B, H, S, ...)."""
        return _gather(x, self.source)

    def take(self, y: Tensor) -> Tensor:
        """Slots (B, H, S, ...) back to tokens (B, H, T, ...)."""
        return _gather(y, self.slot)


def _gather(x: Tensor, index: Tensor) -> Tensor:
    index = index[:, None].reshape(index.shape[0], 1, index.shape[1], *(1,) * (x.dim() - 3))
    return x.gather(2, index.expand(x.shape[0], x.shape[1], index.shape[2], *x.shape[3:]))


def arrange(phase: Tensor, marks: Marks, length: int, block: int) -> Layout:
    """Lay out rows of ``length`` tokens in blocks. ``phase`` (B,): slots of the first block that earlier calls filled."""
    valid, starts = marks.valid, marks.starts
    rows = phase.shape[0]
    live = torch.ones(rows, length, dtype=torch.bool, device=phase.device) if valid is None else valid
    if starts is None:
        slot = phase[:, None] + live.cumsum(1) - 1
        slots, begins = -(-(length + block - 1) // block) * block, None
    else:
        slot, slots, begins = _segments(phase, live, starts, block)
    tokens = torch.arange(length, device=phase.device).expand(rows, length)
    target = torch.where(live, slot, slots)
    source = torch.zeros(rows, slots + 1, dtype=torch.int64, device=phase.device).scatter_(1, target, tokens)
    filled = torch.zeros(rows, slots + 1, dtype=torch.bool, device=phase.device).scatter_(1, target, live)
    return Layout(source[:, :-1], filled[:, :-1], torch.where(live, slot, 0), begins)


def _segments(phase: Tensor, live: Tensor, starts: Tensor, block: int) -> tuple[Tensor, int, Tensor]:
    """Slots where every document begins a block of its own; how many slots there are; which blocks begin a document."""
    rows, segment = phase.shape[0], starts.long().cumsum(1)
    last = segment[:, -1:]
    count = int(last.max()) + 1
    lengths = torch.zeros(rows, count, dtype=torch.int64, device=phase.device).scatter_add_(1, segment, live.long())
    before = lengths.cumsum(1) - lengths
    within = live.cumsum(1) - 1 - before.gather(1, segment)
    lengths[:, 0] += phase
    number = torch.arange(count, device=phase.device)
    # A document of padding alone takes a block too, so that its row ends as a fresh one.
    lengths = torch.where((number > 0) & (number <= last), lengths.clamp_min(1), lengths)
    whole = (lengths + block - 1) // block * block
    base = whole.cumsum(1) - whole
    slots = max(int(whole.sum(1).max()), block)
    begins = torch.zeros(rows, slots // block + 1, dtype=torch.bool, device=phase.device)
    begins.scatter_(1, torch.where((number > 0) & (number <= last), base // block, slots // block), True)
    base[:, 0] += phase
    return base.gather(1, segment) + within, slots, begins[:, :-1]


def alike(counts: Tensor) -> int | None:
    """The one number that all of ``counts`` are; None where they differ. Waits for the device.

    >>> alike(torch.tensor([3, 3])), alike(torch.tensor([3, 4]))
    (3, None)
    """
    first, *others = set(counts.flatten().tolist())
    return None if others else int(first)
