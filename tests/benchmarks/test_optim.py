"""The experiments with optimizers: their searches and memories against loops, and that nothing is lost on the way."""

from __future__ import annotations

import dataclasses
import doctest
import json
import math

import pytest
import torch

from benchmarks import shared
from benchmarks.optim import compare, continual, orthogonal, toy
from benchmarks.optim.optimizers import BY_NAME, ENTRIES
from benchmarks.optim.tasks import Task
from nestling import optim


@pytest.mark.parametrize("module", [compare, shared, toy])
def test_examples(module) -> None:
    assert doctest.testmod(module).failed == 0 < doctest.testmod(module).attempted


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("momentum", lambda p: torch.optim.SGD(p, lr=0.005, momentum=0.8)),
        ("delta momentum", lambda p: optim.DeltaMomentum(p, lr=0.005, momentum=0.8)),
        ("deep momentum", lambda p: optim.DeepMomentum(p, lr=0.005, momentum=0.8, width=2)),
    ],
)
def test_lifted_paths_are_those_of_the_optimizer(monkeypatch: pytest.MonkeyPatch, name: str, make) -> None:
    monkeypatch.setattr(toy, "STEPS", 30)
    valley = toy.Valley(0.5, 1.0, 2.0)
    reading = next(one for one in toy.READINGS if one.name == name)
    constants = torch.tensor([[4.0, 0.0, 1.0], [0.5, 1.0, 2.0]], dtype=torch.float64)
    rates, decays = torch.tensor([[0.01, 0.005], [0.5, 0.8]], dtype=torch.float64)
    walked = toy.paths(reading, constants, rates, decays)[:, 1]
    point = torch.nn.Parameter(torch.tensor([toy.START], dtype=torch.float64))
    optimizer = make([point])
    for expected in walked[1:]:
        optimizer.zero_grad()
        valley.loss(point).backward()
        optimizer.step()
        torch.testing.assert_close(point.detach()[0], expected, rtol=1e-9, atol=1e-9)


def test_a_path_that_leaves_again_has_not_converged() -> None:
    losses = torch.tensor([[1.0, 0.0, 1.0, 0.0, 0.0], [1.0, 0.0, math.nan, math.nan, math.nan], [0.0] * 5]).T
    assert toy.duration(losses).tolist() == [3, math.inf, 0]


def test_tasks_have_gradients_in_orthogonal_directions() -> None:
    gradients, bases = orthogonal.stream(0)
    first, second = gradients[0], gradients[orthogonal.STEPS]
    assert (first @ second.mT).norm() < 1e-12 * first.norm() * second.norm()
    assert (first @ bases[0]).norm() == pytest.approx(float(first.norm()))


def test_momentum_keeps_what_its_decay_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orthogonal, "STEPS", 10)
    gradients, bases = orthogonal.stream(0)
    for memory in (orthogonal.momentum(0.9), orthogonal.delta(0.9)):
        kept, asked, _ = orthogonal.follow(memory, torch.stack(gradients[:30])[None], torch.stack(bases)[None])
        assert kept[0] == pytest.approx([1.0, 0.9**10, 0.9**20])
        assert sum(asked[0]) == pytest.approx(1.0)


def test_every_optimizer_is_tuned_by_the_same_number_of_trainings() -> None:
    for optimum in (1e-9, 3e-3, 1e-2, 1.7e-2, 1e-1, 1e9):
        tried: list[float] = []

        def loss(rate: float, optimum: float = optimum, tried: list[float] = tried) -> float:
            tried.append(rate)
            return abs(math.log(rate / optimum))

        best = compare.tune(loss, 1e-2)
        assert len(tried) == len(set(tried)) == compare.MOST
        assert best in tried and abs(math.log(best / optimum)) == min(abs(math.log(rate / optimum)) for rate in tried)


def test_what_was_computed_is_not_computed_again(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setattr(shared, "RESULTS", tmp_path)
    asked: list[int] = []
    for _ in range(2):
        pieces = shared.Pieces("test")
        assert pieces.get(("a", 1), lambda: asked.append(1) or {"loss": math.inf})["loss"] == math.inf
    assert asked == [1] and len(pieces.path.read_text("utf-8").splitlines()) == 1


def small() -> Task:
    def draw(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.randn(8, 6, generator=generator), torch.randint(0, 3, (8,), generator=generator)

    model = lambda: torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))  # noqa: E731
    held = (draw(torch.Generator().manual_seed(9)),)
    return Task("digits", 6, model, lambda model, x: model(x), draw, held, held)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_trainings_repeat(entry) -> None:
    first, again = (compare.train(small(), entry, entry.begin, 3) for _ in range(2))
    assert json.dumps(first) == json.dumps(again) and math.isfinite(first["validation"])


def test_a_training_that_diverges_says_so() -> None:
    adrift = dataclasses.replace(small(), draw=lambda generator: (torch.full((8, 6), math.nan), torch.zeros(8).long()))
    assert compare.train(adrift, BY_NAME["m3"], 1e-3, 0)["validation"] == math.inf


@pytest.mark.parametrize("name", continual.NAMES)
def test_memories_that_are_kept_go_on_as_if_nothing_had_been(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(continual, "STEPS", 4)
    monkeypatch.setattr(continual, "LOOKED_AT", (4,))
    task, entry = small(), BY_NAME[name]
    found = continual.compute((task, task), entry, entry.begin, 0)["ways"]
    whole = compare.Training(task, entry, entry.begin, 0)
    for step in range(4):
        whole.step(min(1.0, (step + 1) / continual.WARM))
    whole.batches.manual_seed(0)
    for _ in range(4):
        whole.step(1.0)
    assert found["kept"][0][1] == task.evaluate(whole.model, task.test)[0]
    assert found["thrown away"][0][1] != found["kept"][0][1]
