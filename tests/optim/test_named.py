"""The named optimizers: step for step those of torch, and the memories that the paper says they are."""

from __future__ import annotations

import pytest
import torch

from nestling import optim
from tests.optim.problem import follow, gradients, loss, network, same, train, trajectory

T = torch.optim
PAIRS = [
    (lambda p: optim.SGD(p, lr=0.1), lambda p: T.SGD(p, lr=0.1)),
    (
        lambda p: optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.05),
        lambda p: T.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.05),
    ),
    (
        lambda p: optim.SGD(p, lr=0.1, momentum=0.8, kind="nesterov"),
        lambda p: T.SGD(p, lr=0.1, momentum=0.8, nesterov=True),
    ),
    (lambda p: optim.Adam(p, lr=0.02), lambda p: T.Adam(p, lr=0.02)),
    (
        lambda p: optim.Adam(p, lr=0.02, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.1),
        lambda p: T.Adam(p, lr=0.02, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.1),
    ),
    (
        lambda p: optim.AdamW(p, lr=0.02, betas=(0.9, 0.95), weight_decay=0.3),
        lambda p: T.AdamW(p, lr=0.02, betas=(0.9, 0.95), weight_decay=0.3),
    ),
    (lambda p: optim.AdaGrad(p, lr=0.1), lambda p: T.Adagrad(p, lr=0.1)),
    (
        lambda p: optim.AdaGrad(p, lr=0.1, weight_decay=0.1, eps=1e-3),
        lambda p: T.Adagrad(p, lr=0.1, weight_decay=0.1, eps=1e-3),
    ),
    (lambda p: optim.RMSProp(p, lr=0.01), lambda p: T.RMSprop(p, lr=0.01)),
    (
        lambda p: optim.RMSProp(p, lr=0.01, beta=0.9, momentum=0.5, weight_decay=0.1),
        lambda p: T.RMSprop(p, lr=0.01, alpha=0.9, momentum=0.5, weight_decay=0.1),
    ),
]


@pytest.mark.equation("Nested Learning", 1)
@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_fifty_steps_are_those_of_torch(ours, theirs) -> None:
    same(trajectory(lambda model: ours(model.parameters())), trajectory(lambda model: theirs(model.parameters())))


@pytest.mark.equation("Nested Learning", 42)
@pytest.mark.parametrize("kind", ["nesterov", "heavy ball"])
@pytest.mark.parametrize("shape", [(6, 4), (4, 6)])
def test_muon_is_that_of_torch_without_its_rounding(kind: str, shape: tuple[int, int], monkeypatch) -> None:
    """torch iterates in bfloat16 whatever it is given; where that cast is left out, the two are equal."""
    monkeypatch.setattr(torch.Tensor, "bfloat16", lambda tensor: tensor.clone())
    given = gradients(50, *shape)
    theirs = follow(lambda p: T.Muon(p, lr=0.02, weight_decay=0.2, nesterov=kind == "nesterov"), given)
    same(follow(lambda p: optim.Muon(p, lr=0.02, weight_decay=0.2, kind=kind), given), theirs)


def test_muon_with_the_step_of_adamw_is_that_of_torch(monkeypatch) -> None:
    monkeypatch.setattr(torch.Tensor, "bfloat16", lambda tensor: tensor.clone())
    given = gradients(50, 6, 4)
    theirs = follow(lambda p: T.Muon(p, lr=0.02, adjust_lr_fn="match_rms_adamw"), given)
    same(follow(lambda p: optim.Muon(p, lr=0.02, rms=0.2), given), theirs)


def test_muon_is_that_of_torch_up_to_its_rounding() -> None:
    given = gradients(50, 8, 5)
    ours, theirs = (follow(lambda p, of=of: of.Muon(p, lr=0.02), given)[-1] for of in (optim, T))
    assert 1e-6 < float((ours - theirs).norm() / theirs.norm()) < 0.05


def test_lion_is_its_algorithm() -> None:
    given, w, m, expected = gradients(50, 3, 4), 0.0, 0.0, []
    for g in given:
        c = 0.8 * m + 0.2 * g
        w = w - 0.03 * (torch.sign(c) + 0.1 * w)
        m = 0.95 * m + 0.05 * g
        expected.append(w)
    same(follow(lambda p: optim.Lion(p, lr=0.03, betas=(0.8, 0.95), weight_decay=0.1), given), expected)


def argmin(past: list[torch.Tensor], weights: list[float], ridge: float) -> torch.Tensor:
    """NL eq. 101: argmin_m Σᵢ wᵢ ‖m ⊙ gᵢ − P‖² + λ‖m‖² with P = √Σ wᵢ gᵢ², by least squares, entry by entry."""
    g = torch.stack([gradient.flatten() for gradient in past])
    w = torch.tensor(weights, dtype=g.dtype)
    target = (w[:, None] * g.square()).sum(0).sqrt()
    best = []
    for entry in range(g.shape[1]):
        rows = torch.cat([w.sqrt() * g[:, entry], torch.tensor([ridge**0.5], dtype=g.dtype)])
        wanted = torch.cat([w.sqrt() * target[entry], torch.zeros(1, dtype=g.dtype)])
        best.append(torch.linalg.lstsq(rows[:, None], wanted[:, None]).solution.squeeze())
    return torch.stack(best).view_as(past[0])


@pytest.mark.equation("Nested Learning", 100, 101, 102, 103, 104, 105)
def test_adam_is_the_closed_form_of_a_memory() -> None:
    """NL eqs 101-105 with examples that are forgotten as βⁱ: the memory's minimum is m̂/√v̂."""
    beta, given, w, expected = 0.9, gradients(50, 3, 2), 0.0, []
    for t in range(1, len(given) + 1):
        ages = [(1 - beta) * beta ** (t - i) / (1 - beta**t) for i in range(1, t + 1)]
        w = w - 0.01 * argmin(given[:t], ages, ridge=0.0)
        expected.append(w)
    same(follow(lambda p: optim.Adam(p, lr=0.01, betas=(beta, beta), eps=0.0), given), expected, 1e-9)


@pytest.mark.equation("Nested Learning", 106, 107, 108, 109, 110, 111)
def test_adagrad_is_the_closed_form_of_a_memory_that_forgets_nothing() -> None:
    """NL eqs 101-102 and 111 by entry: all examples weigh the same, M = Σg, H = Σg²."""
    given, w, expected = gradients(50, 3, 2), 0.0, []
    for t in range(1, len(given) + 1):
        w = w - 0.01 * argmin(given[:t], [1.0] * t, ridge=0.0)
        expected.append(w)
    same(follow(lambda p: optim.AdaGrad(p, lr=0.01, momentum=1.0, eps=0.0), given), expected, 1e-9)


@pytest.mark.parametrize("make", [optim.SGD, optim.Adam, optim.AdamW, optim.AdaGrad, optim.RMSProp, optim.Lion])
def test_each_learns(make) -> None:
    model = network(torch.float32)
    optimizer = make(model.parameters(), lr=0.01)
    before = loss(model, 0).item()
    for _ in range(100):
        train(model, optimizer, range(1))
    assert loss(model, 0).item() < before
