"""A memory written with many examples at once: one step on the sum of their objectives."""

from __future__ import annotations

import pytest
import torch

from nestling.core import L2, MLP, Chain, Decay, Delta, Descend, DotProduct, Erase, Gates, Memory, Momentum

KEYS = 3


def weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: each.double() for name, each in MLP(2).init(KEYS, KEYS, generator=generator).items()}


@pytest.mark.parametrize("objective", [L2(), DotProduct()])
@pytest.mark.parametrize("retention", [Decay(), Delta(), Erase()])
def test_a_write_of_many_is_a_loop_over_them(objective, retention) -> None:
    """A ← α A − η Σ ∇ℓ, and A Σ x xᵀ erased, by autograd and one example after the other; the rule is used once."""
    memory = Memory(MLP(2), objective, retention, Chain((Descend(), Momentum())))
    state, trace, live = memory.init(weights()), dict.fromkeys(weights(), 0.0), weights()
    gates, generator = Gates(lr=0.1, retain=0.9, momentum=0.5), torch.Generator().manual_seed(1)
    for _ in range(4):
        k, v = (torch.randn(5, KEYS, generator=generator, dtype=torch.float64) for _ in range(2))
        state = memory.write(state, k, v, gates)
        live = {name: w.detach().requires_grad_() for name, w in live.items()}
        hidden = [torch.nn.functional.gelu(live["w1"] @ key) for key in k]
        said = [live["w2"] @ h for h in hidden]
        parts = (0.5 * (a - b).square().sum() if objective == L2() else -(a @ b) for a, b in zip(said, v, strict=True))
        slopes = torch.autograd.grad(sum(parts), list(live.values()))
        for (name, w), slope, inputs in zip(live.items(), slopes, (list(k), hidden), strict=True):
            trace[name] = 0.5 * trace[name] - 0.1 * slope
            erased = sum(0.1 * torch.outer(w @ x, x) for x in inputs)
            match retention:
                case Decay():
                    after = 0.9 * w
                case Delta():
                    after = 0.9 * w - erased
                case Erase():
                    after = 0.9 * (w - erased)
            live[name] = (after + trace[name]).detach()
            torch.testing.assert_close(state.dual[name], live[name], rtol=1e-11, atol=1e-11)


def test_one_example_is_a_batch_of_one() -> None:
    memory = Memory(MLP(2), L2(), Delta(), period=2)
    one = many = memory.init(weights())
    for t in range(5):
        k, v = torch.full((KEYS,), 0.1 * t, dtype=torch.float64), torch.ones(KEYS, dtype=torch.float64)
        one, many = memory.write(one, k, v, Gates(lr=0.1)), memory.write(many, k[None], v[None], Gates(lr=0.1))
    for name in one.dual:
        torch.testing.assert_close(one.dual[name], many.dual[name], rtol=1e-12, atol=1e-12)
