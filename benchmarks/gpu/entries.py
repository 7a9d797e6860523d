"""What is measured on a GPU: models of one size with rival mixers, and the multiplications that each needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from nestling.core import L2, Delta, Descend, Matrix, Memory
from nestling.models import LM
from nestling.nn import Block, MemoryLayer, SelfModifying
from nestling.ops import Chunk, Kernels, Path
from nestling.recipes import build
from nestling.recipes.titans import TitansMAC
from nestling.recipes.transformer import Transformer


@dataclass(frozen=True)
class Shape:
    """``size`` of a recipe, changes to it, tokens of a vocabulary and of a step; ``lengths`` of sequences."""

    size: str = "340m"
    vocab: int = 32_000
    tokens: int = 32_768
    lengths: tuple[int, ...] = (4096, 16_384)
    changes: dict[str, Any] = field(default_factory=dict)
    segment: int = 512
    """Of memory as context"""
    products: torch.dtype = torch.bfloat16
    compiles: bool = True
    """Are blocks compiled, where an entry says so?"""


TINY = Shape("tiny", 64, 32, (32,), {"dim": 32, "layers": 1, "heads": 2}, 16, torch.float32, False)
"""What a processor can do with interpreted kernels"""

# M_t = M_t-1(αI − ηkkᵀ) − η∇ℓ at the last commit            NL eq. 93
HOPE_MEMORY = Memory(Matrix(), L2(), Delta(), period=16)


@dataclass(frozen=True)
class Entry:
    """A model and how its memories are computed; ``peer``: the layer of flash-linear-attention in their place."""

    name: str
    recipe: str
    path: Path | None = None
    peer: str | None = None
    changes: dict[str, Any] = field(default_factory=dict)
    longest: int | None = None
    """Beyond this length it is not measured."""

    def model(self, shape: Shape, length: int) -> LM:
        """Of ``shape``, for sequences of ``length`` tokens."""
        own = {"transformer": {"window": length}, "titans_mac": {"segment": shape.segment}}.get(self.recipe, {})
        changes = {**self.changes, **shape.changes, **own}
        model = build(self.recipe, size=shape.size, vocab_size=shape.vocab, **changes)
        if self.peer is not None:
            return _with_peer(model, self.peer)
        match self.path:
            case Kernels() as kernels:
                return model.using(replace(kernels, products=shape.products))
            case Chunk() as chunk:
                return model.using(replace(chunk, compiled=chunk.compiled and shape.compiles))
            case _:
                return model


ENTRIES = (
    Entry("transformer", "transformer"),
    Entry("LMM, kernels", "titans_lmm", Kernels()),
    Entry("LMM, blocks", "titans_lmm", Chunk(), longest=4096),
    Entry("linear Hope, kernels", "titans_lmm", Kernels(), changes={"memory": HOPE_MEMORY, "expand": 2.92}),
    Entry("linear Hope, blocks", "titans_lmm", Chunk(), changes={"memory": HOPE_MEMORY, "expand": 2.92}, longest=4096),
    Entry("Hope, self-modifying", "hope", Chunk(compiled=True), longest=4096),
    Entry("MAC, kernels", "titans_mac", Kernels(), longest=4096),
    Entry("Gated DeltaNet, kernels", "gated_deltanet", Kernels()),
    Entry("Gated DeltaNet, fla", "gated_deltanet", peer="GatedDeltaNet"),
    Entry("DeltaNet, fla", "deltanet", peer="DeltaNet"),
)


class Peer(nn.Module):
    """A layer of flash-linear-attention as a mixer without a state."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, state: None = None, marks: Any = None) -> tuple[Tensor, None]:
        """(B, T, dim) -> (B, T, dim)"""
        return self.layer(x)[0], None


def _with_peer(model: LM, name: str) -> LM:
    """The same model with that layer as the mixer of every block, of the same width and number of heads."""
    layers = import_module("fla.layers")
    dim = model.config.dim
    for place, block in enumerate(model.blocks):
        assert isinstance(block, Block) and isinstance(block.mixer, MemoryLayer)
        heads = block.mixer.heads
        made: dict[str, Callable[[], nn.Module]] = {
            "GatedDeltaNet": lambda h=heads, i=place: layers.GatedDeltaNet(
                hidden_size=dim, num_heads=h, head_dim=dim // h, expand_v=1.0, layer_idx=i
            ),
            "DeltaNet": lambda h=heads, i=place: layers.DeltaNet(hidden_size=dim, num_heads=h, layer_idx=i),
        }
        block.mixer = Peer(made[name]())  # type: ignore[assignment]
    return model


def flops(model: LM, length: int) -> float:
    """Multiplications and additions of a token in training: 6 a parameter that it meets, and what memories and attention add.

    Forward, a linear memory of width d in chunks of C: 6d² + 7Cd; a memory of two layers and h hidden units: 14dh + 4C(d + h), with
    momentum 22dh + 4C(d + h); self-modifying matrices: 18d² (docs/performance.md); causal attention over T tokens: 2T · dim. Training
    is three times forward.

    >>> model = build("transformer", dim=32, layers=1, heads=2, vocab_size=64)
    >>> flops(model, 16) - 6 * sum(p.numel() for p in model.parameters())
    3072.0
    """
    embedding = 0 if model.head is None else model.embedding.weight.numel()
    # The initial weights of memories multiply nothing but through their memories.
    started = sum(p.numel() for m in model.modules() if isinstance(m, MemoryLayer) for p in m.initial.values())
    met = sum(p.numel() for p in model.parameters()) - embedding - started
    match model.config:
        case Transformer():
            attended = length
        case TitansMAC(segment=segment):
            attended = segment
        case _:
            attended = 0
    attention = 2.0 * attended * model.config.dim * len(model.blocks)
    return 6 * met + 3 * (sum(_memory(m, model.config.dim) for m in model.modules()) + attention)


def _memory(module: nn.Module, dim: int) -> float:
    """Of one token in one layer, forward"""
    match module:
        case SelfModifying(heads=heads):
            return 18.0 * dim * dim / heads
        case MemoryLayer(heads=heads, memory=memory, shapes=shapes):
            chunk = 64 if memory.period == 1 else int(memory.period)
            (_, keys), *_ = shapes.values()
            width, weights = keys, sum(out * inputs for out, inputs in shapes.values())
            if len(shapes) == 1:
                return heads * float(6 * weights + 7 * chunk * width)
            width += sum(out for out, _ in list(shapes.values())[:-1])
            return heads * float((7 if isinstance(memory.rule, Descend) else 11) * weights + 4 * chunk * width)
        case _:
            return 0.0
