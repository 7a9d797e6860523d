"""The linear family: baselines that are one matrix memory a head, each with retention and gates of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nestling.core import Decay, Descend, DotProduct, Erase, KeyDecay, Matrix, Memory
from nestling.errors import NestlingError
from nestling.models import LM, Config
from nestling.nn import (
    Block,
    Features,
    FixedDecay,
    Gating,
    ImplicitRange,
    KeyDecayRange,
    Learnt,
    MemoryLayer,
    RateDecayRange,
    RateRange,
    Rotated,
    Scaled,
    SwiGLU,
    Unit,
    Zeros,
)

# The gradient of a dot product knows no anchor, so in these memories a period is only how many tokens go at once.
# Sₜ = αSₜ₋₁ + vₜkₜᵀ                                         RetNet eqs 3-6, MIRAS eq. 8
RETENTION_MEMORY = Memory(Matrix(), DotProduct(), Decay(), Descend(), period=64)
# Sₜ = Sₜ₋₁ diag(αₜ) + vₜkₜᵀ                                 GLA eq. 3
GLA_MEMORY = Memory(Matrix(), DotProduct(), KeyDecay(), Descend(), period=16)
# Sₜ = αₜSₜ₋₁(I − βₜkₜkₜᵀ) + βₜvₜkₜᵀ, DeltaNet with αₜ = 1   Gated DeltaNet eq. 10
DELTA_MEMORY = Memory(Matrix(), DotProduct(), Erase(), Descend(), period=64)


@dataclass(frozen=True)
class MemoryMixer(Config):
    """``memory``: what each head is; ``conv``: taps; ``gates`` and ``features``: their form; ``start``: of the memories."""

    memory: Memory = DELTA_MEMORY
    conv: int = 4
    gates: Gating = RateRange()
    features: Features = Unit()
    start: Learnt | Zeros = Zeros()

    def __post_init__(self) -> None:
        super().__post_init__()
        kinds: dict[str, Any] = {"memory": Memory, "gates": Gating, "features": Features, "start": Learnt | Zeros}
        for name, kind in kinds.items():
            if not isinstance(value := vars(self)[name], kind):
                raise NestlingError(f"{name} is one of {kind}, got {value!r}.")


@dataclass(frozen=True)
class RetNet(MemoryMixer):
    """A fixed decay a head, rotary positions in keys and queries, no convolution (one tap is a gain)."""

    memory: Memory = RETENTION_MEMORY
    conv: int = 1
    gates: Gating = FixedDecay()
    features: Features = Rotated()


@dataclass(frozen=True)
class GLA(MemoryMixer):
    """A decay for each key channel, from the token; no convolution (one tap is a gain)."""

    memory: Memory = GLA_MEMORY
    conv: int = 1
    gates: Gating = KeyDecayRange()
    features: Features = Scaled()


@dataclass(frozen=True)
class DeltaNet(MemoryMixer):
    """The delta rule: a rate from the token, nothing forgotten."""


@dataclass(frozen=True)
class Longhorn(MemoryMixer):
    """The delta rule as a whole proximal step: its rate is η/(1 + η‖k‖²), with keys of unit length."""

    gates: Gating = ImplicitRange()


@dataclass(frozen=True)
class GatedDeltaNet(MemoryMixer):
    """The gated delta rule: a rate and a decay from the token."""

    gates: Gating = RateDecayRange()


def memories(config: MemoryMixer) -> LM:
    """Memory → SwiGLU, in every block."""

    def mixer() -> MemoryLayer:
        return MemoryLayer(
            config.dim,
            config.heads,
            config.memory,
            conv=config.conv,
            gates=config.gates,
            features=config.features,
            start=config.start,
        )

    return LM(config, [Block(config.dim, mixer(), SwiGLU(config.dim, config.expand)) for _ in range(config.layers)])


def retnet(config: RetNet) -> LM:
    """RetNet (arXiv 2307.08621): Sₜ = αSₜ₋₁ + vₜkₜᵀ, yₜ = Sₜqₜ.

    >>> from nestling.recipes import build
    >>> build("retnet", layers=1).config.gates
    FixedDecay(first=5.0)
    """
    return memories(config)


def gla(config: GLA) -> LM:
    """Gated linear attention (arXiv 2312.06635): Sₜ = Sₜ₋₁ diag(αₜ) + vₜkₜᵀ.

    >>> from nestling.recipes import build
    >>> build("gla", layers=1).config.memory.retention
    KeyDecay()
    """
    return memories(config)


def deltanet(config: DeltaNet) -> LM:
    """DeltaNet (arXiv 2406.06484): Sₜ = Sₜ₋₁(I - βₜkₜkₜᵀ) + βₜvₜkₜᵀ.

    >>> from nestling.recipes import build
    >>> build("deltanet", layers=1).config.gates
    RateRange(lr=1.0)
    """
    return memories(config)


def longhorn(config: Longhorn) -> LM:
    """Longhorn (arXiv 2407.14207): Sₜ = argmin ‖S − Sₜ₋₁‖² + ηₜ‖S kₜ − vₜ‖² = Sₜ₋₁(I - δₜkₜkₜᵀ) + δₜvₜkₜᵀ.

    >>> from nestling.recipes import build
    >>> build("longhorn", layers=1).config.gates
    ImplicitRange(lr=1.0)
    """
    return memories(config)


def gated_deltanet(config: GatedDeltaNet) -> LM:
    """Gated DeltaNet (arXiv 2412.06464): Sₜ = αₜSₜ₋₁(I - βₜkₜkₜᵀ) + βₜvₜkₜᵀ.

    >>> from nestling.recipes import build
    >>> build("gated_deltanet", layers=1).config.memory.retention
    Erase()
    """
    return memories(config)
