"""The picture of a nested system: levels from fast to slow, what is in them, and how knowledge passes between them."""

from __future__ import annotations

import textwrap
from itertools import groupby
from math import ceil, inf, log10
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nestling.errors import NestlingError
from nestling.nn import LevelRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from nestling.models.describe import NestedSystem

_INK, _PALE, _BAND, _PAPER = "#1f2933", "#7b8794", "#f3f5f7", "#ffffff"
_KINDS = {"direct": "#d98e04", "backpropagation": "#c2410c", "initialisation": "#2563a8", "generation": "#6b46a8"}
"""The four ways that knowledge passes between levels (NL §3.3), and their colours"""

_WIDTH, _HEIGHT = 3.15, 1.5  # of a component, and of a level, in inches
_LEFT, _AXIS, _GAP = 1.5, 2.3, 0.22  # names of levels, the axis of frequencies, what is between components


def draw(system: NestedSystem, path: str | Path, step: float = 4096) -> Path:
    """Draw ``system`` to ``path``, an SVG or PNG file; a step of training is drawn as ``step`` tokens.

    Raises:
        NestlingError: the file is neither.
    """
    path = Path(path)
    if path.suffix not in (".svg", ".png"):
        raise NestlingError(f"a picture is an .svg or .png file, got {path.name!r}: name it {path.stem}.svg.")
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    levels = [list(rows) for _, rows in groupby(system.levels, key=lambda row: row.level)]
    slowest = max((_tokens(row, step) for row in system.levels if row.period != inf), default=1.0)
    low = max(2, 2 * ceil(log10(slowest) / 2))
    wide = _LEFT + _AXIS + max(map(len, levels)) * (_WIDTH + _GAP) + 0.5
    high = len(levels) * _HEIGHT + 1.9
    with rc_context({"svg.hashsalt": "nestling", "svg.fonttype": "path", "font.family": "DejaVu Sans"}):
        figure = Figure(figsize=(wide, high), facecolor=_PAPER)
        FigureCanvasAgg(figure)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, wide), ylim=(high, 0))
        axes.axis("off")
        _head(axes, system, wide)
        for number, rows in enumerate(levels):
            _level(axes, rows, 1.15 + number * _HEIGHT, wide, _place(rows[0], step, low))
        _axis(axes, 1.15 + len(levels) * _HEIGHT, low, step)
        _legend(axes, high - 0.2)
        figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)
    return path


def _head(axes: Axes, system: NestedSystem, wide: float) -> None:
    from nestling.models.describe import size

    axes.text(0.3, 0.42, system.model, size=17, weight="bold", color=_INK, va="center")
    held = f"{system.parameters:,} parameters · {size(system.state_bytes)} of state for each sequence"
    axes.text(0.3, 0.78, held, size=10, color=_PALE, va="center")


def _level(axes: Axes, rows: list[LevelRow], top: float, wide: float, place: float) -> None:
    """One level: its number, its frequency on the axis, and a box for each component."""
    from matplotlib.patches import FancyBboxPatch, Rectangle

    middle = top + _HEIGHT / 2
    axes.add_patch(Rectangle((0.15, top + 0.06), wide - 0.3, _HEIGHT - 0.12, color=_BAND, lw=0))
    axes.text(0.35, middle - 0.14, f"level {rows[0].level}", size=12, weight="bold", color=_INK, va="center")
    axes.text(0.35, middle + 0.16, _every(rows[0]), size=9.5, color=_INK, va="center")
    x = _LEFT + 0.25 + place * (_AXIS - 0.75)
    axes.plot([_LEFT + 0.25, x], [middle, middle], color=_PALE, lw=1.2, solid_capstyle="round")
    axes.plot([x], [middle], "o", color=_INK, ms=8)
    for number, row in enumerate(rows):
        left = _LEFT + _AXIS + number * (_WIDTH + _GAP)
        style: dict[str, Any] = {"boxstyle": "round,pad=0,rounding_size=0.07", "facecolor": _PAPER}
        box = FancyBboxPatch((left, top + 0.16), _WIDTH, _HEIGHT - 0.32, edgecolor="#cbd2d9", lw=1, **style)
        axes.add_patch(box)
        for index, kind in enumerate(_kinds(row)):
            stripe = Rectangle(
                (left + 0.05 + 0.075 * index, top + 0.26), 0.05, _HEIGHT - 0.52, color=_KINDS[kind], lw=0
            )
            axes.add_patch(stripe)
        _text(axes, row, left + 0.3, top + 0.36)


def _text(axes: Axes, row: LevelRow, x: float, y: float) -> None:
    from nestling.models.describe import size

    held = f" · {size(row.state_bytes)}" if row.state_bytes else ""
    name = row.name.replace("blocks.*.", "")
    axes.text(x, y, textwrap.shorten(name, 34, placeholder="…"), size=11, weight="bold", color=_INK, va="center")
    lines = (f"{row.rule}", f"learns {row.context}", f"{row.parameters:,} numbers{held}")
    for number, line in enumerate(lines):
        said = line if len(line) <= 46 else f"{line[:45]}…"
        axes.text(x, y + 0.27 + 0.24 * number, said, size=8.4, color=_INK if number < 2 else _PALE, va="center")


def _axis(axes: Axes, top: float, low: int, step: float) -> None:
    """Updates for each token, in powers of ten from 10^-``low``, under the dots."""
    left, width = _LEFT + 0.25, _AXIS - 0.75
    axes.plot([left, left + width], [top + 0.08] * 2, color=_PALE, lw=1)
    for exponent in range(-low, 1, 2):
        x = left + width * (1 + exponent / low)
        axes.plot([x, x], [top + 0.08, top + 0.14], color=_PALE, lw=1)
        axes.text(x, top + 0.27, f"$10^{{{exponent}}}$", size=8.5, color=_PALE, ha="center", va="center")
    axes.text(0.35, top + 0.16, "updates a token", size=9, color=_PALE, va="center")
    said = f"a step of training is drawn as {step:,.0f} tokens"
    axes.text(_LEFT + _AXIS, top + 0.16, said, size=9, color=_PALE, va="center")


def _legend(axes: Axes, y: float) -> None:
    from matplotlib.patches import Rectangle

    axes.text(0.35, y, "knowledge comes by", size=9, color=_PALE, va="center")
    x = _LEFT + 0.6
    for kind, colour in _KINDS.items():
        axes.add_patch(Rectangle((x, y - 0.09), 0.06, 0.18, color=colour, lw=0))
        axes.text(x + 0.13, y, kind, size=9, color=_INK, va="center")
        x += 0.42 + 0.085 * len(kind)


def _kinds(row: LevelRow) -> list[str]:
    return [kind for kind in _KINDS if kind in row.transfer]


def _every(row: LevelRow) -> str:
    if row.period == inf:
        return "never"
    return f"every {row.unit}" if row.period == 1 else f"every {row.period:,g} {row.unit}s"


def _tokens(row: LevelRow, step: float) -> float:
    return row.period * (step if row.unit == "step" else 1)


def _place(row: LevelRow, step: float, low: int) -> float:
    """From 0, 10^-``low`` updates a token or none, to 1, one: logarithmic in the frequency."""
    return 0.0 if row.period == inf else 1 - log10(_tokens(row, step)) / low
