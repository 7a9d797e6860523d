"""Other types of numbers, and what a model knows before it has learnt anything."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F

import nestling as nl
import nestling.tree as tree
from tests.laws.subjects import EVERYTHING, RECIPES, draw, model, small

LENGTH = 45


@pytest.mark.parametrize("name", EVERYTHING)
def test_float32_is_close_to_float64(name):
    exact = model(name)
    tokens = draw(exact, 2, LENGTH)
    with torch.no_grad():
        expected, _ = exact(tokens)
        single = copy.deepcopy(exact).float()
        got, state = single(tokens)
    assert got.dtype == torch.float32
    assert {leaf.dtype for leaf in tree.leaves(state) if leaf.is_floating_point()} <= {torch.float32}
    assert (got - expected).norm() <= 1e-4 * expected.norm()


@pytest.mark.parametrize("name", EVERYTHING)
def test_bfloat16_autocast_is_finite_and_near(name):
    single = copy.deepcopy(model(name)).float()
    tokens = draw(single, 2, LENGTH)
    expected, _ = single(tokens)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits, state = single(tokens)
        more, state = single(tokens, state)
        loss = F.cross_entropy(more.flatten(0, 1), tokens.flatten())
    loss.backward()
    assert {leaf.dtype for leaf in tree.leaves(state) if leaf.is_floating_point()} <= {torch.float32}
    assert all(bool(torch.isfinite(leaf).all()) for leaf in (logits, more, *tree.leaves(state)))
    grads = [p.grad for p in single.parameters() if p.grad is not None]
    assert grads and all(bool(torch.isfinite(grad).all()) for grad in grads)
    assert (logits.float() - expected).norm() <= 0.15 * expected.norm()


@pytest.mark.parametrize("name", EVERYTHING)
def test_a_model_in_bfloat16_streams(name):
    """Weights in half precision too; what a memory accumulates stays in float32 (0.999 has no bfloat16)."""
    half = copy.deepcopy(model(name)).bfloat16()
    tokens = draw(half, 2, LENGTH)
    with torch.no_grad():
        expected, _ = model(name)(tokens)
        first, state = half(tokens)
        second, state = half(tokens, state)
    assert first.dtype == second.dtype == torch.bfloat16
    assert all(bool(torch.isfinite(leaf).all()) for leaf in (first, second, *tree.leaves(state)))
    assert (first.double() - expected).norm() <= 0.2 * expected.norm()
    memories = [leaf for path, leaf in tree.items(state) if ".dual." in path or ".anchor." in path or ".rule." in path]
    assert {leaf.dtype for leaf in memories if leaf.is_floating_point()} <= {torch.float32}


@pytest.mark.parametrize("name", RECIPES)
def test_an_untrained_model_knows_nothing(name):
    """The first loss is ln V within 5 %: no token is likelier than another."""
    lm = nl.build(name)
    tokens = torch.randint(0, 256, (2, 65))
    with torch.no_grad():
        logits, _ = lm(tokens[:, :-1])
    first = float(F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()))
    assert first == pytest.approx(math.log(256), rel=0.05)


@pytest.mark.parametrize("name", RECIPES)
def test_one_seed_builds_one_model(name):
    built = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        built.append(nl.build(name, **small(name)))
    same, again, other = (dict(lm.named_parameters()) for lm in built)
    assert all(torch.equal(same[path], again[path]) for path in same)
    assert any(not torch.equal(same[path], other[path]) for path in same)
    assert built[0].fingerprint == built[2].fingerprint, "a fingerprint is of the kind of model, not of its values"


@pytest.mark.parametrize("name", RECIPES)
def test_a_few_steps_of_training_lower_the_loss(name):
    """A pattern of period five, learnt by heart: gradients point downhill through every part."""
    torch.manual_seed(0)
    lm = nl.build(name, vocab_size=8, **small(name))
    tokens = torch.tensor([0, 3, 1, 4, 2]).repeat(2, 8)
    optimizer = torch.optim.AdamW(lm.parameters(), lr=1e-2)
    losses = []
    for _ in range(12):
        logits, _ = lm(tokens[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0], losses
