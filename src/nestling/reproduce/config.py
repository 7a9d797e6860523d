"""What a reproduction is. Nothing here may import torch: help reads these types."""

from __future__ import annotations

import math
from dataclasses import dataclass

from nestling.errors import NestlingError


@dataclass(frozen=True)
class AutomataConfig:
    """Table 5 of Nested Learning: formal languages. Equal values give equal results on the same machine.

    >>> AutomataConfig(seeds=2).steps
    3000
    """

    out: str = "runs/automata"
    """Folder of cells.jsonl, which gets a line for every model, language and seed, and of table.md."""
    models: tuple[str, ...] = ()
    """Rows of the table; none: all."""
    languages: tuple[str, ...] = ()
    """Columns of the table; none: all."""
    seeds: int = 3
    """Runs of each model on each language: seeds 0, 1, …, of the words, of the weights and of the order."""
    steps: int = 3000
    """Updates of the weights, twice as many for Shuffle-2; a run that has both bins at 100 % ends at once, as in the benchmark."""
    batch: int = 8
    """Words in a batch."""
    lr: float = 4e-3
    """Learning rate after the warm-up."""
    smoothing: float = 0.05
    """Part of a target that all classes share: then equal prefixes of other lengths have equal logits where the loss is least, and
    what drifts with the length is still corrected when no word is read wrongly any more."""
    average: float = 0.97
    """What is asked is the average of the weights over about 1 / (1 - average) steps; 0: the weights themselves."""
    every: int = 100
    """Steps between two evaluations on both bins."""
    asked: int = 2000
    """Words of each bin that are asked about, where a language has as many."""
    compile: bool = False
    """Self-modifying memories through ``torch.compile`` while they are trained: some five times as fast, needs a C++ compiler."""

    def __post_init__(self) -> None:
        for name in ("seeds", "steps", "batch", "every", "asked"):
            if vars(self)[name] < 1:
                raise NestlingError(f"{name} must be at least 1, got {vars(self)[name]}.")
        if not 0 < self.lr < math.inf:
            raise NestlingError(f"lr must be positive, got {self.lr}: use 0.004.")
        for name, use in (("average", 0.97), ("smoothing", 0.05)):
            if not 0 <= vars(self)[name] < 1:
                raise NestlingError(f"{name} must be at least 0 and below 1, got {vars(self)[name]}: use {use}.")
        if self.out == "":
            raise NestlingError("out must be a folder, got '': use runs/automata.")
