"""A long sequence in stretches, of which the backward pass holds one at a time: activation checkpointing along the sequence.

Kept are the inputs and outputs of T tokens, and the states between stretches of L; what a stretch computes in between is computed
again when its turn comes, which makes a training step a third dearer, at every T alike::

    bytes  =  T · (inputs + outputs)  +  T / L · state  +  what L tokens need

``torch.utils.checkpoint`` does not do here: memories take gradients inside their forward pass, and each would run it again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import nestling.tree as tree
from nestling.errors import NestlingError

Rebuild = Callable[[Sequence[Tensor]], Any]


def stretches(module: nn.Module, inputs: Any, state: Any, length: int) -> tuple[list[Any], Any]:
    """Run ``module`` over ``inputs``, a tree of tensors (B, T, ...), by ``length`` tokens; the outputs of the stretches, and the last state.

    ``module``: (inputs, state) -> (output, state), as every layer and model is, without dropout: it is called twice. The gradients are
    those of one call over all tokens: they pass through the states, nothing is cut off.

    Raises:
        NestlingError: ``length`` is below 1; a second derivative is asked for.

    >>> from nestling.core import MLP, Memory
    >>> from nestling.nn import MemoryLayer
    >>> layer, x = MemoryLayer(32, heads=2, memory=Memory(MLP(), period=16)), torch.randn(1, 100, 32)
    >>> outputs, state = stretches(layer, x, None, length=48)
    >>> [y.shape[1] for y in outputs], torch.allclose(torch.cat(outputs, 1), layer(x)[0], atol=1e-5)
    ([48, 48, 4], True)
    """
    if length < 1:
        raise NestlingError(f"a stretch has at least 1 token, got length={length}: give the tokens to hold at once.")
    leaves, rebuild = tree.flatten(inputs)
    outputs = []
    # Split at once: the derivative of a slice would be a whole sequence of zeros, for every stretch.
    for piece in zip(*(leaf.split(length, 1) for leaf in leaves), strict=True):
        output, state = _stretch(module, rebuild(piece), state)
        outputs.append(output)
    return outputs, state


def _stretch(module: nn.Module, inputs: Any, state: Any) -> tuple[Any, Any]:
    if not torch.is_grad_enabled():
        return module(inputs, state)
    leaves, rebuild = tree.flatten((inputs, state))
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    device = leaves[0].device.type
    mixed = torch.autocast(device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device))
    plan = _Plan(module, rebuild, len(leaves), mixed)
    found = _Again.apply(plan, *leaves, *parameters)
    assert plan.after is not None
    return plan.after(found)


@dataclass
class _Plan:
    module: nn.Module
    rebuild: Rebuild
    given: int
    """Leaves of inputs and state; parameters come after them."""
    mixed: torch.autocast
    after: Rebuild | None = None
    """Output and state from their leaves, known when they were computed."""


class _Again(torch.autograd.Function):
    """A stretch as one node of the graph, which keeps what it was given."""

    @staticmethod
    def forward(ctx: Any, plan: _Plan, *leaves: Tensor) -> tuple[Tensor, ...]:
        found, plan.after = tree.flatten(plan.module(*plan.rebuild(leaves[: plan.given])))
        ctx.plan = plan
        ctx.save_for_backward(*leaves)
        found = [leaf.clone() if any(leaf is given for given in leaves) else leaf for leaf in found]
        ctx.mark_non_differentiable(*(leaf for leaf in found if not leaf.is_floating_point()))
        return tuple(found)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise NestlingError("stretches have no second derivative: call the module over all tokens at once.")
        plan, leaves, wanted = ctx.plan, ctx.saved_tensors, ctx.needs_input_grad[1:]
        given = [leaf.detach().requires_grad_(wants) for leaf, wants in zip(leaves[: plan.given], wanted, strict=False)]
        with torch.enable_grad(), plan.mixed:
            found = tree.leaves(plan.module(*plan.rebuild(given)))
        pairs = [(leaf, grad) for leaf, grad in zip(found, grads, strict=True) if leaf.requires_grad]
        asked = [leaf for leaf, wants in zip((*given, *leaves[plan.given :]), wanted, strict=True) if wants]
        slopes = iter(torch.autograd.grad([p[0] for p in pairs], asked, [p[1] for p in pairs], allow_unused=True))
        return None, *(next(slopes) if wants else None for wants in wanted)
