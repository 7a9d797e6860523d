"""One model, several ways to compute it."""

from __future__ import annotations

import pytest
import torch

import nestling as nl
from nestling.errors import NestlingError
from nestling.nn import TNT, MemoryLayer, SelfModifying
from nestling.ops import Chunk, Reference
from nestling.train import TrainConfig
from nestling.train.run import Run

SMALL = {"dim": 32, "layers": 1, "heads": 2}


def paths(model: nl.LM) -> list[object]:
    return [module.path for module in model.modules() if isinstance(module, TNT | MemoryLayer | SelfModifying)]


@pytest.mark.parametrize("recipe", ["titans_lmm", "titans_mac", "tnt"])
def test_the_readable_loop_gives_the_same_answer(recipe: str) -> None:
    model = nl.build(recipe, **SMALL).double()
    slow, tokens = model.using(Reference()), torch.randint(0, 256, (2, 21))
    assert paths(slow) == [Reference()] * len(paths(model)) and Reference() not in paths(model)
    torch.testing.assert_close(slow(tokens)[0], model(tokens)[0])


def test_blocks_of_another_size_give_the_same_answer_with_the_same_parameters() -> None:
    model = nl.build("hope", **SMALL).double()
    other, tokens = model.using(Chunk(block=4)), torch.randint(0, 256, (2, 21))
    torch.testing.assert_close(other(tokens)[0], model(tokens)[0])
    assert all(a is b for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_what_learns_in_context_goes_on_learning() -> None:
    model = nl.build("hope", **SMALL).double()
    learner = nl.InContext(model, [nl.Level("fast", 8, owns="*.chain.*")], lr=0.5)
    other, tokens = learner.using(Chunk(block=4)), torch.randint(0, 256, (1, 30))
    assert not torch.equal(learner(tokens)[0], model(tokens)[0])
    torch.testing.assert_close(other(tokens)[0], learner(tokens)[0])


def test_a_path_that_there_is_not() -> None:
    with pytest.raises(NestlingError, match=r"self-modifying memories compute in blocks.*use Chunk"):
        nl.build("hope", **SMALL).using(Reference())


def test_a_training_is_compiled_on_request(tmp_path) -> None:
    config = TrainConfig(recipe="hope", changes=SMALL, compile=True, out=str(tmp_path), console="quiet")
    assert TrainConfig.from_json(config.to_json()) == config
    assert paths(Run.build(config).model) == [Chunk(compiled=True)]


@pytest.mark.slow
def test_a_compiled_training_is_the_same_training(tmp_path) -> None:
    losses = []
    for compiled in (False, True):
        config = TrainConfig(
            recipe="hope", changes=SMALL, compile=compiled, batch=2, length=64, out=str(tmp_path), console="quiet"
        )
        run = Run.build(config)
        losses.append([run.update(step).score.bits_per_byte for step in (1, 2, 3)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
