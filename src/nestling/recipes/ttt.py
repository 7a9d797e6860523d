"""TTT (arXiv 2407.04620): layers whose state is a model, trained on each token by self-supervision."""

from __future__ import annotations

from dataclasses import dataclass

from nestling.core import L2, MLP, Decay, Descend, Matrix, Memory, Normed, Residual
from nestling.models import LM
from nestling.nn import Features, Gating, Learnt, Length, RateRange, Zeros
from nestling.recipes.linear import MemoryMixer, memories

# Wₜ = Wₜ₋₁ − ηₜ∇½‖f(W_t'; θ_K xₜ) − θ_V xₜ‖², f(x) = x + LN(Wx), mini-batches of 16      TTT §2.4, §2.7
TTT_LINEAR_MEMORY = Memory(Residual(Normed(Matrix())), L2(), Decay(), Descend(), period=16)
# f(x) = x + LN(W₂ GELU(W₁ x)), four times the width
TTT_MLP_MEMORY = Memory(Residual(Normed(MLP(expand=4, depth=2))), L2(), Decay(), Descend(), period=16)


@dataclass(frozen=True)
class TTTLinear(MemoryMixer):
    """A matrix; η = σ(θ_lr·x)."""

    memory: Memory = TTT_LINEAR_MEMORY
    features: Features = Length()
    start: Learnt | Zeros = Learnt()


@dataclass(frozen=True)
class TTTMLP(MemoryMixer):
    """A two-layer MLP; η = 0.1 σ(θ_lr·x)."""

    memory: Memory = TTT_MLP_MEMORY
    gates: Gating = RateRange(lr=0.1)
    features: Features = Length()
    start: Learnt | Zeros = Learnt()


def ttt_linear(config: TTTLinear) -> LM:
    """TTT-Linear → SwiGLU, in every block: no forgetting, no momentum.

    >>> from nestling.recipes import build
    >>> build("ttt_linear", layers=1).config.memory.period
    16
    """
    return memories(config)


def ttt_mlp(config: TTTMLP) -> LM:
    """TTT-MLP → SwiGLU, in every block.

    >>> from nestling.recipes import build
    >>> build("ttt_mlp", layers=1).config.gates
    RateRange(lr=0.1)
    """
    return memories(config)
