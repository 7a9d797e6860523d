"""Cells as tables in markdown."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from nestling.reproduce.automata import Cell, Point
from nestling.reproduce.config import AutomataConfig


def markdown(cells: Sequence[Cell], config: AutomataConfig, machine: str) -> str:
    """Models × languages: bin 0 / bin 1 in percent, mean over seeds, the spread in brackets where there is one."""
    seeds = ", ".join(map(str, sorted({cell.seed for cell in cells})))
    sizes = [cell.parameters for cell in cells]
    return "\n".join(
        (
            "# Formal languages (Nested Learning, table 5)",
            "",
            "Words read without a mistake, percent: bin 0 (sizes up to 50, as in training) / bin 1 (51 to 100), the mean over "
            f"seeds {seeds} and, where they differ, (lowest to highest). {min(sizes):,} to {max(sizes):,} parameters, "
            f"{config.steps} steps (Shuffle-2: twice as many) of {config.batch} words, AdamW at {config.lr:g}, "
            f"weights averaged by {config.average:g}. {machine}.",
            "",
            "As in the benchmark (Irie et al. 2023), a run ends when both bins are at 100, and its best evaluation counts:",
            "",
            *_table(cells, lambda runs: _percent([run.best for run in runs])),
            "",
            "The same runs at their last evaluation:",
            "",
            *_table(cells, lambda runs: _percent([run.last for run in runs])),
            "",
            "Steps to the best evaluation and seconds of the whole run, mean over seeds:",
            "",
            *_table(cells, _cost),
            "",
        )
    )


def _table(cells: Sequence[Cell], entry: Callable[[list[Cell]], str]) -> list[str]:
    models, languages = (
        list(dict.fromkeys(names)) for names in zip(*((c.model, c.language) for c in cells), strict=True)
    )
    lines = [
        "| | " + " | ".join(name.replace("*", "\\*") for name in languages) + " |",
        "|---" * (len(languages) + 1) + "|",
    ]
    for model in models:
        row = [[cell for cell in cells if (cell.model, cell.language) == (model, language)] for language in languages]
        lines.append(f"| {model} | " + " | ".join(entry(runs) if runs else "" for runs in row) + " |")
    return lines


def _percent(points: list[Point]) -> str:
    return " / ".join(_spread([100 * point.bins[bin] for point in points]) for bin in (0, 1))


def _spread(values: list[float]) -> str:
    """Mean, and the range where there is one.

    >>> _spread([100.0, 100.0]), _spread([96.0, 100.0])
    ('100', '98 (96–100)')
    """
    mean, low, high = sum(values) / len(values), min(values), max(values)
    return _short(mean) if low == high else f"{_short(mean)} ({_short(low)}–{_short(high)})"


def _short(percent: float) -> str:
    """To a tenth; what is not all is never shown as 100."""
    return "99.9" if 99.9 < percent < 100 else f"{percent:.1f}".removesuffix(".0")


def _cost(runs: list[Cell]) -> str:
    steps, seconds = (
        sum(each) / len(runs) for each in zip(*((run.best.step, run.seconds) for run in runs), strict=True)
    )
    return f"{steps:.0f}, {seconds:.0f} s"
