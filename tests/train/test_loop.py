from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nestling.errors import NestlingError
from nestling.train import (
    Ended,
    Event,
    Intervals,
    OptimizerConfig,
    Saved,
    TrainConfig,
    Trained,
    latest,
    load_model,
    read,
    train,
)
from nestling.train.checkpoint import MODEL, OPTIMIZER, RANDOM, Checkpoint
from nestling.train.log import JsonLog
from nestling.train.run import Run
from nestling.train.step import backward
from tests.train.tiny import config, curve


def at(step: int, action: Callable[[], object]) -> Callable[[Event], None]:
    """A listener that acts when the update of ``step`` is told."""

    def listen(event: Event) -> None:
        if isinstance(event, Trained) and event.step == step:
            action()

    return listen


def crash() -> None:
    raise ZeroDivisionError


def assert_same_run(a: Path, b: Path) -> None:
    """Equal curves, and equal bytes of weights, optimizer and random state."""
    assert curve(a) == curve(b)
    last = [latest(run) for run in (a, b)]
    assert last[0] is not None
    assert last[1] is not None
    for name in (MODEL, OPTIMIZER, RANDOM):
        assert (last[0] / name).read_bytes() == (last[1] / name).read_bytes(), name


@pytest.mark.parametrize("recipe", ["transformer", "titans_lmm", "hope"])
def test_a_run_that_crashed_ends_as_if_it_had_not(tmp_path: Path, recipe: str) -> None:
    whole = config(tmp_path, recipe=recipe, out=str(tmp_path / "whole"))
    train(whole)
    broken = replace(whole, out=str(tmp_path / "broken"))
    for step in (2, 7, 11):  # before the first checkpoint but that of step 0, and between others
        with pytest.raises(ZeroDivisionError):
            train(broken, [at(step, crash)])
    result = train(broken)
    assert result.step == 12
    assert_same_run(tmp_path / "whole", tmp_path / "broken")
    assert len(curve(tmp_path / "whole")) == 12 + 2


def test_the_model_learns(tmp_path: Path) -> None:
    result = train(config(tmp_path, steps=60))
    losses = [event.loss for _, event in read(tmp_path / "run" / "log.jsonl") if isinstance(event, Trained)]
    assert losses[0] > 5
    assert losses[-1] < 3.5
    assert result.trained is not None
    assert result.trained.loss == losses[-1]
    assert result.evaluated is not None
    assert result.evaluated.bits_per_byte < 6
    assert result.exit_code == 0
    assert load_model(tmp_path / "run")[2].step == 60


def test_another_seed_is_another_run(tmp_path: Path) -> None:
    for seed in (0, 1):
        train(config(tmp_path, seed=seed, out=str(tmp_path / str(seed))))
    assert curve(tmp_path / "0")[0]["loss"] != curve(tmp_path / "1")[0]["loss"]


def test_a_step_accumulates_its_batches(tmp_path: Path) -> None:
    """The same rows in one batch or in four: the same run, up to the order of sums."""
    for batch, accumulate in ((8, 1), (2, 4)):
        train(config(tmp_path, batch=batch, accumulate=accumulate, out=str(tmp_path / str(batch))))
    a, b = (
        [(line["loss"], line["gradient_norm"]) for line in curve(tmp_path / run) if line["event"] == "train"]
        for run in ("8", "2")
    )
    torch.testing.assert_close(torch.tensor(a), torch.tensor(b), rtol=1e-4, atol=1e-5)


def test_rows_in_stretches_train_the_same(tmp_path: Path) -> None:
    runs = [config(tmp_path / str(held), recipe="titans_lmm", steps=3, recompute=held) for held in (None, 5)]
    for each in runs:
        train(each)
    whole, held = ([line["loss"] for line in curve(Path(each.out))] for each in runs)
    assert whole == pytest.approx(held, rel=1e-4) and len(whole) == 4


def test_the_rate_in_the_log_is_the_one_that_was_used(tmp_path: Path) -> None:
    asked = config(tmp_path)
    run = Run.build(asked)
    update = run.update(2)
    assert {group["lr"] for group in run.optimizer.param_groups} == {update.lr}
    train(asked)
    assert curve(tmp_path / "run")[1]["lr"] == update.lr


def test_the_step_is_the_position_in_the_data(tmp_path: Path) -> None:
    """Two batches an update: the first update reads the first two, the third the fifth and sixth."""
    run = Run.build(config(tmp_path))
    for step, indices in ((1, (0, 1)), (3, (4, 5))):
        expected = backward(run.model, [run.source.train.batch(index) for index in indices])
        assert run.update(step).score.loss == float(expected)


def test_the_log_is_on_the_disk_before_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    save = Checkpoint.save
    monkeypatch.setattr(JsonLog, "sync", lambda log: order.append("sync"))
    monkeypatch.setattr(Checkpoint, "save", lambda *given: (order.append("save"), save(*given))[1])
    train(config(tmp_path, steps=8))
    assert order == ["save", "sync", "save", "sync", "save"]


def test_clipping_bounds_the_gradient(tmp_path: Path) -> None:
    run = Run.build(config(tmp_path, optimizer=OptimizerConfig(clip=0.01)))
    update = run.update(1)
    norm = torch.stack([p.grad.norm() for p in run.model.parameters() if p.grad is not None]).norm()
    assert update.gradient_norm > 0.01
    assert float(norm) == pytest.approx(0.01, rel=1e-3)
    free = Run.build(config(tmp_path, optimizer=OptimizerConfig(clip=0.0)))
    update = free.update(1)
    norm = torch.stack([p.grad.norm() for p in free.model.parameters() if p.grad is not None]).norm()
    assert float(norm) == pytest.approx(update.gradient_norm, rel=1e-5)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_finishes_the_step_and_saves(tmp_path: Path, number: signal.Signals, code: int) -> None:
    asked = config(tmp_path, every=Intervals(log=1, evaluate=6, checkpoint=100))
    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    events: list[Event] = []
    result = train(asked, [events.append, at(5, lambda: signal.raise_signal(number))])
    assert (result.step, result.signal, result.exit_code) == (5, number, code)
    assert events[-2:] == [Saved(5, "step_00000005"), Ended(5, number)]
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == handlers
    train(asked)
    train(replace(asked, out=str(tmp_path / "whole")))
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_a_second_signal_does_not_wait(tmp_path: Path) -> None:
    def twice() -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(config(tmp_path), [at(5, twice)])


def test_a_finished_run_stays_as_it_is(tmp_path: Path) -> None:
    asked = config(tmp_path)
    first = train(asked)
    lines = curve(tmp_path / "run")
    again = train(asked)
    assert (again.step, again.checkpoint, again.trained) == (12, first.checkpoint, None)
    assert curve(tmp_path / "run") == lines


def test_only_the_newest_checkpoints_stay(tmp_path: Path) -> None:
    train(config(tmp_path))
    names = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert names == ["log.jsonl", "step_00000008", "step_00000012"]


@pytest.mark.parametrize("poison", ["weights", "gradient"])
def test_what_is_not_finite_never_reaches_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, poison: str
) -> None:
    asked = config(tmp_path)
    update = Run.update

    def poisoned(run: Run, step: int) -> object:
        if step == 6 and poison == "weights":
            with torch.no_grad():
                run.model.norm.gain[0] = float("nan")
        if step == 6 and poison == "gradient":
            run.model.norm.gain.register_hook(lambda gradient: gradient * float("inf"))
        return update(run, step)

    monkeypatch.setattr(Run, "update", poisoned)
    name = {"weights": "loss is nan", "gradient": "gradient's norm is (inf|nan)"}[poison]
    message = (
        rf"the {name} at step 6: .* last good checkpoint is .*step_00000004\. Train .* lower optimizer.lr \(now 0.01\)"
    )
    with pytest.raises(NestlingError, match=message):
        train(asked)
    model, _, manifest = load_model(tmp_path / "run")
    assert manifest.step == 4
    assert all(p.isfinite().all() for p in model.parameters())
    assert [line["step"] for line in curve(tmp_path / "run")] == [1, 2, 3, 4, 5]


def test_a_gradient_that_is_not_finite_changes_nothing(tmp_path: Path) -> None:
    run = Run.build(config(tmp_path))
    run.update(1)
    before = {name: p.detach().clone() for name, p in run.model.named_parameters()}
    run.model.norm.gain.register_hook(lambda gradient: gradient * float("nan"))
    assert not run.update(2).finite
    assert all(torch.equal(before[name], p) for name, p in run.model.named_parameters())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "holds a run with seed = 0, this one has 1"),
        ({"recipe": "hope"}, "holds a run with recipe = 'transformer', this one has 'hope'"),
        ({"optimizer": OptimizerConfig(lr=0.5)}, "holds a run with optimizer.lr = 0.01, this one has 0.5"),
        ({"changes": {"dim": 32}}, "holds a run with changes.dim = 16, this one has 32"),
    ],
)
def test_another_run_does_not_go_on_in_the_same_folder(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    train(config(tmp_path, steps=4))
    with pytest.raises(NestlingError, match=message):
        train(config(tmp_path, **{"steps": 4, **changes}))


def test_other_text_does_not_go_on_in_the_same_folder(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        train(config(tmp_path), [at(5, crash)])
    (tmp_path / "text" / "00.txt").write_text("something else, and longer than it was\n" * 4)
    with pytest.raises(NestlingError, match="made with other training text"):
        train(config(tmp_path))


def test_text_that_only_moved_does(tmp_path: Path) -> None:
    asked = config(tmp_path)
    with pytest.raises(ZeroDivisionError):
        train(asked, [at(5, crash)])
    shutil.move(tmp_path / "text", tmp_path / "moved")
    assert train(replace(asked, data=(str(tmp_path / "moved"),))).step == 12


def test_a_trained_tokenizer_is_kept_with_the_run(tmp_path: Path) -> None:
    asked = config(tmp_path, tokenizer="bpe", vocab_size=280)
    with pytest.raises(ZeroDivisionError):
        train(asked, [at(5, crash)])
    train(asked)
    train(replace(asked, out=str(tmp_path / "whole")))
    assert_same_run(tmp_path / "run", tmp_path / "whole")
    assert load_model(tmp_path / "run")[1].vocab_size == 280


def test_what_cannot_be_gone_on_with_is_not_trained_over(tmp_path: Path) -> None:
    train(config(tmp_path, steps=4))
    for folder in (tmp_path / "run").glob("step_*"):
        (folder / "manifest.json").unlink()
    with pytest.raises(NestlingError, match="step_00000004 is no whole checkpoint"):
        train(config(tmp_path, steps=4))
    for folder in (tmp_path / "run").glob("step_*"):
        shutil.rmtree(folder)
    with pytest.raises(NestlingError, match="has the log of a run but no checkpoint"):
        train(config(tmp_path, steps=4))


def test_a_damaged_checkpoint_stops_the_run_before_it_trains(tmp_path: Path) -> None:
    asked = config(tmp_path)
    with pytest.raises(ZeroDivisionError):
        train(asked, [at(11, crash)])
    os.truncate(tmp_path / "run" / "step_00000008" / MODEL, 100)
    before = curve(tmp_path / "run")
    with pytest.raises(
        NestlingError, match=r"model.safetensors is truncated.*Delete (\S+) to go on from .*step_00000004"
    ):
        train(asked)
    assert curve(tmp_path / "run") == before
    shutil.rmtree(tmp_path / "run" / "step_00000008")  # as the message says
    train(asked)
    train(replace(asked, out=str(tmp_path / "whole")))
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_one_process_at_a_time(tmp_path: Path) -> None:
    asked = config(tmp_path)

    def second() -> None:
        with pytest.raises(NestlingError, match="another process trains in"):
            train(asked)

    assert train(asked, [at(3, second)]).step == 12


def test_leftovers_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    (tmp_path / "run" / ".step_00000004.abc").mkdir(parents=True)
    train(config(tmp_path, steps=4))
    assert not list((tmp_path / "run").glob(".step_*"))


def test_the_callers_random_numbers_are_untouched(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    train(config(tmp_path, steps=2))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recipe": "hop"}, "unknown recipe 'hop': use one of"),
        ({"size": "huge"}, "unknown size 'huge'"),
        ({"changes": {"depth": 3}}, "transformer has no field 'depth'"),
        ({"device": "abacus"}, "device 'abacus' cannot be used here"),
        ({"data": ("nowhere.txt",)}, "no such file or folder: nowhere.txt"),
        ({"length": 10_000_000}, "tokens do not fill one row"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(NestlingError, match=message) as caught:
        train(config(tmp_path, **changes))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_used_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(NestlingError, match="cannot use the folder"):
        train(config(tmp_path, out=str(tmp_path / "file" / "run")))


def test_tensorboard_is_written(tmp_path: Path) -> None:
    train(config(tmp_path, steps=2, tensorboard=True))
    assert list((tmp_path / "run" / "tensorboard").glob("events.*"))


def test_steps_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(config(tmp_path, console="plain"))
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "transformer (tiny) begins" in shown.err
    assert "step 12: held-out loss" in shown.err
    assert f"finished after step 12: {tmp_path / 'run' / 'step_00000012'}" in shown.err


def test_the_default_configuration_is_a_run() -> None:
    assert TrainConfig().tokens_per_step == 4096
