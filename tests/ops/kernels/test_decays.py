"""The tables of momentum by a kernel: those of ``ops.coefficients`` in float64, and their derivatives."""

from __future__ import annotations

import pytest
import torch

from nestling.core import Chain, Descend, Gates, Momentum
from nestling.ops.coefficients import table
from nestling.ops.kernels.decays_op import momentum_table


@pytest.mark.parametrize(("chunk", "length"), [(10, 13), pytest.param(64, 50, marks=pytest.mark.slow)])
def test_tables_equal_those_of_torch(chunk, length, kernels, poisoned):
    _same(chunk, length, "cpu")


@pytest.mark.gpu
@pytest.mark.parametrize(("chunk", "length"), [(16, 4096), (64, 1000), (10, 1001)])
def test_real_shapes(chunk, length, poisoned):
    _same(chunk, length, "cuda")


def _same(chunk, length, device):
    blocks = -(-length // chunk)
    drawn = torch.rand(3, 2, blocks, chunk, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    gates = [
        low + (high - low) * each
        for each, (low, high) in zip(drawn, ((0.01, 0.3), (0.7, 1.0), (0.3, 0.9)), strict=True)
    ]
    filled = (torch.arange(blocks * chunk) < length).unflatten(0, (blocks, chunk))
    given = [gate.requires_grad_() for gate in gates]
    expected = _parts(table(Chain((Descend(), Momentum())), Gates(*given), filled))
    leaves = [gate.detach().to(device, torch.float32).requires_grad_() for gate in gates]
    got = _parts(momentum_table(leaves[0], leaves[1].log(), leaves[2].log(), length))
    probes = [torch.randn_like(each) for each in expected]
    for tables, inputs in ((expected, given), (got, leaves)):
        total = torch.stack([(each * probe.to(each)).sum() for each, probe in zip(tables, probes, strict=True)]).sum()
        tables.extend(torch.autograd.grad(total, inputs))
    for a, b in zip(got, expected, strict=True):
        assert (a.detach().cpu() - b.detach()).norm() <= 1e-5 * b.norm()


def _parts(made):
    return [made.start, made.writes, made.trace, made.trace_start, made.trace_writes]
