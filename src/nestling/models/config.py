"""What a model is built from: one frozen value a recipe."""

from __future__ import annotations

from dataclasses import dataclass

from nestling.errors import NestlingError


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

    def __post_init__(self) -> None:
        shape = {"vocab_size": self.vocab_size, "dim": self.dim, "layers": self.layers, "heads": self.heads}
        for name, value in shape.items():
            if not isinstance(value, int) or value < 1:
                raise NestlingError(f"{name} is a whole number ≥ 1, got {value!r}.")
        if not self.expand > 0:
            raise NestlingError(f"expand is a number above 0, got {self.expand!r}.")
