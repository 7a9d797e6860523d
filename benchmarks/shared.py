"""What the experiments share: where results lie, results that are kept one after another, tables and figures."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import torch

matplotlib.use("agg")

import matplotlib.pyplot as plt

RESULTS = Path(__file__).parent / "results"
SEEDS = (0, 1, 2)


class Pieces:
    """Results as JSON lines, each with a key: what is there already is not computed again."""

    def __init__(self, name: str) -> None:
        self.path = RESULTS / f"{name}.jsonl"
        self.done = self._read()

    def _read(self) -> dict[tuple[Any, ...], dict[str, Any]]:
        lines = self.path.read_text("utf-8").splitlines() if self.path.is_file() else []
        return {tuple(piece["key"]): piece for piece in map(json.loads, lines)}

    def get(self, key: tuple[Any, ...], compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The piece of this key, computed and written down where it is missing."""
        if key not in self.done:
            self.done = self._read()  # another process may have been here
        if key not in self.done:
            piece = {"key": list(key), **compute()}
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(rounded(piece)) + "\n")
            self.done[key] = rounded(piece)
            print(*key, piece.get("summary", ""), flush=True)
        return self.done[key]


def rounded(value: Any) -> Any:
    """Numbers with six digits, so that files stay small."""
    match value:
        case float():
            return float(f"{value:.6g}")
        case dict():
            return {name: rounded(part) for name, part in value.items()}
        case list() | tuple():
            return [rounded(part) for part in value]
        case _:
            return value


def machine() -> str:
    """What figures of time depend on, in words."""
    return f"{os.cpu_count()}-core {platform.machine()}, {torch.get_num_threads()} thread, torch {torch.__version__.split('+')[0]}"


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Mean ± standard deviation, where there are several.

    >>> spread([1.0, 2.0, 3.0], 1), spread([2.0], 1)
    ('2.0 ± 1.0', '2.0')
    """
    mean = f"{statistics.fmean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join([*lines, *("| " + " | ".join(map(str, row)) + " |" for row in rows)])


def write(name: str, text: str) -> None:
    """Text among the results, as ``<name>.md``."""
    (RESULTS / f"{name}.md").write_text(text.rstrip() + "\n", "utf-8")


def save(figure: Any, name: str) -> None:
    """A figure among the results, as ``<name>.png``."""
    figure.savefig(RESULTS / f"{name}.png", dpi=85, bbox_inches="tight")
    plt.close(figure)
