"""What a model is built from: one frozen value a recipe."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Config:
    """The shape that all recipes share; each recipe adds its own fields.

    ``recipe`` and ``size`` are the names it was built by; ``vocab_size`` tokens; ``layers`` blocks of ``dim`` channels and
    ``heads`` heads; ``expand`` the width of channel mixers; ``tied``: the head shares the embedding.
    """

    recipe: str
    size: str
    vocab_size: int
    dim: int
    layers: int
    heads: int
    expand: float = 4
    tied: bool = True
