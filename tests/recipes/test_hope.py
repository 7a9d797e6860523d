"""Hope's recipes: levels, wirings and ablations as values."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import nestling as nl
from nestling.core import Level, parse
from nestling.nn import Independent, Nested
from nestling.nn.cms import levels_of
from nestling.recipes.build import _names
from nestling.recipes.hope import ABLATIONS
from tests.laws.subjects import small

RECIPES = ("hope", "hope_attention", "hope_gated")


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("number", [1, 3, 5])
def test_any_number_of_levels(recipe, number):
    levels = tuple(Level(f"level {i}", 2**i) for i in range(number))
    model = nl.build(recipe, **small(recipe, levels=levels, layers=1))
    assert [level.period for level in levels_of(model)] == [2**i for i in range(number)]
    assert parse(repr(model.config), _names()) == model.config


@pytest.mark.parametrize("wiring", [Nested(), Independent()])
@pytest.mark.parametrize("recipe", ["hope", "hope_attention"])
def test_the_wiring_is_a_value_and_every_level_is_learnt(recipe, wiring):
    model = nl.build(recipe, **small(recipe, wiring=repr(wiring)))
    assert all(block.channel.wiring == wiring for block in model.blocks)
    tokens = torch.randint(0, 256, (2, 20))
    F.cross_entropy(model(tokens)[0][:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
    assert all(bool(p.grad.any()) for name, p in model.named_parameters() if ".channel." in name)


def test_every_row_of_table_6_is_a_value_and_a_model_of_its_own():
    tokens, seen = torch.randint(0, 256, (1, 20)), []
    for row, changes in ABLATIONS.items():
        torch.manual_seed(0)
        model = nl.build("hope", **small("hope", **changes))
        assert parse(repr(model.config), _names()) == model.config
        logits, _ = model(tokens)
        assert bool(torch.isfinite(logits).all()), row
        seen.append(repr(model.config))
    assert len(set(seen)) == len(ABLATIONS) == 10


def test_only_fast_and_only_slow_levels_differ_in_their_schedule_alone():
    whole, fast, slow = (
        nl.build("hope", **small("hope", **ABLATIONS[row])) for row in ("Hope", "only fast levels", "only slow levels")
    )
    count = [sum(p.numel() for p in model.parameters()) for model in (whole, fast, slow)]
    assert len(set(count)) == 1
    periods = [{level.period for level in levels_of(model)} for model in (whole, fast, slow)]
    assert periods == [{1, 4}, {1}, {4}]
