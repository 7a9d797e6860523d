"""Mamba-2 (arXiv 2405.21060), and Samba (arXiv 2406.07522), which has it take turns with attention in a window."""

from __future__ import annotations

from dataclasses import dataclass

from nestling.core import Memory
from nestling.errors import NestlingError
from nestling.models import LM, Config
from nestling.nn import Attention, Block, Mamba2, Mixer, StepRange, SwiGLU
from nestling.recipes.linear import RETENTION_MEMORY


@dataclass(frozen=True)
class Mamba(Config):
    """``memory``: what each head is; ``state``: width of B and C; ``widen``: channels of x over dim; ``steps``: Δ and A."""

    memory: Memory = RETENTION_MEMORY
    state: int = 128
    widen: int = 2
    conv: int = 4
    steps: StepRange = StepRange()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.memory, Memory):
            raise NestlingError(f"memory is a Memory, such as Memory(Matrix(), DotProduct()), got {self.memory!r}.")
        if not isinstance(self.steps, StepRange):
            raise NestlingError(f"steps is a StepRange, got {self.steps!r}.")


@dataclass(frozen=True)
class SambaMamba(Mamba):
    """``window``: tokens that attention sees."""

    window: int = 256


def mamba2(config: Mamba) -> LM:
    """Mamba-2 → SwiGLU, in every block: Sₜ = exp(−AΔₜ)Sₜ₋₁ + Δₜxₜ Bₜᵀ, yₜ = SₜCₜ + D xₜ.

    >>> from nestling.recipes import build
    >>> build("mamba2", layers=1).config.memory.objective
    DotProduct()
    """
    return LM(config, [_block(config, _mamba(config)) for _ in range(config.layers)])


def samba(config: SambaMamba) -> LM:
    """Blocks take turns: Mamba-2 → SwiGLU, attention in a window → SwiGLU (the paper has Mamba-1 there).

    >>> from nestling.recipes import build
    >>> [type(block.mixer).__name__ for block in build("samba", layers=2).blocks]
    ['Mamba2', 'Attention']
    """

    def mixer(index: int) -> Mixer:
        return Attention(config.dim, config.heads, config.window) if index % 2 else _mamba(config)

    return LM(config, [_block(config, mixer(i)) for i in range(config.layers)])


def _mamba(config: Mamba) -> Mamba2:
    return Mamba2(
        config.dim,
        config.heads,
        config.memory,
        state=config.state,
        widen=config.widen,
        conv=config.conv,
        steps=config.steps,
    )


def _block(config: Mamba, mixer: Mixer) -> Block:
    return Block(config.dim, mixer, SwiGLU(config.dim, config.expand))
