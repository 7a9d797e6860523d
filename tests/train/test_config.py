from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import jsonargparse
import pytest
import torch

from nestling.errors import NestlingError
from nestling.train.config import Intervals, OptimizerConfig, TrainConfig, difference, first_change
from nestling.train.device import choose_device, choose_dtype

OTHER = TrainConfig(
    recipe="titans_lmm",
    changes={"layers": 2, "memory": "Memory(MLP())"},
    data=("a", "b"),
    valid=("c",),
    optimizer=OptimizerConfig(betas=(0.8, 0.9)),
    every=Intervals(log=3),
)


@pytest.mark.parametrize("config", [TrainConfig(), OTHER], ids=["default", "other"])
def test_a_configuration_survives_json(config: TrainConfig) -> None:
    assert TrainConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_what_is_no_configuration_is_refused() -> None:
    with pytest.raises(NestlingError, match="no training configuration"):
        TrainConfig.from_json({"recipe": "hope"})
    with pytest.raises(NestlingError, match="no training configuration"):
        TrainConfig.from_json({**TrainConfig().to_json(), "unknown": 1})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"accumulate": -1}, "accumulate must be at least 1, got -1"),
        ({"keep": 0}, "keep must be at least 1, got 0"),
        ({"seed": -1}, "seed must not be negative, got -1"),
        ({"vocab_size": 255}, "vocab_size must be at least 256, got 255"),
        ({"out": ""}, "out must be a folder"),
        ({"precision": "half"}, "unknown precision 'half': use one of auto, float32, bfloat16"),
        ({"tokenizer": "words"}, "unknown tokenizer 'words': use one of bytes, bpe"),
        ({"console": "loud"}, "unknown console 'loud'"),
        ({"changes": {"vocab_size": 3}}, "changes must not name what has its own setting"),
    ],
)
def test_bad_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(NestlingError, match=message):
        replace(TrainConfig(), **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": 0.0}, "optimizer.lr must be positive, got 0.0"),
        ({"lr": float("nan")}, "optimizer.lr must be positive, got nan"),
        ({"betas": (0.9, 1.0)}, "optimizer.betas must be two numbers"),
        ({"weight_decay": -0.1}, "optimizer.weight_decay must not be negative"),
        ({"warmup": 1.5}, "optimizer.warmup must be from 0 to 1"),
        ({"floor": 2.0}, "optimizer.floor must be from 0 to 1"),
        ({"clip": -1.0}, "optimizer.clip must not be negative"),
    ],
)
def test_bad_optimizer_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(NestlingError, match=message):
        replace(OptimizerConfig(), **changes)


def test_bad_intervals_are_refused() -> None:
    with pytest.raises(NestlingError, match=r"every.evaluate must be at least 1 step, got 0"):
        Intervals(evaluate=0)


def test_the_command_line_fills_it_in() -> None:
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--train", type=TrainConfig)
    given = ["--train.recipe=titans_lmm", "--train.data=[a,b]", "--train.optimizer.betas=[0.8,0.9]"]
    given += ["--train.changes.layers=2", "--train.every.log=3"]
    config = parser.instantiate(parser.parse_args(given)).train
    assert config == TrainConfig(
        recipe="titans_lmm",
        changes={"layers": 2},
        data=("a", "b"),
        optimizer=OptimizerConfig(betas=(0.8, 0.9)),
        every=Intervals(log=3),
    )


def test_the_first_change_that_matters_is_named() -> None:
    saved = TrainConfig()
    free = replace(saved, out="elsewhere", keep=7, every=Intervals(log=1), console="quiet", eval_batches=1)
    assert first_change(saved.to_json(), free.to_json()) is None
    slower = replace(saved, optimizer=OptimizerConfig(lr=1e-4))
    older = {name: value for name, value in saved.to_json().items() if name != "recompute"}
    assert first_change(older, saved.to_json()) is None
    held = replace(saved, recompute=64)
    assert first_change(older, held.to_json()) == ("recompute", None, 64)
    assert first_change(saved.to_json(), slower.to_json()) == ("optimizer.lr", 1e-3, 1e-4)
    larger = replace(saved, changes={"layers": 3})
    assert first_change(saved.to_json(), larger.to_json()) == ("changes.layers", None, 3)
    assert first_change(larger.to_json(), saved.to_json()) == ("changes.layers", 3, None)


def test_a_setting_that_only_one_side_has_is_a_difference() -> None:
    assert difference({"a": 1, "b": 2}, {"a": 1}) == ("b", 2, None)
    assert difference({"a": 1}, {"a": 1}) is None


def test_devices_by_name() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type in ("cpu", "cuda")
    with pytest.raises(NestlingError, match="device 'gpu' cannot be used here"):
        choose_device("gpu")
    with pytest.raises(NestlingError, match=r"device 'cuda:99' cannot be used here .*: use auto or cpu"):
        choose_device("cuda:99")


def test_precision_by_name() -> None:
    cpu = torch.device("cpu")
    found = [choose_dtype(name, cpu) for name in ("auto", "float32", "bfloat16")]
    assert found == [torch.float32, torch.float32, torch.bfloat16]
