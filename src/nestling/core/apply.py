"""Interpreters of ``apply(name, x)``, "apply the named weight to x": one way to write an architecture, several ways to run it.

``linear``  the reference: W x.
``tape``    the inner gradient: W x + ε, with x recorded. The gradient of W is then a pair, (∂ℓ/∂ε) ⊗ x.

The third one, the chunk-parallel form, lives in ``ops.chunk``. All act on the last axis, so that what is written for one
example serves any number of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

from torch import Tensor

from nestling.errors import NestlingError

Weights: TypeAlias = dict[str, Tensor]
Apply: TypeAlias = Callable[[str, Tensor], Tensor]


def linear(weights: Mapping[str, Tensor]) -> Apply:
    """Apply a weight as it is: y = W x, with W of shape (..., out, in) and x of shape (in,) or (..., n, in)."""

    def apply(name: str, x: Tensor) -> Tensor:
        return x @ weights[name].mT

    return apply


def tape(weights: Mapping[str, Tensor], nudges: Mapping[str, Tensor], inputs: Weights) -> Apply:
    """Apply y = W x + ε and record x in ``inputs``; the derivative by ε is the cotangent of y."""

    def apply(name: str, x: Tensor) -> Tensor:
        if name in inputs:
            raise NestlingError(f"weight {name!r} is applied twice in one read; give each use its own weight.")
        inputs[name] = x
        return x @ weights[name].mT + nudges[name]

    return apply
