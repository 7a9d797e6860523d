"""Titans (arXiv 2501.00663): neural long-term memory alone, as context, as a gate, and as a layer before attention."""

from __future__ import annotations

from dataclasses import dataclass

from nestling.core import L2, MLP, Chain, Decay, Descend, Memory, Momentum, Normed, Residual
from nestling.errors import NestlingError
from nestling.models import LM, Config
from nestling.nn import (
    Attention,
    Block,
    GateRange,
    MemoryAsContext,
    MemoryAsGate,
    MemoryAsLayer,
    MemoryLayer,
    Mixer,
    Segment,
    SwiGLU,
)

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
    return LM(config, [_block(config, _memory(config)) for _ in range(config.layers)])


@dataclass(frozen=True)
class TitansMAG(TitansLMM):
    """``window``: tokens that attention sees; ``persistent``: learnt tokens before them."""

    window: int = 256
    persistent: int = 16


def titans_mag(config: TitansMAG) -> LM:
    """Memory as gate: attention in a window beside a long-term memory, then SwiGLU, in every block (Titans eqs 26-28).

    >>> from nestling.recipes import build
    >>> build("titans_mag", layers=1).config.persistent
    16
    """

    def mixer() -> Mixer:
        return MemoryAsGate(config.dim, _memory(config), _attention(config))

    return LM(config, [_block(config, mixer()) for _ in range(config.layers)])


@dataclass(frozen=True)
class TitansMAC(TitansLMM):
    """``segment``: tokens that attend to each other; ``persistent``: learnt tokens; ``pool``: reads for one memory token."""

    segment: int = 64
    persistent: int = 16
    pool: int = 2


def titans_mac(config: TitansMAC) -> LM:
    """Memory as context: read the memory, attend within the segment, write, gate; then SwiGLU (Titans eqs 21-25).

    >>> from nestling.recipes import build
    >>> build("titans_mac", layers=1).config.segment
    64
    """

    def mixer() -> Mixer:
        return MemoryAsContext(_memory(config), Segment(config.segment, config.persistent, config.pool))

    return LM(config, [_block(config, mixer()) for _ in range(config.layers)])


@dataclass(frozen=True)
class Samba:
    """Blocks take turns: memory → SwiGLU, attention → SwiGLU, and so on (the NeurIPS version of Titans, §3.2)."""


@dataclass(frozen=True)
class H3:
    """Memory → attention → SwiGLU within every block (Titans, version 1, App. D.2)."""


@dataclass(frozen=True)
class TitansMAL(TitansMAG):
    """``stack``: how memory and attention follow each other, ``Samba()`` or ``H3()``."""

    stack: Samba | H3 = Samba()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.stack, Samba | H3):
            raise NestlingError(f"stack is Samba() or H3(), got {self.stack!r}.")


def titans_mal(config: TitansMAL) -> LM:
    """Memory as layer: attention in a window reads what a long-term memory said (Titans eqs 29-31).

    >>> from nestling.recipes import build
    >>> build("titans_mal", layers=2).config.stack
    Samba()
    """

    def mixer(index: int) -> Mixer:
        match config.stack:
            case H3():
                return MemoryAsLayer(_memory(config), _attention(config))
            case Samba():
                return _attention(config) if index % 2 else _memory(config)

    return LM(config, [_block(config, mixer(i)) for i in range(config.layers)])


def _memory(config: TitansLMM) -> MemoryLayer:
    return MemoryLayer(config.dim, config.heads, config.memory, conv=config.conv, gates=config.gates)


def _attention(config: TitansMAG) -> Attention:
    return Attention(config.dim, config.heads, config.window, config.persistent)


def _block(config: TitansLMM, mixer: Mixer) -> Block:
    return Block(config.dim, mixer, SwiGLU(config.dim, config.expand))
