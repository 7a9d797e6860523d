"""What the laws are about: every layer and every recipe, small, in float64, behind one way of calling them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

import nestling as nl
import nestling.tree as tree
from nestling.core import (
    KL,
    L2,
    MLP,
    Above,
    Adaptive,
    Chain,
    Clip,
    Decay,
    Delta,
    Descend,
    DotProduct,
    ElasticNet,
    Every,
    FDivergence,
    GatedDelta,
    GatedMLP,
    HeldLq,
    Hold,
    Huber,
    Lag,
    Level,
    Lp,
    Lq,
    Matrix,
    Memory,
    MixedHuber,
    Momentum,
    NewtonSchulz,
    Normed,
    NormHuber,
    Omega,
    Quantile,
    Residual,
    Returning,
    Scale,
    SoftThreshold,
    Sum,
    UnitDelta,
    ValueShift,
)
from nestling.models import LM
from nestling.nn import (
    CMS,
    Attention,
    Block,
    ChannelRange,
    Gated,
    Independent,
    Mamba2,
    MemoryAsContext,
    MemoryAsLayer,
    MemoryLayer,
    Mixer,
    Polynomial,
    Segment,
    SelfForm,
    SelfModifying,
    ShortConv,
    SwiGLU,
    Tracking,
    Within,
)
from nestling.ops import Chunk, Marks, Reference
from nestling.recipes import configure
from nestling.recipes.atlas import ATLAS_MEMORY

DIM, HEADS, WINDOW, VOCABULARY = 16, 2, 6, 50
TITANS = Chain((Descend(), Momentum()))

MEMORIES = {
    "titans": Memory(Residual(Normed(MLP(2, 2))), L2(), Decay(), TITANS, 4),
    "titans_commit": Memory(GatedMLP(2), L2(), Decay(), Chain((Momentum(0.5), Descend())), 3, "commit"),
    "titans_periods": Memory(
        Residual(Normed(MLP(2, 2))), L2(), Decay(), Chain((Descend(), Every(3, Momentum()))), 3, "commit"
    ),
    "huber": Memory(Residual(Normed(MLP(2, 2))), Huber(), Decay(), Descend(), 4),
    "lq": Memory(Residual(Normed(MLP(2, 2))), Lp(3.0), Lq(4.0, "mean"), Descend(), 4),
    "kl": Memory(Residual(Normed(MLP(2, 2))), L2(), KL(), Descend(), 1),
    "elastic": Memory(Matrix(), L2(), ElasticNet(0.01), TITANS, 2),
    "moneta_held": Memory(Residual(Normed(MLP(2, 2))), Lp(3.0), HeldLq(4.0, "mean"), Descend(), 4),
    "memora_lagging": Memory(Residual(Normed(MLP(2, 2))), L2(), Lag(KL(1.0, "mean", 1e-2)), Descend(), 4),
    "soft_threshold": Memory(Matrix(), ValueShift(), SoftThreshold(), Descend(), 2),
    "f_divergence": Memory(Matrix(), NormHuber(), FDivergence(), Descend(), 2),
    "linear_attention": Memory(Matrix(), DotProduct()),
    "delta": Memory(Matrix(), L2(), Delta(), Descend(), 4),
    "gated_delta": Memory(Matrix(), L2(), GatedDelta()),
    "muon": Memory(Matrix(), L2(), Decay(), Chain((Momentum(0.9), NewtonSchulz(3), Scale(0.1), Descend())), 3),
    "adam": Memory(Matrix(), L2(), Decay(), Chain((Clip(1.0), Adaptive(0.9), Scale(0.1), Descend())), 2),
    "selective": Memory(MLP(2, 2), Omega(Above(L2(), Quantile(0.5, 0.1), 0.5), 3), Decay(), TITANS, 4),
    "two_speeds": Memory(Matrix(), L2(), Decay(), Sum((Every(3, Descend()), Hold(2, Descend()))), 5),
}

PRINTED = SelfForm(memory=Matrix(), projections=Matrix(), retention=Delta(), read_at="commit")
BOUNDED = replace(PRINTED, read_at="current", value=Within(), start=Tracking(1, 1))
DEEP = SelfForm(
    adaptive=("q", "k", "v", "η", "α"),
    static=("β",),
    memory=Residual(MLP(1)),
    projections=Residual(MLP(1)),
    gates=MLP(1),
    retention=Returning(UnitDelta()),
    rule=TITANS,
    period=4,
)

MIXERS: dict[str, Callable[[], Mixer]] = {
    "attention": lambda: Attention(DIM, HEADS, WINDOW),
    "attention_after_a_prefix": lambda: Attention(DIM, HEADS, WINDOW, persistent=3),
    "memory_as_layer": lambda: MemoryAsLayer(
        MemoryLayer(DIM, HEADS, MEMORIES["titans"]), Attention(DIM, HEADS, WINDOW, persistent=3)
    ),
    "context_by_segment": lambda: MemoryAsContext(
        MemoryLayer(DIM, HEADS, MEMORIES["titans_periods"]), Segment(6, persistent=2, pool=2)
    ),
    "state_space": lambda: Mamba2(DIM, HEADS, MEMORIES["linear_attention"], state=5),
    "conv": lambda: ShortConv(DIM),
    "conv_of_one_tap": lambda: ShortConv(DIM, 1),
    "swiglu": lambda: SwiGLU(DIM),
    "cms": lambda: CMS(DIM, [Level("fast", 1), Level("middle", 4), Level("slow", 16)]),
    "cms_independent": lambda: CMS(DIM, [Level("fast", 1), Level("slow", 16)], wiring=Independent()),
    "cms_gated": lambda: CMS(DIM, [Level("fast", 1), Level("slow", 16)], wiring=Gated()),
    "yaad_by_channel": lambda: MemoryLayer(
        DIM, HEADS, Memory(MLP(2, 2), MixedHuber(), period=4), gates=ChannelRange(threshold=1.0)
    ),
    "self_modifying": lambda: SelfModifying(DIM, HEADS, 4),
    "self_modifying_recomputed": lambda: SelfModifying(DIM, HEADS, 4, path=Chunk(block=2, stride=2)),
    "self_modifying_as_printed": lambda: SelfModifying(DIM, HEADS, 4, form=PRINTED),
    "self_modifying_by_token": lambda: SelfModifying(DIM, HEADS, 1, form=BOUNDED, path=Chunk(stride=2)),
    "self_modifying_deep": lambda: SelfModifying(DIM, HEADS, 6, form=DEEP, path=Chunk(stride=2)),
    "titans_by_reference": lambda: MemoryLayer(DIM, HEADS, MEMORIES["titans"], path=Reference()),
    "block": lambda: Block(DIM, Attention(DIM, HEADS, WINDOW), MemoryLayer(DIM, HEADS, MEMORIES["delta"])),
    **{name: lambda memory=memory: MemoryLayer(DIM, HEADS, memory) for name, memory in MEMORIES.items()},
}

SMALL: dict[str, dict[str, Any]] = {
    "atlas": {
        "memory": replace(ATLAS_MEMORY, rule=Chain((Momentum(), NewtonSchulz(2), Descend())), period=4),
        "features": Polynomial(2, 3),
    },
    "tnt": {"schedule": (Level("global", 8, TITANS), Level("local", 4, TITANS, reset=12))},
}
"""What makes a recipe small besides"""

RECIPES = nl.recipes()
EVERYTHING = [*MIXERS, *RECIPES]


def small(recipe: str, **changes: Any) -> dict[str, Any]:
    """The fields of the recipe that make it small; a recipe that is added later comes under the laws by itself."""
    known = {field.name for field in fields(configure(recipe))}
    wanted = {"dim": 32, "layers": 2, "heads": 2, "window": 8, "persistent": 3, "segment": 8, **changes}
    return {**{name: value for name, value in wanted.items() if name in known}, **SMALL.get(recipe, {})}


def build(name: str, seed: int = 0) -> nn.Module:
    """A fresh one, in float64."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = nl.build(name, vocab_size=VOCABULARY, **small(name)) if name in RECIPES else MIXERS[name]()
    return made.double()


@cache
def subject(name: str) -> nn.Module:
    """One for all tests that change nothing in it."""
    return build(name)


@cache
def model(name: str) -> LM:
    """A language model: the recipe, or one block around the mixer."""
    if name in RECIPES:
        return build(name)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = nl.Config("one block", "small", VOCABULARY, DIM, 1, HEADS)
        return LM(config, [Block(DIM, MIXERS[name](), SwiGLU(DIM))]).double()


def draw(module: nn.Module, batch: int, length: int, seed: int = 0) -> Tensor:
    """Tokens for a model, vectors for a mixer."""
    generator = torch.Generator().manual_seed(seed)
    if isinstance(module, LM):
        return torch.randint(0, VOCABULARY, (batch, length), generator=generator)
    return torch.randn(batch, length, DIM, generator=generator, dtype=torch.float64)


def call(
    module: nn.Module, x: Tensor, state: Any = None, valid: Tensor | None = None, starts: Tensor | None = None
) -> tuple[Tensor, Any]:
    """(outputs, state)"""
    if isinstance(module, LM):
        return module(x, state, valid, starts)
    return module(x, state, Marks(valid, starts))


def rows(state: Any, index: int | slice) -> Any:
    """Some rows of a state."""
    keep = slice(index, index + 1) if isinstance(index, int) else index
    return tree.map(lambda leaf: leaf[keep], state)


def assert_close(got: Any, expected: Any, tolerance: float = 1e-9) -> None:
    """Relative to the largest entry of each tensor."""
    for (path, a), b in zip(tree.items(tree.detach(got)), tree.leaves(tree.detach(expected)), strict=True):
        assert a.shape == b.shape, path
        scale = max(float(b.abs().max()), 1e-3) if b.numel() else 1.0
        worst = float((a - b).abs().max()) if b.numel() else 0.0
        assert worst <= tolerance * scale, f"{path}: {worst:.1e} apart, largest entry {scale:.1e}"


def assert_equal(got: Any, expected: Any) -> None:
    """Bit for bit."""
    for (path, a), b in zip(tree.items(got), tree.leaves(expected), strict=True):
        assert torch.equal(a, b), path
