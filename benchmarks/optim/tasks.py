"""What is learnt: digits by a small vision transformer, novels by a small language model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, gelu, scaled_dot_product_attention

from benchmarks.novels import text
from nestling import build

Batch: TypeAlias = tuple[Tensor, Tensor]
ROWS, LENGTH = 8, 96
NOVELS = ("Doyle_Lost_1912", "Stevenson_Treasure_1883", "Haggard_Mines_1885", "Chesterton_Thursday_1908")


@dataclass(frozen=True)
class Task:
    """A model, batches to train on, and two sets of batches that it does not see: one to tune on, one to report."""

    name: str
    steps: int
    model: Callable[[], nn.Module]
    logits: Callable[[nn.Module, Tensor], Tensor]
    draw: Callable[[torch.Generator], Batch]
    validation: tuple[Batch, ...]
    test: tuple[Batch, ...]

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Mean cross entropy, in nats"""
        inputs, targets = batch
        return cross_entropy(self.logits(model, inputs).flatten(0, -2), targets.flatten())

    @torch.no_grad()
    def evaluate(self, model: nn.Module, batches: tuple[Batch, ...]) -> tuple[float, float]:
        """Mean cross entropy and accuracy over batches of one size"""
        losses, right = [], []
        for inputs, targets in batches:
            logits = self.logits(model, inputs).flatten(0, -2)
            losses.append(cross_entropy(logits, targets.flatten()))
            right.append((logits.argmax(-1) == targets.flatten()).float().mean())
        return float(torch.stack(losses).mean()), float(torch.stack(right).mean())


class Layer(nn.Module):
    """Attention, then an MLP, each behind a layer norm and beside a residual path."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.up, self.down = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, dim) -> (B, T, dim)"""
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.out(scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2))
        return x + self.down(gelu(self.up(self.norm2(x))))


class ViT(nn.Module):
    """A vision transformer (Dosovitskiy et al. 2021) of 8 × 8 pixels in 16 patches: 102,000 parameters."""

    def __init__(self, dim: int = 64, depth: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.embed = nn.Linear(4, dim)
        self.positions = nn.Parameter(0.02 * torch.randn(1, 16, dim))
        self.layers = nn.Sequential(*(Layer(dim, heads) for _ in range(depth)), nn.LayerNorm(dim))
        self.head = nn.Linear(dim, 10)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 8, 8) -> (B, 10)"""
        patches = images.unfold(1, 2, 2).unfold(2, 2, 2).reshape(len(images), 16, 4)
        return self.head(self.layers(self.embed(patches) + self.positions).mean(1))


@cache
def digits() -> Task:
    """scikit-learn's 1,797 digits: 1,197 to train on, 300 to tune on, 300 to report."""
    from sklearn.datasets import load_digits  # of the extra "bench": what does not need digits does without

    found = load_digits()
    order = torch.randperm(len(found.target), generator=torch.Generator().manual_seed(0))
    images = ((torch.tensor(found.images).float() - 8) / 8)[order]
    labels = torch.tensor(found.target)[order]

    def draw(generator: torch.Generator) -> Batch:
        rows = torch.randint(0, 1197, (64,), generator=generator)
        return images[rows], labels[rows]

    parts = [((images[a:b], labels[a:b]),) for a, b in ((1197, 1497), (1497, 1797))]
    return Task("digits", 200, ViT, lambda model, x: model(x), draw, *parts)


@cache
def novels(names: tuple[str, ...] = NOVELS) -> Task:
    """The bytes of novels: the first 90 % of each to train on, 5 % to tune on, 5 % to report."""
    texts = [torch.frombuffer(bytearray(text(name)), dtype=torch.uint8).long() for name in names]
    cuts = [(int(0.9 * len(one)), int(0.95 * len(one)), len(one)) for one in texts]
    train = torch.cat([one[:a] for one, (a, _, _) in zip(texts, cuts, strict=True)])

    def draw(generator: torch.Generator) -> Batch:
        starts = torch.randint(0, len(train) - LENGTH - 1, (ROWS,), generator=generator)
        rows = train[starts[:, None] + torch.arange(LENGTH + 1)]
        return rows[:, :-1], rows[:, 1:]

    def held(side: int) -> tuple[Batch, ...]:
        generator, rows = torch.Generator().manual_seed(0), []
        for one, cut in zip(texts, cuts, strict=True):
            starts = torch.randint(cut[side], cut[side + 1] - LENGTH - 1, (48 // len(texts),), generator=generator)
            rows.append(one[starts[:, None] + torch.arange(LENGTH + 1)])
        return tuple((part[:, :-1], part[:, 1:]) for part in torch.cat(rows).split(16))

    model = lambda: build("transformer", vocab_size=256, dim=64, layers=2, heads=4, window=LENGTH)  # noqa: E731
    return Task("novels", 160, model, lambda model, x: model(x)[0], draw, held(0), held(1))


TASKS = {"novels": novels, "digits": digits}
