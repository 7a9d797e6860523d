"""Retentions: mirror maps that invert, and what a token does to the dual besides its write."""

from __future__ import annotations

import pytest
import torch

from nestling.core import KL, L2, Decay, Delta, ElasticNet, GatedDelta, Gates, Lq, Matrix, Memory
from nestling.errors import NestlingError
from tests.core.values import RETENTIONS


def weight(retention, seed: int = 0) -> torch.Tensor:
    """In the set that the retention allows."""
    w = torch.randn(3, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return retention.inside(w)


@pytest.mark.parametrize("retention", RETENTIONS, ids=repr)
def test_the_maps_are_inverse(retention):
    w = weight(retention)
    torch.testing.assert_close(retention.primal(retention.dual(w)), w, rtol=1e-12, atol=1e-12)
    assert retention.dual(w).shape == w.shape


@pytest.mark.parametrize("retention", [*RETENTIONS, Lq(6.0)], ids=repr)
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_any_dual_has_a_primal_that_maps_back(retention, size):
    """W → A → W stands for every W that any A leads to."""
    a = size * torch.randn(3, 5, dtype=torch.float64)
    w = retention.primal(a)
    assert bool(torch.isfinite(w).all())
    if isinstance(retention, KL) and size > 10:
        return  # the smallest entries of a saturated softmax are below what a logarithm brings back
    torch.testing.assert_close(retention.primal(retention.dual(w)), w, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("retention", RETENTIONS, ids=repr)
def test_zero_has_finite_maps_and_slopes(retention):
    for map in (retention.primal, retention.dual):
        zero = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
        out = map(zero)
        (grad,) = torch.autograd.grad(out.sum(), zero)
        assert bool(torch.isfinite(out).all()) and bool(torch.isfinite(grad).all())


def test_decay_forgets():
    a = weight(Decay())
    torch.testing.assert_close(Decay().decay(a, Gates(retain=0.9), torch.ones(5)), 0.9 * a)


def test_delta_erases_what_the_input_would_have_read():
    """A(αI - ηxxᵀ): right multiplication; a unit input at η = α = 1 reads nothing afterwards."""
    a, x = weight(Delta()), torch.nn.functional.normalize(torch.randn(5, dtype=torch.float64), dim=0)
    eye = torch.eye(5, dtype=torch.float64)
    erased = Delta().decay(a, Gates(lr=0.3, retain=0.9), x)
    torch.testing.assert_close(erased, a @ (0.9 * eye - 0.3 * torch.outer(x, x)))
    gone = Delta().decay(a, Gates(lr=1.0), x) @ x
    assert gone.abs().max() < 1e-14


def test_gated_delta_forgets_before_it_looks_and_delta_after():
    """One write at W: GatedDelta takes the gradient at αW, Decay and Delta at W."""
    w, k, v = weight(Delta()), torch.randn(5, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    gates = Gates(lr=0.3, retain=0.5)

    def written(retention) -> torch.Tensor:
        memory = Memory(Matrix(), L2(), retention)
        return memory.write(memory.init({"w1": w}), k, v, gates).dual["w1"]

    torch.testing.assert_close(written(GatedDelta()), 0.5 * w - 0.3 * torch.outer(0.5 * w @ k - v, k))
    torch.testing.assert_close(written(Decay()), 0.5 * w - 0.3 * torch.outer(w @ k - v, k))
    erased = 0.5 * w - 0.3 * torch.outer(w @ k, k)
    torch.testing.assert_close(written(Delta()), erased - 0.3 * torch.outer(w @ k - v, k))


def test_kl_stays_on_the_simplex():
    memory = Memory(Matrix(), L2(), KL(2.5))
    state = memory.init({"w1": weight(KL(2.5))})
    for step in range(50):
        k, v = torch.randn(5, dtype=torch.float64), 10 * torch.randn(3, dtype=torch.float64)
        state = memory.write(state, k, v, Gates(lr=3.0, retain=0.7 + 0.005 * step))
        w = memory.primal(state.dual)["w1"]
        assert bool((w >= 0).all()) and bool(torch.isfinite(state.dual["w1"]).all())
        torch.testing.assert_close(w.sum(-1), torch.full((3,), 2.5, dtype=torch.float64))


def test_kl_without_retention_forgets_to_the_uniform():
    torch.testing.assert_close(
        KL().primal(KL().decay(torch.randn(2, 4), Gates(retain=0.0), torch.ones(4))), torch.full((2, 4), 0.25)
    )


def test_elastic_net_soft_thresholds():
    a = torch.tensor([[-3.0, -0.5, -0.2, 0.0, 0.2, 0.5, 3.0]])
    torch.testing.assert_close(
        ElasticNet(0.2).primal(a), torch.tensor([[-2.8, -0.3, 0.0, 0.0, 0.0, 0.3, 2.8]]), rtol=1e-6, atol=1e-6
    )
    torch.testing.assert_close(ElasticNet(0.2).dual(torch.tensor([[-1.0, 0.0, 1.0]])), torch.tensor([[-1.2, 0.0, 1.2]]))


@pytest.mark.parametrize("q", [1.5, 2.0, 2.5, 4.0])
def test_lq_takes_its_norm_over_the_whole_weight(q):
    """W = A/‖A‖_q^(q-2), so ‖W‖_q = ‖A‖_q^(3-q)."""
    a = torch.randn(3, 5, dtype=torch.float64)
    norm = a.abs().pow(q).sum().pow(1 / q)
    torch.testing.assert_close(Lq(q).primal(a), a / norm ** (q - 2))
    w = Lq(q).primal(a)
    torch.testing.assert_close(w.abs().pow(q).sum().pow(1 / q), norm ** (3 - q))
    stacked = torch.stack((a, 2 * a))
    torch.testing.assert_close(Lq(q).primal(stacked)[1], Lq(q).primal(2 * a), msg="one norm for each memory")


@pytest.mark.parametrize("q", [3, 3.0, 1.0, 0.5, -2.0])
def test_lq_refuses_what_has_no_inverse(q):
    with pytest.raises(NestlingError, match="q > 1 and q ≠ 3"):
        Lq(q)
