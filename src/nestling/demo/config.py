"""What a demonstration is: one frozen value for the command line, and the fixed sizes that make its results repeatable."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from nestling.errors import NestlingError


@dataclass(frozen=True)
class DemoConfig:
    """The demonstration of a model that keeps learning. Equal values give equal results on the same machine.

    >>> DemoConfig(recipe="hope").out
    'report'
    """

    out: str = "report"
    """Folder of the report; the trained models go below it."""
    recipe: Literal["hope", "titans_lmm"] = "titans_lmm"
    """The model with a memory; its opponent is a transformer of equal size."""
    seed: int = 0
    """Of the weights and of the order of the data."""
    minutes: float | None = None
    """Train for as long as makes about this many minutes in all on this machine; none: a fixed number of tokens."""

    def __post_init__(self) -> None:
        if self.recipe not in ("hope", "titans_lmm"):
            raise NestlingError(f"unknown recipe {self.recipe!r} for a demonstration: use one of hope, titans_lmm.")
        if self.seed < 0:
            raise NestlingError(f"seed must not be negative, got {self.seed}: use 0.")
        if self.minutes is not None and not 0 < self.minutes < math.inf:
            raise NestlingError(f"minutes must be positive, got {self.minutes}: use 5.")
        if self.out == "":
            raise NestlingError("out must be a folder, got '': use report.")


@dataclass(frozen=True)
class Plan:
    """How large everything is. Both models are trained alike: the same tokens in the same order, the same optimizer."""

    dim: int
    """Channels of both models."""
    layers: int
    """Blocks of both models."""
    heads: int
    """Heads of both models."""
    vocab_size: int
    """Tokens of the byte-pair encoding; 256 are bytes."""
    batch: int
    """Rows in a batch."""
    length: int
    """Tokens in a row; also the transformer's window."""
    steps: int
    """Updates of the weights."""
    lr: float
    """Learning rate after the warm-up."""
    unseen: int
    """Tokens of the unseen package that are read, at most."""
    tail: int
    """Tokens at its end that copies of the session read, too."""
    probe: int
    """Documents of each kind that are asked about afterwards."""
    probe_bytes: int
    """Bytes of each of those documents that are read, at most."""
    windows: int
    """Points of the curve along the stream."""

    @property
    def tokens(self) -> int:
        """Tokens that each model is trained on."""
        return self.steps * self.batch * self.length


FULL = Plan(
    dim=128,
    layers=2,
    heads=4,
    vocab_size=1024,
    batch=2,
    length=1024,
    steps=240,
    lr=3e-3,
    unseen=40_000,
    tail=4096,
    probe=12,
    probe_bytes=4096,
    windows=20,
)
"""About five minutes on two cores, one for each training."""

QUICK = Plan(
    dim=48,
    layers=1,
    heads=2,
    vocab_size=256,
    batch=4,
    length=64,
    steps=4,
    lr=3e-3,
    unseen=2048,
    tail=512,
    probe=2,
    probe_bytes=512,
    windows=8,
)
"""Seconds: shows that everything works, and nothing about the models."""
