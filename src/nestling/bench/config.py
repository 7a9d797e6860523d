"""What a benchmark of recipes is: one frozen value for the command line. Nothing here may import torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nestling.errors import NestlingError


@dataclass(frozen=True)
class BenchConfig:
    """Every recipe at size ``tiny``, on one thread: trained alike on the source of Python's standard library, then decoding.

    >>> BenchConfig(steps=20).settings["steps"]
    20
    """

    recipes: tuple[str, ...] = ()
    """Recipes to measure; none: all."""
    out: str = "runs/bench"
    """Folder of the results, recipes.md and recipes.json, and of the runs; what is measured there already is not measured again."""
    page: str | None = None
    """A page with the lines <!-- bench recipes --> and <!-- bench recipes end -->; the table is put between them."""
    steps: int = 500
    """Updates of the weights."""
    batch: int = 1
    """Rows in a batch."""
    length: int = 128
    """Tokens in a row, and in the prompt before decoding."""
    vocab_size: int = 1024
    """Tokens of the byte-pair encoding; 256 are bytes."""
    lr: float = 3e-3
    """AdamW's rate after the warm-up."""
    valid: int = 64
    """Batches of held-out text."""
    decode: int = 64
    """Tokens to decode, one at a time, in each of three tries."""
    seed: int = 0
    """Of the weights and of the order of the data."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "length", "valid", "decode"):
            value = vars(self)[name]
            if value < 1:
                raise NestlingError(f"{name} must be at least 1, got {value}: use {vars(BenchConfig())[name]}.")
        if self.out == "":
            raise NestlingError("out must be a folder, got '': use runs/bench.")

    @property
    def settings(self) -> dict[str, Any]:
        """What the figures depend on."""
        return {name: value for name, value in vars(self).items() if name not in ("recipes", "out", "page")}
