"""Models by name: sizes, changes, and what is refused."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import nestling as nl
from nestling.core import L2, MLP, Matrix, Memory, parse
from nestling.errors import NestlingError
from nestling.recipes import SIZES, configure
from nestling.recipes.build import _names
from nestling.recipes.sizes import EXPAND, NOMINAL
from tests.laws.subjects import small


@pytest.mark.parametrize("recipe", nl.recipes())
@pytest.mark.parametrize("size", SIZES)
def test_a_size_sets_the_shape_of_every_recipe(recipe, size):
    config = configure(recipe, size, 300)
    expected = SIZES[size]
    assert (config.dim, config.layers, config.heads) == (expected.dim, expected.layers, expected.heads)
    assert (config.recipe, config.size, config.vocab_size) == (recipe, size, 300)


@pytest.mark.parametrize(("size", "named"), NOMINAL.items())
@pytest.mark.parametrize("recipe", nl.recipes())
def test_a_size_holds_what_its_name_says(recipe, size, named):
    """Within 3 %, with the papers' vocabulary of 32k and a head of its own."""
    with torch.device("meta"):
        model = nl.build(recipe, size, 32_000)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(named, rel=0.03)


@pytest.mark.parametrize("recipe", nl.recipes())
def test_the_size_for_a_desk_has_one_to_three_million(recipe):
    assert 1e6 < sum(p.numel() for p in nl.build(recipe).parameters()) < 3e6


@pytest.mark.parametrize("recipe", nl.recipes())
def test_a_configuration_is_a_value_that_evaluates_back(recipe):
    config = configure(recipe, **small(recipe))
    assert parse(repr(config), _names()) == config
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.dim = 3
    assert nl.build(recipe, **small(recipe)).config == configure(recipe, **small(recipe))


def test_a_change_may_be_a_value_or_its_source():
    memory = Memory(MLP(2, 3), L2(), period=4)
    assert configure("titans_lmm", memory=memory) == configure("titans_lmm", memory=repr(memory))
    assert configure("titans_lmm", dim="96", tied="False") == configure("titans_lmm", dim=96, tied=False)


def test_another_memory_is_another_model():
    model = nl.build("titans_lmm", memory=Memory(Matrix(), period=2), **small("titans_lmm"))
    assert {level.period for level in nl.describe(model).levels if level.unit == "token"} == {2}


BAD = [
    (("hop",), {}, "unknown recipe 'hop': use one of transformer, retnet, .*hope"),
    (("hope", "huge"), {}, "unknown size 'huge': use one of tiny"),
    (("hope",), {"vocab_size": 0}, "vocab_size"),
    (("hope",), {"windo": 3}, "hope has no field 'windo': use one of conv, dim"),
    (("transformer",), {"dim": 30, "heads": 4}, "got dim=30, heads=4"),
    (("hope",), {"heads": 0}, "heads is a whole number ≥ 1, got 0"),
    (("hope",), {"layers": -1}, "layers is a whole number ≥ 1, got -1"),
    (("hope",), {"dim": 32.5}, "dim is a whole number ≥ 1, got 32.5"),
    (("hope",), {"expand": 0}, "expand is a number above 0, got 0"),
    (("hope",), {"levels": ()}, "at least one level"),
    (("hope",), {"period": 0}, "whole number of writes"),
    (("transformer",), {"window": 0}, "window ≥ 1, got 0"),
    (("titans_lmm",), {"conv": 0}, "at least one tap"),
    (("titans_lmm",), {"memory": "MLP()"}, "memory is a Memory"),
    (("titans_lmm",), {"memory": "Memory(MLP("}, "cannot read"),
    (("titans_lmm",), {"memory": "__import__('os')"}, "cannot read"),
]


@pytest.mark.parametrize(("names", "changes", "message"), BAD)
def test_what_cannot_be_built_is_refused_in_one_line(names, changes, message):
    with pytest.raises(NestlingError, match=message) as raised:
        nl.build(*names, **changes)
    assert "\n" not in str(raised.value)


def test_every_recipe_has_the_papers_sizes():
    assert list(EXPAND) == nl.recipes()
    assert configure("transformer", "170m", expand=2, tied=True).expand == 2
