"""MIRAS (arXiv 2504.13173): Moneta, Yaad and Memora, which differ in what is minimised and in what is retained."""

from __future__ import annotations

from dataclasses import dataclass

from nestling.core import KL, L2, MLP, Decay, Descend, HeldLq, Lag, Lp, Memory, MixedHuber, Normed, Residual
from nestling.models import LM
from nestling.nn import ChannelRange, Gating, Learnt, Zeros
from nestling.recipes.linear import MemoryMixer, memories

# M(x) = x + LN(W₂ GELU(W₁ x)), expansion 4, in all three; gradient descent without momentum, chunks of 16      §5.3
DEEP = Residual(Normed(MLP(expand=4, depth=2)))
# Aₜ = αₜAₜ₋₁ − ηₜ∇ℓ₃,  Wₜ = Aₜ/‖Aₜ‖₄², the norm at the end of each chunk                                          eqs 24, 25
MONETA_MEMORY = Memory(DEEP, Lp(p=3.0), HeldLq(q=4.0, by="mean"), Descend(), period=16)
# Wₜ = αₜWₜ₋₁ − {ηₜ∇ℓ₂ where ‖M(kₜ) − vₜ‖ ≤ δₜ, else ηₜδₜ∇ℓ₁}                                                      eq. 26
YAAD_MEMORY = Memory(DEEP, MixedHuber(epsilon=0.1), Decay(), Descend(), period=16)
# Wₜ = c softmax(αₜ log Wₜ₋₁ − ηₜ∇ℓ₂) at the first token of each chunk, linear in the rest                          eqs 27, 30-32
MEMORA_MEMORY = Memory(DEEP, L2(), Lag(KL(scale=1.0, by="mean", floor=1e-3)), Descend(), period=16)


@dataclass(frozen=True)
class Moneta(MemoryMixer):
    """ℓ₃ bias, L₄ retention."""

    memory: Memory = MONETA_MEMORY
    gates: Gating = ChannelRange()
    start: Learnt | Zeros = Learnt()


@dataclass(frozen=True)
class Yaad(MemoryMixer):
    """Huber's bias with a threshold from the token, L₂ retention."""

    memory: Memory = YAAD_MEMORY
    gates: Gating = ChannelRange(threshold=0.5)
    start: Learnt | Zeros = Learnt()


@dataclass(frozen=True)
class Memora(MemoryMixer):
    """ℓ₂ bias, KL retention."""

    memory: Memory = MEMORA_MEMORY
    gates: Gating = ChannelRange()
    start: Learnt | Zeros = Learnt()


def moneta(config: Moneta) -> LM:
    """Moneta → SwiGLU, in every block: errors count by their cube, weights by their fourth power.

    >>> from nestling.recipes import build
    >>> build("moneta", layers=1).config.memory.objective
    Lp(p=3.0, epsilon=1e-06)
    """
    return memories(config)


def yaad(config: Yaad) -> LM:
    """Yaad → SwiGLU, in every block: what is too surprising is written by its signs alone.

    >>> from nestling.recipes import build
    >>> build("yaad", layers=1).config.gates.threshold
    0.5
    """
    return memories(config)


def memora(config: Memora) -> LM:
    """Memora → SwiGLU, in every block: rows of weights are positive and keep their sum.

    >>> from nestling.recipes import build
    >>> build("memora", layers=1).config.memory.retention
    Lag(map=KL(scale=1.0, by='mean', floor=0.001))
    """
    return memories(config)
