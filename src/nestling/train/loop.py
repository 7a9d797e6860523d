"""Training, from the first step to the last: read it from top to bottom."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from nestling.data import load_tokenizer
from nestling.errors import NestlingError
from nestling.train import checkpoint
from nestling.train.config import TrainConfig, first_change
from nestling.train.console import view
from nestling.train.log import Ended, Evaluated, Event, JsonLog, Listener, Saved, Started, TensorBoard, Trained
from nestling.train.manifest import Manifest
from nestling.train.run import Run, Update
from nestling.train.signals import on_signal
from nestling.train.step import Score

LOG = "log.jsonl"
"""The log in a run's folder."""


@dataclass(frozen=True)
class TrainResult:
    """How a run ended. ``step`` counts all updates, those of earlier processes too."""

    step: int
    checkpoint: Path
    """The folder of the newest checkpoint."""
    trained: Score | None
    """On the batches of the last update; None when this process made none."""
    evaluated: Score | None
    """The last one on held-out text; None when this process made none."""
    signal: int
    """The signal that stopped the run, or 0."""

    @property
    def exit_code(self) -> int:
        """0, or what a shell expects of a process that a signal has ended: 130 for SIGINT, 143 for SIGTERM."""
        return 128 + self.signal if self.signal else 0


def train(config: TrainConfig, listeners: Sequence[Listener] = ()) -> TrainResult:
    """Train, or go on when ``config.out`` holds this run already; ``listeners`` hear every event.

    A run that was stopped, at any moment and in any way, ends with the weights that it would have had without the stop,
    bit for bit, on the same machine and with the same number of threads; on a GPU, where its kernels are deterministic.
    Torch's global random state is left as it was found.

    Raises:
        NestlingError: a setting, the data or the checkpoint is not usable, another process trains in the same folder,
            or the loss or its gradient has become nan or infinite.
    """
    folder = Path(config.out)
    with ExitStack() as stack:
        stack.enter_context(_own_random_state())
        stack.enter_context(_alone(folder))
        found = _resumable(config, folder)
        run = Run.build(config, load_tokenizer(found / checkpoint.TOKENIZER) if found else None)
        checkpoint.sweep(folder)
        saving = run.checkpoint
        newest = found or saving.save(folder, 0)
        first = saving.load(newest)
        log = stack.enter_context(closing(JsonLog(folder / LOG, first)))
        hearing: list[Listener] = [log, *listeners]
        if config.tensorboard:
            hearing.append(stack.enter_context(closing(TensorBoard(folder / "tensorboard", first))))
        hearing.append(stack.enter_context(closing(view(config.console, folder))))

        def tell(event: Event) -> None:
            for listener in hearing:
                listener(event)

        tell(_started(run, first))
        stop = stack.enter_context(on_signal())
        speed = _Speed()
        step, update, evaluated = first, None, None
        for step in range(first + 1, config.steps + 1):
            update = speed.measure(run, step)
            if not update.finite:
                raise _diverged(config, step, update, newest)
            if _due(config.every.log, step, config.steps):
                tell(_trained(run, step, update, speed.take()))
            if _due(config.every.evaluate, step, config.steps):
                evaluated = run.evaluate()
                tell(Evaluated(step, evaluated.loss, evaluated.bits_per_byte))
            if _due(config.every.checkpoint, step, config.steps) or stop.signal:
                log.sync()  # the log is never behind the weights
                newest = saving.save(folder, step)
                checkpoint.prune(folder, config.keep)
                tell(Saved(step, newest.name))
            if stop.signal:
                break
        tell(Ended(step, stop.signal))
        return TrainResult(step, newest, update.score if update else None, evaluated, stop.signal)


class _Speed:
    """Tokens per second of the updates since it was last asked, evaluations and checkpoints not counted."""

    def __init__(self) -> None:
        self._tokens = 0
        self._seconds = 0.0

    def measure(self, run: Run, step: int) -> Update:
        begun = time.perf_counter()
        update = run.update(step)
        self._seconds += time.perf_counter() - begun
        self._tokens += run.config.tokens_per_step
        return update

    def take(self) -> float:
        speed = self._tokens / max(self._seconds, 1e-9)
        self._tokens, self._seconds = 0, 0.0
        return speed


def _due(every: int, step: int, steps: int) -> bool:
    return step % every == 0 or step == steps


def _resumable(config: TrainConfig, folder: Path) -> Path | None:
    """The checkpoint to go on from, or None in a folder where no run has begun."""
    found = checkpoint.latest(folder)
    if found is None:
        _check_fresh(folder)
        return None
    manifest = Manifest.read(found)
    if change := first_change(manifest.config, config.to_json()):
        name, saved, ours = change
        raise NestlingError(
            f"{folder} holds a run with {name} = {saved!r}, this one has {ours!r}: "
            "give the same value to go on with it, or another folder for a new run (out)."
        )
    manifest.verify(found)
    return found


def _check_fresh(folder: Path) -> None:
    """What looks like a run but cannot be gone on with is not trained over."""
    broken = (
        [path for path in sorted(folder.iterdir()) if checkpoint.step_of(path) is not None] if folder.is_dir() else []
    )
    if broken:
        raise NestlingError(
            f"{broken[-1]} is no whole checkpoint: it has no manifest, and no other is there. "
            "Restore a copy, or train in another folder (out)."
        )
    if (folder / LOG).exists():
        raise NestlingError(f"{folder} has the log of a run but no checkpoint: train in another folder (out).")


def _started(run: Run, step: int) -> Started:
    config = run.config
    return Started(
        step=step,
        steps=config.steps,
        recipe=config.recipe,
        size=config.size,
        parameters=run.parameters,
        tokens_per_step=config.tokens_per_step,
        train_tokens=len(run.source.train.tokens),
        valid_tokens=len(run.source.valid.tokens),
        device=str(run.device),
        precision=str(run.dtype).removeprefix("torch."),
    )


def _trained(run: Run, step: int, update: Update, speed: float) -> Trained:
    return Trained(
        step=step,
        loss=update.score.loss,
        bits_per_byte=update.score.bits_per_byte,
        lr=update.lr,
        gradient_norm=update.gradient_norm,
        tokens=step * run.config.tokens_per_step,
        tokens_per_second=speed,
    )


def _diverged(config: TrainConfig, step: int, update: Update, newest: Path) -> NestlingError:
    name, value = ("gradient's norm", update.gradient_norm)
    if update.score.loss - update.score.loss != 0:  # nan or infinite
        name, value = ("loss", update.score.loss)
    return NestlingError(
        f"the {name} is {value} at step {step}: training stopped before it reached the weights. The last good checkpoint "
        f"is {newest}. Train in another folder with a lower optimizer.lr (now {config.optimizer.lr:g}), a longer "
        f"optimizer.warmup (now {config.optimizer.warmup:g}) or precision=float32."
    )


@contextmanager
def _own_random_state() -> Iterator[None]:
    devices = list(range(torch.cuda.device_count()))
    with torch.random.fork_rng(devices=devices):
        yield


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Make the folder and hold its lock, which ends with the process, however that ends. Left empty, it is removed."""
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise NestlingError(f"cannot use the folder {folder} ({error.strerror}): choose another one (out).") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise NestlingError(
            f"another process trains in {folder}: wait for it, or choose another folder (out)."
        ) from error
    finally:
        os.close(descriptor)
        if made:
            with suppress(OSError):  # it is not empty
                folder.rmdir()
