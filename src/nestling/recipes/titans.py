"""Titans (arXiv 2501.00663): neural long-term memory as a layer."""

from __future__ import annotations

from dataclasses import dataclass

from nestling.core import L2, MLP, Chain, Decay, Descend, Memory, Momentum, Normed, Residual
from nestling.errors import NestlingError
from nestling.models import LM, Config
from nestling.nn import Block, GateRange, MemoryLayer, SwiGLU

# Sₜ = ηₜSₜ₋₁ − θₜ∇ℓ(Mₜ₋₁; kₜ, vₜ),  Mₜ = (1−αₜ)Mₜ₋₁ + Sₜ,  M(x) = x + LN(W₂ GELU(W₁ x)),  chunks of 16      eqs 13-14
LONG_TERM_MEMORY = Memory(
    Residual(Normed(MLP(expand=4, depth=2))), L2(), Decay(), Chain((Descend(), Momentum())), period=16
)


@dataclass(frozen=True)
class TitansLMM(Config):
    """``memory``: what each head is; ``conv``: taps of the short convolution; ``gates``: range of the gates."""

    memory: Memory = LONG_TERM_MEMORY
    conv: int = 4
    gates: GateRange = GateRange()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.memory, Memory):
            raise NestlingError(f"memory is a Memory, such as Memory(MLP(), period=16), got {self.memory!r}.")


def titans_lmm(config: TitansLMM) -> LM:
    """Long-term memory → SwiGLU, in every block; no attention.

    >>> from nestling.recipes import build
    >>> build("titans_lmm", layers=1).config.memory.period
    16
    """

    def mixer() -> MemoryLayer:
        return MemoryLayer(config.dim, config.heads, config.memory, conv=config.conv, gates=config.gates)

    return LM(config, [Block(config.dim, mixer(), SwiGLU(config.dim, config.expand)) for _ in range(config.layers)])
