"""Memory architectures: M(W, k) -> v̂, each written once against ``apply(name, x)`` (see ``core.apply``)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from nestling.core.apply import Apply, Weights
from nestling.errors import NestlingError


@dataclass(frozen=True)
class GELU:
    """σ(x) = x Φ(x), with the exact (erf) Φ."""

    def __call__(self, x: Tensor) -> Tensor:
        """x Φ(x)"""
        return F.gelu(x)


@dataclass(frozen=True)
class SiLU:
    """σ(x) = x sigmoid(x)."""

    def __call__(self, x: Tensor) -> Tensor:
        """x sigmoid(x)"""
        return F.silu(x)


Activation = GELU | SiLU


class Architecture(ABC):
    """A function M(W, k) -> v̂ of weights W that are all applied as linear maps (no biases)."""

    @abstractmethod
    def shapes(self, keys: int, values: int) -> dict[str, tuple[int, int]]:
        """The weights by name with their shapes (out, in), for keys and values of these widths."""

    @abstractmethod
    def __call__(self, apply: Apply, key: Tensor) -> Tensor:
        """Read: ``key`` (..., keys) -> prediction (..., values)."""

    def init(self, keys: int, values: int, *, generator: Generator | None = None) -> Weights:
        """Random weights; entries have variance 1/in."""
        return _random(self.shapes(keys, values), (), generator)


def _random(shapes: dict[str, tuple[int, int]], inward: tuple[str, ...], generator: Generator | None) -> Weights:
    """Entries of variance 1/in, but 1 in the maps ``inward``, from the key to a hidden layer.

    Keys have unit length, so their entries are of size 1/√in, and hidden activations come out near unit size. With smaller
    ones, the outer gradients through the writes of a normed memory are a thousand times larger.
    """
    return {
        name: torch.randn(out, width, generator=generator) * (1.0 if name in inward else width**-0.5)
        for name, (out, width) in shapes.items()
    }


@dataclass(frozen=True)
class Constant(Architecture):
    """A memory without keys: M(k) = w. The momentum of an optimizer is one (NL eq. 34).

    >>> {name: tuple(w.shape) for name, w in Constant().init(3, 2).items()}
    {'w1': (2, 1)}
    """

    def shapes(self, keys: int, values: int) -> dict[str, tuple[int, int]]:
        """One column that answers every key."""
        return {"w1": (values, 1)}

    def init(self, keys: int, values: int, *, generator: Generator | None = None) -> Weights:
        """Zeros: nothing is remembered yet."""
        return {"w1": torch.zeros(values, 1)}

    def __call__(self, apply: Apply, key: Tensor) -> Tensor:
        """The content, for any key."""
        return apply("w1", torch.ones_like(key[..., :1]))


@dataclass(frozen=True)
class Matrix(Architecture):
    """A linear memory: M(k) = W₁ k, as in linear attention and DeltaNet.

    >>> from nestling.core.apply import linear
    >>> Matrix()(linear({"w1": torch.eye(2)}), torch.tensor([1.0, 2.0]))
    tensor([1., 2.])
    """

    def shapes(self, keys: int, values: int) -> dict[str, tuple[int, int]]:
        """One matrix."""
        return {"w1": (values, keys)}

    def __call__(self, apply: Apply, key: Tensor) -> Tensor:
        """W₁ k"""
        return apply("w1", key)


@dataclass(frozen=True)
class MLP(Architecture):
    """A deep memory: M(k) = W_L σ(… σ(W₁ k)), hidden width ``expand`` × keys, ``depth`` L ≥ 1 (Titans §3.1).

    W₁ stands next to the key; ``depth=1`` is ``Matrix``.

    >>> MLP(expand=4, depth=2).shapes(8, 8)
    {'w1': (32, 8), 'w2': (8, 32)}
    """

    expand: float = 4
    depth: int = 2
    activation: Activation = GELU()

    def __post_init__(self) -> None:
        if self.depth < 1 or self.expand <= 0:
            raise NestlingError(
                f"a memory MLP needs depth ≥ 1 and expand > 0, got depth={self.depth}, expand={self.expand}."
            )

    def shapes(self, keys: int, values: int) -> dict[str, tuple[int, int]]:
        """``depth`` matrices."""
        hidden = max(1, round(self.expand * keys))
        widths = [keys, *[hidden] * (self.depth - 1), values]
        return {f"w{i + 1}": (widths[i + 1], widths[i]) for i in range(self.depth)}

    def init(self, keys: int, values: int, *, generator: Generator | None = None) -> Weights:
        """Hidden activations near unit size for keys of unit length."""
        return _random(self.shapes(keys, values), ("w1",) if self.depth > 1 else (), generator)

    def __call__(self, apply: Apply, key: Tensor) -> Tensor:
        """W_L σ(… σ(W₁ k))"""
        x = apply("w1", key)
        for i in range(2, self.depth + 1):
            x = apply(f"w{i}", self.activation(x))
        return x


@dataclass(frozen=True)
class GatedMLP(Architecture):
    """A gated memory: M(k) = W₂ (σ(W₁ k) ⊙ W₃ k) (Atlas eq. 43).

    >>> sorted(GatedMLP(expand=2).shapes(4, 4))
    ['w1', 'w2', 'w3']
    """

    expand: float = 4
    activation: Activation = GELU()

    def shapes(self, keys: int, values: int) -> dict[str, tuple[int, int]]:
        """Two matrices in, one out."""
        hidden = max(1, round(self.expand * keys))
        return {"w1": (hidden, keys), "w2": (values, hidden), "w3": (hidden, keys)}

    def init(self, keys: int, values: int, *, generator: Generator | None = None) -> Weights:
        """Hidden activations near unit size for keys of unit length."""
        return _random(self.shapes(keys, values), ("w1", "w3"), generator)

    def __call__(self, apply: Apply, key: Tensor) -> Tensor:
        """W₂ (σ(W₁ k) ⊙ W₃ k)"""
        return apply("w2", self.activation(apply("w1", key)) * apply("w3", key))


@dataclass(frozen=True)
class Residual(Architecture):
    """M(k) = k + inner(k): the memory learns what the key does not already say. Keys and values have one width.

    >>> Residual(Normed(MLP()))
    Residual(inner=Normed(inner=MLP(expand=4, depth=2, activation=GELU()), eps=1e-05))
    """

    inner: Architecture

    def shapes(self, keys: int, values: int) -> dict[str, tuple[int, int]]:
        """Those of the inner architecture."""
        if keys != values:
            raise NestlingError(f"a residual memory needs keys as wide as values, got {keys} and {values}.")
        return self.inner.shapes(keys, values)

    def init(self, keys: int, values: int, *, generator: Generator | None = None) -> Weights:
        """Those of the inner architecture."""
        self.shapes(keys, values)
        return self.inner.init(keys, values, generator=generator)

    def __call__(self, apply: Apply, key: Tensor) -> Tensor:
        """K + inner(k)"""
        return key + self.inner(apply, key)


@dataclass(frozen=True)
class Normed(Architecture):
    """M(k) = LN(inner(k)), layer normalisation without gain or bias (those would be slow weights; the layer has its own)."""

    inner: Architecture
    eps: float = 1e-5

    def shapes(self, keys: int, values: int) -> dict[str, tuple[int, int]]:
        """Those of the inner architecture."""
        return self.inner.shapes(keys, values)

    def init(self, keys: int, values: int, *, generator: Generator | None = None) -> Weights:
        """Those of the inner architecture."""
        return self.inner.init(keys, values, generator=generator)

    def __call__(self, apply: Apply, key: Tensor) -> Tensor:
        """LN(inner(k))"""
        x = self.inner(apply, key)
        return F.layer_norm(x, x.shape[-1:], eps=self.eps)


@dataclass(frozen=True)
class Beside(Architecture):
    """Several memories that share a key: M(k) = (M₁(k), M₂(k), …), whose weights next to the key are one, ``w1``.

    ``parts`` are (name, architecture, width of its values); the other weights of a part carry its name.

    >>> Beside((("k", MLP(2), 8), ("rate", Matrix(), 1))).shapes(8, 9)
    {'w1': (17, 8), 'k.w2': (8, 16)}
    """

    parts: tuple[tuple[str, Architecture, int], ...]

    def shapes(self, keys: int, values: int) -> dict[str, tuple[int, int]]:
        """One wide first weight, then those behind it, part by part."""
        if values != sum(width for _, _, width in self.parts):
            raise NestlingError(f"memories side by side make {self.parts!r}, got values of width {values}.")
        each = {name: inner.shapes(keys, width) for name, inner, width in self.parts}
        wide = sum(shapes["w1"][0] for shapes in each.values())
        behind = {f"{part}.{name}": shape for part, shapes in each.items() for name, shape in shapes.items()}
        return {"w1": (wide, keys), **{name: shape for name, shape in behind.items() if not name.endswith(".w1")}}

    def init(self, keys: int, values: int, *, generator: Generator | None = None) -> Weights:
        """Those of the parts."""
        self.shapes(keys, values)
        return self.joined({name: inner.init(keys, width, generator=generator) for name, inner, width in self.parts})

    def joined(self, each: Mapping[str, Weights]) -> Weights:
        """The weights of the whole from those of the parts, (..., out, in)."""
        behind = {f"{part}.{name}": weight for part, weights in each.items() for name, weight in weights.items()}
        first = torch.cat([each[part]["w1"] for part, _, _ in self.parts], -2)
        return {"w1": first, **{name: weight for name, weight in behind.items() if not name.endswith(".w1")}}

    def firsts(self, keys: int) -> list[int]:
        """How many rows of ``w1`` each part has."""
        return [inner.shapes(keys, width)["w1"][0] for _, inner, width in self.parts]

    def __call__(self, apply: Apply, key: Tensor) -> Tensor:
        """(M₁(k), M₂(k), …)"""
        firsts = apply("w1", key).split(self.firsts(key.shape[-1]), -1)
        made = (
            inner(within(apply, part, first), key) for (part, inner, _), first in zip(self.parts, firsts, strict=True)
        )
        return torch.cat(list(made), -1)


def within(apply: Apply, part: str, first: Tensor) -> Apply:
    """``apply`` as one of several memories side by side sees it, given what ``w1`` makes of the key."""
    return lambda name, x: first if name == "w1" else apply(f"{part}.{name}", x)
