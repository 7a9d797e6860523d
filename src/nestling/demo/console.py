"""What a demonstration shows while it runs, on stderr: bars on a terminal, lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from nestling.demo.reading import Progress as Listener


class Steps:
    """Numbered steps: ``begin`` says which one is next."""

    def __init__(self, count: int, console: Console | None = None) -> None:
        """``count``: all of them."""
        self._count, self._number = count, 0
        self._console = console or Console(stderr=True, highlight=False)

    def begin(self, what: str) -> None:
        """Say what comes next."""
        self._number += 1
        self.say(f"[{self._number}/{self._count}] {what}")

    def say(self, text: str) -> None:
        """A line of its own."""
        if self._console.is_terminal:
            self._console.print(text, style="bold", markup=False)
        else:
            print(text, file=sys.stderr, flush=True)

    @contextmanager
    def bar(self, what: str, total: int) -> Iterator[Listener]:
        """Tokens read, of ``total``: a bar with the time that is left, or nothing where there is no terminal."""
        if not self._console.is_terminal:
            yield lambda read: None
            return
        columns = (
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TextColumn("{task.description}"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self._console, transient=True) as progress:
            task = progress.add_task(what, total=total)
            yield lambda read: progress.advance(task, read)
