"""One or more of every value of the core, for tests that hold for all of them."""

from __future__ import annotations

from nestling.core import (
    GELU,
    KL,
    L2,
    MLP,
    Adaptive,
    Chain,
    Clip,
    Constant,
    Decay,
    Delta,
    Descend,
    DotProduct,
    ElasticNet,
    Erase,
    Every,
    GatedDelta,
    GatedMLP,
    Hold,
    Huber,
    KeyDecay,
    Level,
    Lp,
    Lq,
    Matrix,
    Memory,
    Momentum,
    NewtonSchulz,
    Normed,
    Residual,
    Scale,
    SiLU,
    Sum,
)

ACTIVATIONS = [GELU(), SiLU()]
ARCHITECTURES = [
    Constant(),
    Matrix(),
    MLP(2, 1),
    MLP(2, 2),
    MLP(1.5, 3, SiLU()),
    GatedMLP(2),
    GatedMLP(1, SiLU()),
    Residual(Matrix()),
    Normed(MLP(2, 2), 1e-3),
    Residual(Normed(MLP(2, 2))),
    Normed(Residual(GatedMLP(2))),
]
OBJECTIVES = [DotProduct(), L2(), Lp(1.0), Lp(2.0), Lp(3.0), Lp(4.5, 1e-3), Huber()]
RETENTIONS = [
    Decay(),
    Delta(),
    GatedDelta(),
    Erase(),
    KeyDecay(),
    KL(),
    KL(2.0),
    ElasticNet(),
    ElasticNet(0.2),
    Lq(),
    Lq(1.5),
    Lq(2.0),
]
RULES = [
    Descend(),
    Momentum(),
    Momentum(0.9),
    Scale(-0.5),
    Clip(1.0),
    NewtonSchulz(),
    NewtonSchulz(3, 1e-8),
    Adaptive(),
    Adaptive(0.9, 1e-6),
    Chain((Descend(), Momentum())),
    Chain((Momentum(0.9), Descend())),
    Chain(()),
    Sum((Scale(1.0), Chain((Momentum(), Scale(2.0))))),
    Every(3, Descend()),
    Hold(2, Chain((Momentum(0.9), NewtonSchulz()))),
]
MEMORIES = [
    Memory(Matrix()),
    Memory(Residual(Normed(MLP())), Huber(), Lq(4.0), Chain((Descend(), Momentum())), 16, "commit"),
    Memory(MLP(2, 3), L2(), Delta(), period=float("inf")),
]
LEVELS = [
    Level("fast", 1),
    Level("never", float("inf"), Every(2, Descend()), "blocks.*.chain.0.*", 7),
    Level('it\'s "quoted"', 512.0),
]
VALUES = [*ACTIVATIONS, *ARCHITECTURES, *OBJECTIVES, *RETENTIONS, *RULES, *MEMORIES, *LEVELS]
