"""What a run tells: one schema of events, and who listens: a JSONL file, TensorBoard, the console.

A line of ``log.jsonl`` is ``{"event": NAME, "time": SECONDS SINCE 1970, "step": STEP, ...}`` with the fields of the event
of that name. The curve is single-valued: when a run goes on from a step, later lines of the interrupted run are dropped.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO

from nestling.errors import NestlingError


@dataclass(frozen=True)
class Started:
    """A run begins, or goes on from ``step``."""

    step: int
    steps: int
    recipe: str
    size: str
    parameters: int
    tokens_per_step: int
    train_tokens: int
    valid_tokens: int
    device: str
    precision: str


@dataclass(frozen=True)
class Trained:
    """An update: the loss (nats a token) and bits per byte of its own batches before it, and the tokens read so far."""

    step: int
    loss: float
    bits_per_byte: float
    lr: float
    gradient_norm: float
    tokens: int
    tokens_per_second: float


@dataclass(frozen=True)
class Evaluated:
    """A score on held-out text."""

    step: int
    loss: float
    bits_per_byte: float


@dataclass(frozen=True)
class Saved:
    """A checkpoint is complete; ``folder`` is its name in the run's folder."""

    step: int
    folder: str


@dataclass(frozen=True)
class Ended:
    """The run has ended: ``signal`` is what interrupted it, or 0."""

    step: int
    signal: int


Event = Started | Trained | Evaluated | Saved | Ended
Listener = Callable[[Event], None]
"""Is called with each event, in the order of steps."""

NAMES: dict[type[Event], str] = {
    Started: "start",
    Trained: "train",
    Evaluated: "eval",
    Saved: "checkpoint",
    Ended: "end",
}
"""The event's name in the log."""


def to_json(event: Event, now: float) -> dict[str, Any]:
    """The line of an event.

    >>> to_json(Saved(step=3, folder="step_00000003"), now=1.5)
    {'event': 'checkpoint', 'time': 1.5, 'step': 3, 'folder': 'step_00000003'}
    """
    return {"event": NAMES[type(event)], "time": now, **vars(event)}


def read(path: str | Path) -> list[tuple[float, Event]]:
    """The events of a ``log.jsonl`` with their times; a last line that is not whole yet is left out.

    Raises:
        NestlingError: the file is missing, or a line is no event.
    """
    try:
        text = Path(path).read_bytes()
    except OSError as error:
        raise NestlingError(f"cannot read the log {path}: {error.strerror}. Pass a run's log.jsonl.") from error
    kinds = {name: kind for kind, name in NAMES.items()}
    events = []
    for number, line in enumerate(text[: text.rfind(b"\n") + 1].splitlines(), 1):
        try:
            values = json.loads(line)
            kind = kinds[values["event"]]
            events.append((values["time"], kind(**{field.name: values[field.name] for field in fields(kind)})))
        except (ValueError, KeyError, TypeError) as error:
            raise NestlingError(f"{path}, line {number} is no event of a run: {error!r}. Restore the file.") from error
    return events


class JsonLog:
    """The events of a run in a file, one line each, written through at once."""

    def __init__(self, path: str | Path, step: int) -> None:
        """Go on after ``step``: later lines, and a line that was cut off, are dropped."""
        self._file: BinaryIO = Path(path).open("a+b")  # noqa: SIM115  (``close`` does)
        self._file.truncate(_end(self._file, step))

    def __call__(self, event: Event) -> None:
        """Write the line of an event."""
        self._file.write(json.dumps(to_json(event, time.time())).encode() + b"\n")
        self._file.flush()

    def sync(self) -> None:
        """Wait until every line is on the disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class TensorBoard:
    """The curves of a run for TensorBoard."""

    def __init__(self, folder: str | Path, step: int) -> None:
        """Go on after ``step``: later points are no longer shown."""
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        self._writer = SummaryWriter(str(folder), purge_step=step + 1)  # type: ignore[no-untyped-call]

    def __call__(self, event: Event) -> None:
        """Add the points of an event."""
        match event:
            case Trained(step=step) | Evaluated(step=step):
                for name, value in vars(event).items():
                    if name not in ("step", "tokens"):
                        self._writer.add_scalar(f"{NAMES[type(event)]}/{name}", value, step)  # type: ignore[no-untyped-call]
            case _:
                pass

    def close(self) -> None:
        """Write what is pending."""
        self._writer.close()  # type: ignore[no-untyped-call]


def _end(file: BinaryIO, step: int) -> int:
    """Where the lines end that are whole and not after ``step``."""
    file.seek(0)
    end = 0
    for line in file:
        if not line.endswith(b"\n") or _step(line) > step:
            break
        end += len(line)
    return end


def _step(line: bytes) -> int:
    try:
        match json.loads(line):
            case {"step": int(step)}:
                return step
    except ValueError:
        pass
    return 0
