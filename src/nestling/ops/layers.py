"""Chains of layers by hand: what is read, the gradient of the memory's loss, and the derivative of both.

For y = [x +] [LN](W_L σ(… σ(W₁ x))) under ½‖y − v‖², queries and keys of a period go down together, because both meet the same
weights; only the keys' part comes up again. What is written here as one pass is, under automatic differentiation, several times
as many operations, and several derivatives of a weight's size that are then added up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from nestling.core import MLP, Matrix, Normed, Residual, Weights, linear
from nestling.core.architecture import GELU, Activation, Architecture, SiLU
from nestling.tree import state


@dataclass(frozen=True)
class Layers:
    """Linear maps with activations between them, and what stands around them."""

    names: tuple[str, ...]
    activation: Activation
    residual: bool
    eps: float | None
    """Of the layer normalisation; None: there is none."""


@state
class Seen:
    """What a period computed, for memories (N,) with C queries and C keys."""

    inputs: list[Tensor]
    """Xₗ (N, 2C, ·), what each weight meets"""
    bends: list[Tensor]
    """Zₗ (N, 2C, ·), what each activation meets"""
    normed: Tensor | None
    """(N, 2C, values)"""
    scale: Tensor | None
    """1/s (N, 2C, 1)"""
    slope: Tensor
    """r (N, C, values): ∂ℓ/∂v̂"""
    cotangents: list[Tensor]
    """δₗ (N, C, ·), ∂ℓ/∂(W x) of each weight"""
    below: list[Tensor]
    """Bₗ (N, C, ·), what comes up to each activation"""


def layers(architecture: Architecture) -> Layers | None:
    """The chain that an architecture is; None where it is another thing.

    >>> layers(Residual(Normed(MLP(4)))).names
    ('w1', 'w2')
    """
    match architecture:
        case Residual(Normed(inner, eps)):
            return _layers(inner, True, eps)
        case Residual(inner):
            return _layers(inner, True, None)
        case Normed(inner, eps):
            return _layers(inner, False, eps)
        case _:
            return _layers(architecture, False, None)


def _layers(inner: Architecture, residual: bool, eps: float | None) -> Layers | None:
    match inner:
        case Matrix():
            return Layers(("w1",), GELU(), residual, eps)
        case MLP(_, depth, activation):
            return Layers(tuple(f"w{i + 1}" for i in range(depth)), activation, residual, eps)
        case _:
            return None


class Down(NamedTuple):
    """One way down a chain."""

    prediction: Tensor
    inputs: list[Tensor]
    bends: list[Tensor]
    normed: Tensor | None
    scale: Tensor | None


def forward(chain: Layers, weights: Sequence[Tensor], x: Tensor) -> Down:
    """What the chain says to ``x`` (N, T, keys), and what came by; named as in ``Seen``."""
    inputs, bends = [x], []
    for weight in weights[:-1]:
        bends.append(product(inputs[-1], weight.mT))
        inputs.append(chain.activation(bends[-1]))
    out = product(inputs[-1], weights[-1].mT)
    normed, scale = None, None
    if chain.eps is not None:
        normed, _, scale = torch.native_layer_norm(out, out.shape[-1:], None, None, chain.eps)
        out = normed
    return Down(out + x if chain.residual else out, inputs, bends, normed, scale)


def product(rows: Tensor, matrix: Tensor) -> Tensor:
    """(N, T, ·) times (N, ·, ·): ``torch.bmm``.

    The compiler for processors makes a sum of products with a single row, and what makes the row a part of its terms: an activation is
    then computed anew for every output. Of a product that something is added to it makes none.

    >>> product(torch.ones(1, 1, 2), torch.eye(2)[None])
    tensor([[[1., 1.]]])
    """
    if rows.shape[-2] == 1 and rows.device.type == "cpu" and torch.compiler.is_compiling():
        nothing = rows.new_zeros(()).expand(rows.shape[0], 1, matrix.shape[-1])
        return torch.baddbmm(nothing, rows, matrix, beta=0)
    return torch.bmm(rows, matrix)


def read(architecture: Architecture, weights: Weights, x: Tensor) -> Tensor:
    """M(W, x) for ``x`` (B, H, T, keys) and weights (B, H, out, in), whatever the architecture is."""
    chain = layers(architecture)
    if chain is None:
        return architecture(linear(weights), x)
    return forward(chain, [weights[name].flatten(0, 1) for name in chain.names], x.flatten(0, 1)).prediction.unflatten(
        0, x.shape[:2]
    )


def evaluate(chain: Layers, weights: Sequence[Tensor], x: Tensor, value: Tensor) -> tuple[Tensor, Seen]:
    """(what the queries read (N, C, values), all that was seen) for ``x`` (N, 2C, keys), queries first; or for keys alone."""
    size = x.shape[-2] - value.shape[-2]
    predicted, inputs, bends, normed, scale = forward(chain, weights, x)
    # ∂ℓ/∂v̂ = v̂ − v
    slope = predicted[:, size:] - value
    back = slope if normed is None or scale is None else _through(slope, normed[:, size:], scale[:, size:])
    cotangents: list[Tensor] = [back]
    below: list[Tensor] = []
    for weight, bend in zip(weights[:0:-1], bends[::-1], strict=True):
        # Bₗ = Wₗ₊₁ᵀ δₗ₊₁,  δₗ = σ'(Zₗ) ⊙ Bₗ
        below.insert(0, product(cotangents[0], weight))
        cotangents.insert(0, bent(chain.activation, below[0], bend[:, size:]))
    return predicted[:, :size], Seen(inputs, bends, normed, scale, slope, cotangents, below)


class Pulled(NamedTuple):
    """Derivatives by what a period was given."""

    inputs: Tensor
    """x̄ (N, 2C, keys)"""
    values: Tensor
    """v̄ (N, C, values)"""
    pairs: list[tuple[Tensor, Tensor]]
    """(rows (N, ·, out), inputs (N, ·, in)) of each weight:  W̄ = rowsᵀ inputs"""


def pull(
    chain: Layers, weights: Sequence[Tensor], seen: Seen, read: Tensor, cotangents: list[Tensor], inputs: list[Tensor]
) -> Pulled:
    """From derivatives by what was read, by each δₗ and by each input of a key; ``cotangents`` and ``inputs`` are used up."""
    size, curved, below = read.shape[-2], [], []
    for i, bend in enumerate(seen.bends):
        keys = bend[:, size:]
        # δₗ = σ'(Zₗ) ⊙ Bₗ:  B̄ₗ = σ'(Zₗ) ⊙ δ̄ₗ,  Z̄ₗ = σ''(Zₗ) ⊙ Bₗ ⊙ δ̄ₗ;  Bₗ = Wₗ₊₁ᵀ δₗ₊₁:  δ̄ₗ₊₁ = Wₗ₊₁ B̄ₗ
        below.append(bent(chain.activation, cotangents[i], keys))
        curved.append(_curved(chain.activation, cotangents[i].mul_(seen.below[i]), keys))
        cotangents[i + 1].baddbmm_(below[i], weights[i + 1].mT)
    slope, extra = cotangents[-1], None
    if seen.normed is not None and seen.scale is not None:
        slope, extra = _pull_unnormed(slope, seen.slope, seen.normed[:, size:], seen.scale[:, size:])
    predicted = torch.cat((read, slope), -2)
    back = predicted
    if seen.normed is not None and seen.scale is not None and extra is not None:
        back = torch.cat((read, slope + extra[0]), -2)
        back = _through(back, seen.normed, seen.scale)
        # s stands in δ too:  ō −= a² ā n / d
        back[:, size:].sub_(extra[1] * seen.normed[:, size:])
    pairs: list[tuple[Tensor, Tensor]] = []
    for i in reversed(range(len(weights))):
        if i == 0:
            pairs.insert(0, (back, seen.inputs[0]))
        else:
            # Wₗ stands in Wₗ xₗ and in Wₗᵀ δₗ: one product for both.
            rows = torch.cat((back, seen.cotangents[i]), -2)
            pairs.insert(0, (rows, torch.cat((seen.inputs[i], below[i - 1]), -2)))
        back = torch.bmm(back, weights[i])
        back[:, size:].add_(inputs[i])
        if i:
            back = bent(chain.activation, back, seen.bends[i - 1])
            back[:, size:].add_(curved[i - 1])
    return Pulled(back.add_(predicted) if chain.residual else back, -slope, pairs)


def unnormed(back: Tensor, x: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """Through LN: x̄ = a (ȳ − mean ȳ − n mean(ȳ ⊙ n)) with n = a (x − mean x), from ``mean`` x and ``scale`` a = 1/s of each row.

    Differentiable again by ȳ and x, of which mean and scale are functions then (as ``torch.native_layer_norm`` gives them).

    >>> x, back = torch.tensor([[-1.0, -1.0, 1.0, 1.0]]), torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    >>> unnormed(back, x, mean=torch.zeros(1, 1), scale=torch.ones(1, 1))
    tensor([[ 0.5000, -0.5000,  0.0000,  0.0000]])
    """
    given = back.contiguous(), x.contiguous(), x.shape[-1:], mean, scale, None, None, [True, False, False]
    by: Tensor = torch.ops.aten.native_layer_norm_backward(*given)[0]
    return by


def _through(back: Tensor, normed: Tensor, scale: Tensor) -> Tensor:
    """``unnormed`` where only n and a are kept: x = n, whose mean is 0 and s is 1, and then a"""
    return unnormed(back, normed, torch.zeros_like(scale), torch.ones_like(scale)).mul_(scale)


def _pull_unnormed(back: Tensor, slope: Tensor, normed: Tensor, scale: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Through δ = a (r − mean r − n mean(r ⊙ n)): r̄, and (n̄, a² ā / d), because n and a are functions of the prediction."""
    # The map from r to δ is its own transpose.
    pulled = _through(back, normed, scale)
    along, across = (slope * normed).mean(-1, keepdim=True), (back * normed).mean(-1, keepdim=True)
    # n̄ = −a (δ̄ mean(r ⊙ n) + r mean(δ̄ ⊙ n))
    by_normed = (back * along).addcmul_(slope, across).mul_(-scale)
    # ā = ⟨δ̄, δ⟩ / a = ⟨r̄, r⟩ / a
    by_scale = (pulled * slope).mean(-1, keepdim=True) * scale
    return pulled, (by_normed, by_scale)


def bent(activation: Activation, back: Tensor, x: Tensor) -> Tensor:
    """σ'(x) ⊙ ȳ"""
    match activation:
        case GELU():
            # torch's own kernel, which is differentiable again
            y: Tensor = torch.ops.aten.gelu_backward(back, x)
            return y
        case SiLU():
            # σ = x s, σ' = s (1 + x (1 − s)), with s = sigmoid(x)
            s = torch.sigmoid(x)
            return back * (s * (1 + x * (1 - s)))


def _curved(activation: Activation, back: Tensor, x: Tensor) -> Tensor:
    """σ''(x) ⊙ ȳ, in the place of ``back``"""
    match activation:
        case GELU():
            # σ'' = φ(x) (2 − x²)
            square = x * x
            density = (square * -0.5).exp_().mul_(1 / math.sqrt(2 * math.pi))
            return back.mul_(density).mul_(square.neg_().add_(2.0))
        case SiLU():
            # σ'' = s (1 − s) (2 + x (1 − 2s))
            s = torch.sigmoid(x)
            return back.mul_(s * (1 - s) * (2 + x * (1 - 2 * s)))
