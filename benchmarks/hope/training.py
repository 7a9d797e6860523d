"""What the readings of Hope share: bytes, bits, one way to train on them, and one stream read in pieces."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nestling.train.optimizer import by_levels

Model = Callable[..., tuple[Tensor, Any]]
"""(tokens (B, T), state) -> (logits (B, T, 256), state)"""
WARM = 30
"""Steps until the rate is whole"""


def as_bytes(data: bytes) -> Tensor:
    """One number for each.

    >>> as_bytes(b"ab")
    tensor([97, 98])
    """
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).long()


def bits(logits: Tensor, targets: Tensor) -> Tensor:
    """Of each byte, given those before it.

    >>> bits(torch.zeros(1, 2, 256), torch.tensor([[7, 8]]))
    tensor([[8., 8.]])
    """
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets) / math.log(2)


def rate_at(step: int, steps: int, rate: float, floor: float) -> float:
    """A line up to ``rate`` over ``WARM`` steps, times half a cosine from 1 down to ``floor``.

    >>> [round(rate_at(step, 100, 1.0, floor=0.1), 3) for step in (0, 50, 100)]
    [0.033, 0.55, 0.1]
    """
    return rate * min(1, (step + 1) / WARM) * ((1 + floor) / 2 + (1 - floor) / 2 * math.cos(math.pi * step / steps))


def fit(model: nn.Module, draw: Callable[[], Tensor], steps: int, rate: float, floor: float) -> list[float]:
    """Train by AdamW on batches (B, T + 1) of bytes, gradients clipped at 1, levels by their periods; the loss of each step in bits per byte."""
    inner = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.1)
    optimizer = by_levels(inner, model)
    losses = []
    for step in range(steps):
        batch = draw()
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, steps, rate, floor)
        loss = bits(model(batch[:, :-1])[0], batch[:, 1:]).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


@torch.no_grad()
def read(model: Model, documents: Tensor, edges: tuple[int, ...], piece: int) -> list[list[float]]:
    """Bits per byte between the edges of each document (B, T + 1), read as one stream in pieces."""
    state, each = None, []
    for at in range(0, edges[-1], piece):
        given = documents[:, at : at + piece + 1]
        logits, state = model(given[:, :-1], state)
        each.append(bits(logits, given[:, 1:]))
    whole = torch.cat(each, 1)
    return torch.stack([whole[:, low:high].mean(1) for low, high in pairwise(edges)], 1).tolist()
