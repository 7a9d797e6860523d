"""Every public optimizer is a ``torch.optim.Optimizer``: groups, saved states, schedulers, closures, scaled losses, compiled steps."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable

import pytest
import torch

from nestling import NestlingError, optim
from tests.optim.makers import CLASSES, MAKERS
from tests.optim.problem import loss, network, same, train

each = pytest.mark.parametrize("name", MAKERS)


def test_every_public_optimizer_is_here() -> None:
    public = {name for name in optim.__all__ if isinstance(getattr(optim, name), type)}
    ours = {name for name in public if issubclass(getattr(optim, name), torch.optim.Optimizer)}
    assert ours - {"Optimizer", "Split", "Scheduled"} == {name.split(",")[0] for name in MAKERS} - {"split"}


@each
def test_a_saved_file_goes_on(name: str) -> None:
    """Also inside a period: five steps, of two."""
    model = network()
    optimizer = MAKERS[name](model)
    train(model, optimizer, range(5))
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other = network()
    other.load_state_dict(saved["model"])
    resumed = MAKERS[name](other)
    resumed.load_state_dict(saved["optimizer"])
    same(train(other, resumed, range(5, 9)), train(model, optimizer, range(5, 9)), 0.0)


@pytest.mark.parametrize("name", CLASSES)
def test_groups_have_settings_of_their_own(name: str) -> None:
    """A group whose rate is 0 stays, and the other moves as it does alone."""
    both, alone = network(), network()
    rows = [[p for p in layer.parameters() if p.dim() == 2] for layer in (both[0], both[2])]
    optimizer = CLASSES[name](both, [{"params": rows[0]}, {"params": rows[1], "lr": 0.0}])
    before = rows[1][0].detach().clone()
    single = CLASSES[name](alone, [alone[0].weight])
    for frozen in (both[0].bias, both[2].bias, alone[0].bias, *alone[2].parameters()):
        frozen.requires_grad_(False)
    train(both, optimizer, range(4))
    train(alone, single, range(4))
    assert torch.equal(rows[1][0], before)
    assert not torch.equal(alone[0].weight, network()[0].weight)
    torch.testing.assert_close(both[0].weight, alone[0].weight, rtol=1e-9, atol=1e-11)


@each
def test_a_scheduler_sets_the_rate(name: str) -> None:
    ours, theirs = network(), network()
    a, b = MAKERS[name](ours), MAKERS[name](theirs)
    rates = [group["lr"] for group in b.param_groups]
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(a, 6)
    for step in range(5):
        for group, first, now in zip(b.param_groups, rates, scheduler.get_last_lr(), strict=True):
            assert step == 0 or now < first
            group["lr"] = now
        same(train(ours, a, range(step, step + 1)), train(theirs, b, range(step, step + 1)), 0.0)
        scheduler.step()


@each
def test_a_closure_computes_the_gradients(name: str) -> None:
    ours, theirs = network(), network()
    a, b = MAKERS[name](ours), MAKERS[name](theirs)
    for step in range(3):

        def closure(step: int = step) -> torch.Tensor:
            a.zero_grad()
            value = loss(ours, step)
            value.backward()
            return value

        expected = loss(theirs, step).item()
        assert a.step(closure).item() == expected
        train(theirs, b, range(step, step + 1))
    same([p.detach() for p in ours.parameters()], [p.detach() for p in theirs.parameters()], 0.0)


@each
def test_a_scaler_changes_nothing_and_skips_what_overflows(name: str) -> None:
    ours, theirs = network(), network()
    a, b = MAKERS[name](ours), MAKERS[name](theirs)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step in range(4):
        a.zero_grad()
        scaler.scale(loss(ours, step)).backward()
        if step == 2:  # one overflow: the step is left out, with all that it would have remembered
            ours[0].weight.grad[0, 0] = torch.inf
        scaler.step(a)
        scaler.update()
        if step != 2:
            train(theirs, b, range(step, step + 1))
    assert scaler.get_scale() == 512.0
    same([p.detach() for p in ours.parameters()], [p.detach() for p in theirs.parameters()], 1e-6)


@each
def test_a_copy_of_model_and_optimizer_goes_its_own_way(name: str) -> None:
    model = network()
    optimizer = MAKERS[name](model)
    train(model, optimizer, range(3))
    twin = copy.deepcopy(optimizer.state_dict())
    train(model, optimizer, range(3, 5))
    fresh = MAKERS[name](network())
    fresh.load_state_dict(twin)
    kept = [leaf for state in fresh.state.values() for leaf in state.values()]
    assert all(leaf.data_ptr() not in {p.data_ptr() for p in model.parameters()} for leaf in kept)


@each
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_no_number_changes_nothing(name: str, bad: float) -> None:
    model = network()
    optimizer = MAKERS[name](model)
    train(model, optimizer, range(2))
    loss(model, 2).backward()
    model[2].weight.grad[1, 1] = bad
    before = copy.deepcopy([p.detach() for p in model.parameters()]), copy.deepcopy(optimizer.state_dict()["state"])
    with pytest.raises(NestlingError, match="nan or infinite"):
        optimizer.step()
    after = [p.detach() for p in model.parameters()], optimizer.state_dict()["state"]
    torch.testing.assert_close(after, before, rtol=0, atol=0)


def compiled(name: str, backend: str) -> None:
    ours, theirs = network(), network()
    a, b = MAKERS[name](ours), MAKERS[name](theirs)
    torch._dynamo.reset()

    def work(x: torch.Tensor) -> torch.Tensor:
        a.step()
        return x + 1

    step: Callable[[torch.Tensor], torch.Tensor] = torch.compile(work, backend=backend)
    for number in range(4):
        a.zero_grad()
        loss(ours, number).backward()
        assert step(torch.ones(1)) == 2
        train(theirs, b, range(number, number + 1))
    same([p.detach() for p in ours.parameters()], [p.detach() for p in theirs.parameters()], 1e-9)


@pytest.mark.parametrize("name", ["SGD", "M3", "GM"])
def test_a_compiled_step_is_the_step(name: str) -> None:
    """Its checks look at values: what is compiled around it stays so, and the step runs as it is."""
    compiled(name, "eager")


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@each
def test_each_compiled_step_is_the_step(name: str, backend: str) -> None:
    compiled(name, backend)
