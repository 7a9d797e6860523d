"""The plots of the report, as SVG that takes its colours from the page around it."""

from __future__ import annotations

import io
import re
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nestling.demo.results import Results, Stream

# Matplotlib draws in these; the page, light or dark, says what they look like.
_COLOURS = {
    "#010203": "var(--ink)",
    "#040506": "var(--grid)",
    "#070809": "var(--memory)",
    "#0a0b0c": "var(--off)",
    "#0d0e0f": "var(--baseline)",
}
_INK, _GRID, _MEMORY, _OFF, _BASELINE = _COLOURS

_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "nestling",
    "font.size": 10,
    "axes.edgecolor": _GRID,
    "axes.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "text.color": _INK,
    "grid.color": _GRID,
    "lines.linewidth": 1.8,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}
_SIZE = (6.4, 3.3)  # inches of 72 points: a phone shows it at about its own size


def training(results: Results) -> str:
    """Bits per byte of the training batches against the tokens read."""
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(figsize=_SIZE)
        for contender, colour in ((results.memory, _MEMORY), (results.baseline, _BASELINE)):
            tokens, bits = zip(*contender.curve, strict=True)
            axes.plot([count / 1000 for count in tokens], bits, color=colour, label=contender.recipe)
        axes.set(xlabel="thousands of tokens", ylabel="bits per byte, training batches")
        _legend(axes)
        return _svg(figure, axes, "training")


def stream(found: Stream) -> str:
    """Bits per byte along the unseen package."""
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(figsize=_SIZE)
        places = _middles(found)
        for reader, colour, name in (
            (found.baseline, _BASELINE, "transformer"),
            (found.off, _OFF, "memory off"),
            (found.on, _MEMORY, "memory on"),
        ):
            axes.plot(places, reader.windows, color=colour, label=name, linestyle="--" if reader is found.off else "-")
        axes.set(xlabel=f"KB of {found.package} read", ylabel="bits per byte")
        _legend(axes)
        return _svg(figure, axes, "stream")


def saved(found: Stream) -> str:
    """Bits per byte that the memory saves along the unseen package: below zero, writing hurts."""
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(figsize=_SIZE)
        places = _middles(found)
        bits = [off - on for off, on in zip(found.off.windows, found.on.windows, strict=True)]
        axes.axhline(0, color=_GRID, linewidth=1)
        axes.bar(places, bits, width=0.8 * found.window_bytes / 1000, color=_MEMORY, label="part by part")
        axes.axhline(found.memory.mean, color=_INK, linewidth=1, linestyle=":", label=f"mean {found.memory.mean:+.3f}")
        _legend(axes)
        axes.set(xlabel=f"KB of {found.package} read", ylabel="bits per byte saved by writing")
        return _svg(figure, axes, "saved")


def _middles(found: Stream) -> list[float]:
    return [(index + 0.5) * found.window_bytes / 1000 for index in range(len(found.on.windows))]


def _legend(axes: Axes) -> None:
    """Above the plot: lines may go anywhere."""
    axes.legend(frameon=False, ncols=3, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2)


def _svg(figure: Figure, axes: Axes, name: str) -> str:
    axes.grid(axis="y", linewidth=0.6)
    axes.set_axisbelow(True)
    with plt.rc_context({"svg.hashsalt": name}):
        text = io.StringIO()
        figure.savefig(text, format="svg", bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)
    return inline(text.getvalue(), name)


def inline(svg: str, name: str) -> str:
    """An SVG file as a part of a page: no addresses, no sizes, no names that another plot has too.

    >>> inline('<?xml?><svg width="9pt" xmlns="http://x"><g id="axes_1" style="fill: #010203"/></svg>', "plot")
    '<svg><g style="fill: var(--ink)"/></svg>'
    """
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\s(?:xmlns(?::\w+)?|version)="[^"]*"', "", svg)
    svg = re.sub(r'(<svg[^>]*?)\s(?:width|height)="[^"]*"', r"\1", svg)
    svg = re.sub(r'(<svg[^>]*?)\s(?:width|height)="[^"]*"', r"\1", svg)
    referred = set(re.findall(r"#([\w-]+)\"|url\(#([\w-]+)\)", svg))
    used = {name for pair in referred for name in pair if name}
    svg = re.sub(r'\sid="([\w.-]+)"', lambda found: found.group() if found[1] in used else "", svg)
    for drawn, shown in _COLOURS.items():
        svg = svg.replace(drawn, shown)
    return svg.strip()
