"""What the tests of kernels share: inputs, everything that can differ, and how far it may."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import nestling.tree as tree
from nestling.core import Gates, Memory
from nestling.ops import Path, Reference, scan

FLOAT32, BFLOAT16 = 1e-5, 1e-2


def draw(
    memory: Memory,
    length: int,
    shape: tuple[int, int] = (1, 1),
    widths: tuple[int, int] = (16, 24),
    strength: float = 1.0,
) -> Any:
    """Initial weights, q, k, v and gates in float64, for ``shape`` = (batch, heads) and ``widths`` of keys and values.

    ``strength``: of learning and forgetting. A deep memory that forgets all it began with magnifies every rounding error.
    """
    generator = torch.Generator().manual_seed(length)

    def normal(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=generator, dtype=torch.float64)

    def gate(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(*shape, length, generator=generator, dtype=torch.float64)

    q, k = (torch.nn.functional.normalize(normal(*shape, length, widths[0]), dim=-1) for _ in range(2))
    shapes = memory.architecture.shapes(*widths)
    weights = {name: normal(shape[1], *each) * each[1] ** -0.5 for name, each in shapes.items()}
    return (
        weights,
        q,
        k,
        normal(*shape, length, widths[1]),
        Gates(strength * gate(0.01, 0.4), 1 - strength * gate(0.0, 0.3), gate(0.3, 0.9)),
    )


def answers(memory: Memory, given: Any, path: Path, like: Tensor) -> tuple[list[Tensor], Tensor]:
    """Output, state and the gradient of a random functional of both by every input, computed as ``like`` is; and the phase."""
    given = tree.map(lambda x: x.to(like).requires_grad_(), given)
    weights, q, k, v, gates = given
    y, state = scan(memory, weights, q, k, v, gates, path=path)
    felt = [leaf for leaf in (y, *tree.leaves(state)) if leaf.is_floating_point()]
    generator = torch.Generator().manual_seed(9)
    probes = [torch.randn(leaf.shape, generator=generator, dtype=torch.float64).to(leaf) for leaf in felt]
    total = torch.stack([(leaf * probe).sum() for leaf, probe in zip(felt, probes, strict=True)]).sum()
    wanted = tree.leaves(given)
    grads = torch.autograd.grad(total, wanted, allow_unused=True)
    found = [torch.zeros_like(w) if g is None else g for w, g in zip(wanted, grads, strict=True)]
    return [x.detach() for x in (*felt, *found)], state.phase


def assert_path(memory: Memory, given: Any, path: Path, like: Tensor, tolerance: float = FLOAT32) -> None:
    """``path`` gives what the reference gives in float64, relative to the norm of each tensor or, where that is less, to one."""
    expected, phase = answers(memory, given, Reference(), torch.zeros((), dtype=torch.float64))
    got, reached = answers(memory, given, path, like)
    assert torch.equal(reached.cpu(), phase)
    assert len(got) == len(expected)
    for place, (a, b) in enumerate(zip(got, expected, strict=True)):
        worst = float((a.double().cpu() - b).norm() / b.norm().clamp_min(1.0))
        assert worst <= tolerance, f"tensor {place} of shape {tuple(b.shape)}: {worst:.1e}"
