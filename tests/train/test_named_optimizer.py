"""Training with the optimizers of ``nestling.optim``: named by one word, saved and resumed like any other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from nestling.cli.train import _named
from nestling.errors import NestlingError
from nestling.recipes import build, recipes
from nestling.train import OptimizerConfig, train
from nestling.train.config import OPTIMIZERS
from nestling.train.optimizer import optimizer_of
from tests.train.tiny import config, curve


@pytest.mark.parametrize("name", OPTIMIZERS[1:])
def test_an_interrupted_run_ends_as_a_whole_one(tmp_path: Path, name: str) -> None:
    chosen = OptimizerConfig(name=name, lr=1e-2, matrix_lr=5e-3, warmup=0.25)
    whole = config(tmp_path, optimizer=chosen, steps=6, out=str(tmp_path / "whole"))
    assert train(whole).exit_code == 0
    broken = replace(whole, out=str(tmp_path / "broken"))
    assert train(broken).exit_code == 0
    newest = max((tmp_path / "broken").glob("step_*"))
    for file in newest.iterdir():
        file.unlink()
    newest.rmdir()
    assert train(broken).exit_code == 0  # from step 4
    last = curve(tmp_path / "whole")[-1]
    assert curve(tmp_path / "broken")[-1] == last
    assert last["loss"] < curve(tmp_path / "whole")[0]["loss"]


@pytest.mark.parametrize("recipe", recipes())
def test_every_recipe_has_hidden_matrices_and_the_embedding_is_none(recipe: str) -> None:
    model = build(recipe, dim=32, layers=1, heads=2)
    groups = optimizer_of(model, OptimizerConfig(name="m3")).param_groups
    hidden = {name for group in groups if group["part"] == 0 for name in group["param_names"]}
    rest = {name for group in groups if group["part"] == 1 for name in group["param_names"]}
    assert hidden and "embedding.weight" in rest and not hidden & rest
    assert hidden | rest == {name for name, _ in model.named_parameters()}


def test_the_option_may_be_a_name() -> None:
    assert _named(["--steps", "3", "--optimizer", "m3"]) == ["--steps", "3", "--optimizer.name", "m3"]
    assert _named(["--optimizer=muon", "--optimizer.lr", "0.1"]) == [
        "--optimizer.name",
        "muon",
        "--optimizer.lr",
        "0.1",
    ]
    assert _named(["--optimizer", "settings.yaml"]) == ["--optimizer", "settings.yaml"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"name": "newton"}, "unknown optimizer.name 'newton'"),
        ({"matrix_lr": -1.0, "name": "m3"}, "matrix_lr must not be negative"),
        ({"matrix_lr": 0.1}, "must be 0 with optimizer.name=adamw"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, said: str) -> None:
    with pytest.raises(NestlingError, match=said):
        OptimizerConfig(**settings)
