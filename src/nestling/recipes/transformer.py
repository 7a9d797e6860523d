"""Transformer++: RMSNorm, rotary attention, SwiGLU. The baseline of every table."""

from __future__ import annotations

from dataclasses import dataclass

from nestling.models import LM, Config
from nestling.nn import Attention, Block, SwiGLU


@dataclass(frozen=True)
class Transformer(Config):
    """``window``: tokens that attention sees; full attention for sequences up to it, and a constant state in a stream."""

    window: int = 256


def transformer(config: Transformer) -> LM:
    """Attention → SwiGLU, in every block.

    >>> from nestling.recipes import build
    >>> build("transformer", layers=2).config.window
    256
    """
    return LM(
        config,
        [
            Block(config.dim, Attention(config.dim, config.heads, config.window), SwiGLU(config.dim, config.expand))
            for _ in range(config.layers)
        ],
    )
