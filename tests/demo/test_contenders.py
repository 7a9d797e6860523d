"""Two models of equal size, trained alike."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from nestling.demo import contenders
from nestling.demo.config import FULL, QUICK, Plan
from nestling.demo.contenders import TOLERANCE, baseline_config, memory_config, parameters
from nestling.errors import NestlingError


@pytest.mark.parametrize("plan", [FULL, QUICK], ids=["full", "quick"])
@pytest.mark.parametrize("recipe", ["hope", "titans_lmm"])
def test_the_transformer_is_as_large(recipe: str, plan: Plan) -> None:
    ours, theirs = memory_config(recipe, plan, 0, Path("runs")), baseline_config(recipe, plan, 0, Path("runs"))
    shape = {name: theirs.changes[name] for name in ("expand", "window")}
    wanted = parameters(recipe, plan, {})
    assert abs(parameters("transformer", plan, shape) - wanted) <= TOLERANCE * wanted
    assert theirs.changes["window"] == plan.length
    for name in ("steps", "batch", "length", "optimizer", "tokenizer", "vocab_size", "seed", "data"):
        assert getattr(ours, name) == getattr(theirs, name)


def test_sizes_that_cannot_be_matched_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contenders, "TOLERANCE", 1e-6)
    with pytest.raises(NestlingError, match="no transformer of these sizes has about"):
        baseline_config("titans_lmm", QUICK, 0, Path("runs"))


def test_other_settings_have_another_folder() -> None:
    folders = {
        memory_config(recipe, plan, seed, Path("runs")).out
        for recipe in ("hope", "titans_lmm")
        for plan in (QUICK, replace(QUICK, steps=5))
        for seed in (0, 1)
    }
    assert len(folders) == 8
    assert memory_config("hope", QUICK, 0, Path("runs")) == memory_config("hope", QUICK, 0, Path("runs"))
