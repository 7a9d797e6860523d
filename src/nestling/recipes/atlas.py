"""Atlas (arXiv 2505.23735): a window of pairs, polynomial features of keys, and Muon within the memory."""

from __future__ import annotations

from dataclasses import dataclass

from nestling.core import L2, MLP, Chain, Decay, Descend, Memory, Momentum, NewtonSchulz, Normed, Omega
from nestling.models import LM
from nestling.nn import Features, GateRange, Gating, Learnt, Polynomial, ShareRange, Zeros
from nestling.recipes.linear import MemoryMixer, memories

# Sₜ = ηₜSₜ₋₁ + ∇Σ_{i=t−c+1..t} γᵢ‖M(φ(kᵢ)) − vᵢ‖²,  Mₜ = (1−αₜ)Mₜ₋₁ − θₜ NewtonSchulz₅(Sₜ)      eqs 32-33
ATLAS_MEMORY = Memory(
    Normed(MLP(expand=4, depth=2)),
    Omega(L2(), window=4),
    Decay(),
    Chain((Momentum(), NewtonSchulz(steps=5), Descend())),
    period=16,
)


@dataclass(frozen=True)
class Atlas(MemoryMixer):
    """Rates that fit steps of unit spectral norm, monomials up to degree 2 of keys of width 8."""

    memory: Memory = ATLAS_MEMORY
    gates: Gating = ShareRange(GateRange(lr=0.1, lr_start=0.01))
    features: Features = Polynomial(degree=2, keys=8)
    start: Learnt | Zeros = Learnt()


def atlas(config: Atlas) -> LM:
    """Atlas → SwiGLU, in every block; without ``NewtonSchulz`` it is OmegaNet (Atlas eq. 10).

    >>> from nestling.recipes import build
    >>> build("atlas", layers=1).config.memory.objective
    Omega(objective=L2(), window=4)
    """
    return memories(config)
