"""What a run shows on stderr: a progress bar on a terminal, occasional lines elsewhere."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path
from typing import Literal, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from nestling.train.log import Ended, Evaluated, Event, Saved, Started, Trained

_PAUSE = 10.0  # seconds between two lines where there is no terminal


class View(Protocol):
    """A listener that shows events, until it is closed."""

    def __call__(self, event: Event) -> None:
        """Show an event."""

    def close(self) -> None:
        """Leave the screen as it should stay."""


def view(kind: Literal["auto", "plain", "quiet"], folder: Path) -> View:
    """The view of ``TrainConfig.console``."""
    match kind:
        case "quiet":
            return Quiet()
        case "auto" if sys.stderr.isatty():
            return Bar(folder)
        case _:
            return Lines(folder)


class Quiet:
    """Shows nothing."""

    def __call__(self, event: Event) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class Lines:
    """Prints beginnings, evaluations and ends; of the updates one now and then."""

    def __init__(self, folder: Path, pause: float = _PAUSE) -> None:
        self._text = Describer(folder)
        self._pause = pause
        self._shown = time.monotonic()

    def __call__(self, event: Event) -> None:
        """Print the line of an event, or nothing."""
        line = self._text(event)
        match event:
            case Saved():
                return
            case Trained() if time.monotonic() - self._shown < self._pause:
                return
            case Trained():
                self._shown = time.monotonic()
        print(line, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Nothing is left to do."""


class Bar:
    """A bar that goes on in place, with the newest figures beside it; evaluations stay above it."""

    def __init__(self, folder: Path, console: Console | None = None) -> None:
        self._text = Describer(folder)
        self._progress = Progress(
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.description}"),
            console=console or Console(stderr=True, highlight=False),
            transient=True,
        )
        self._task = self._progress.add_task("", total=None)

    def __call__(self, event: Event) -> None:
        """Move the bar, or print a line above it."""
        line = self._text(event)
        match event:
            case Started(step=step, steps=steps):
                self._progress.start()
                self._progress.update(self._task, total=steps, completed=step)
                self._progress.console.print(Text(line))
            case Trained(step=step):
                self._progress.update(self._task, completed=step, description=line.partition("  ")[2])
            case Evaluated() | Ended():
                self._progress.console.print(Text(line))
            case Saved():
                pass

    def close(self) -> None:
        """Remove the bar."""
        self._progress.stop()


class Describer:
    """Events as lines of text; it remembers how long the run is."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._steps = 0
        self._tokens_per_step = 0
        self._saved = ""

    def __call__(self, event: Event) -> str:
        """The line of an event."""
        match event:
            case Started():
                self._steps, self._tokens_per_step = event.steps, event.tokens_per_step
                begun = f"goes on after step {event.step:,}" if event.step else "begins"
                return (
                    f"{event.recipe} ({event.size}) {begun}: {event.parameters:,} parameters, {event.steps:,} steps of "
                    f"{event.tokens_per_step:,} tokens from {event.train_tokens:,}, {event.device}, {event.precision}"
                )
            case Trained():
                left = (self._steps - event.step) * self._tokens_per_step / max(event.tokens_per_second, 1e-9)
                return (
                    f"step {event.step:,}/{self._steps:,}  loss {event.loss:.3f}  {event.bits_per_byte:.3f} bits/byte  "
                    f"{event.tokens_per_second:,.0f} tokens/s  lr {event.lr:.2e}  {duration(left)} left"
                )
            case Evaluated():
                return f"step {event.step:,}: held-out loss {event.loss:.3f}, {event.bits_per_byte:.3f} bits/byte"
            case Saved():
                self._saved = event.folder
                return f"step {event.step:,}: wrote {self._folder / event.folder}"
            case Ended(signal=0):
                return f"finished after step {event.step:,}: {self._folder / self._saved}"
            case Ended():
                return (
                    f"stopped by {signal.Signals(event.signal).name} after step {event.step:,}: saved "
                    f"{self._folder / self._saved}. Give the same command to go on."
                )


def duration(seconds: float) -> str:
    """Seconds for people.

    >>> duration(75), duration(3 * 3600)
    ('1:15', '3:00:00')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
