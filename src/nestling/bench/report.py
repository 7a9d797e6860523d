"""The results of a benchmark of paths as tables and plots."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

import matplotlib
import torch

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from nestling.atomic import write_text
from nestling.bench.cells import Cell, flops, moved, weights
from nestling.bench.config import PathsConfig
from nestling.bench.paths import Result
from nestling.models.describe import size

TITLES = {
    "forward": "Forward",
    "training": "Forward and backward",
    "decode": "Token by token, state carried",
    "stream": "Pieces of 512 tokens, state carried",
}
COLUMNS = (
    *("path", "heads", "chunk", "T", "type", "tokens/s", "±", "GFLOP/s", "of ceiling", "of copy speed"),
    *("fast weights", "peak", "first run", "× peer", "× reference", "× naive", "× base"),
)


def write(target: Path, results: Sequence[Result], config: PathsConfig) -> None:
    """``target``.md, and the plots beside it."""
    merged = _merged(results)
    write_text(target.with_suffix(".md"), markdown(merged, config))
    drawn = [each for each in merged if each.seconds]
    if drawn:
        _save(target, "throughput", lambda axes: _throughput(axes, drawn))
        _save(target, "roofline", lambda axes: _roofline(axes, drawn))
        if any(each.breakdown for each in drawn):
            _save(target, "breakdown", lambda axes: _breakdown(axes, drawn))


def _merged(results: Sequence[Result]) -> list[Result]:
    """Rounds of the same cell as one result: all seconds, the highest peak."""
    found: dict[object, Result] = {}
    for each in results:
        name = replace(each.cell, round=0)
        before = found.get(name)
        if before is None:
            found[name] = replace(each, cell=name)
        elif each.seconds:
            peaks = [peak for peak in (before.peak_mib, each.peak_mib) if peak is not None]
            ceilings = [rate for rate in (before.ceiling, each.ceiling) if rate]
            found[name] = replace(
                each,
                cell=name,
                seconds=before.seconds + each.seconds,
                peak_mib=max(peaks) if peaks else None,
                ceiling=statistics.fmean(ceilings),
            )
    return list(found.values())


def markdown(results: Sequence[Result], config: PathsConfig) -> str:
    """One table for each thing that was timed."""
    lines = [f"# Paths of a memory layer ({_machine(config)})", "", _header(results, config)]
    for what, title in TITLES.items():
        rows = [each for each in results if each.cell.what == what]
        if rows:
            lines += ["", f"## {title}", "", f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
            lines += [_row(each, rows) for each in sorted(rows, key=lambda each: each.cell.shape)]
    return "\n".join(lines) + "\n"


def _machine(config: PathsConfig) -> str:
    where = "" if config.device == "cpu" else f", {torch.cuda.get_device_name(config.device)}"
    return f"threads {config.threads}, torch {torch.__version__}{where}"


def _header(results: Sequence[Result], config: PathsConfig) -> str:
    ceilings = [each.ceiling / 1e9 for each in results if each.ceiling]
    worst = max((each.parity for each in results if each.parity is not None), default=float("nan"))
    rates = f"{min(ceilings):,.0f} to {max(ceilings):,.0f} GFLOP/s" if ceilings else "not measured"
    return (
        f"`nestling bench paths{_options(config)}`; each cell in a process of its own, after parity of outputs and outer gradients "
        f"passed there (worst {worst:.0e}). Tokens per second are medians (of one thread: of its processor time), ± half the "
        f"spread in percent. The ceiling is a product of two large matrices, before and after each cell: {rates}. GFLOP/s count "
        "the matrix products that the path needs at least, bytes the fast weights that it moves at least; peak memory is of one "
        "run, beyond what the process held before. "
        '"By N": the backward pass holds N tokens at once and computes them again. The paths are described in `nestling.bench.cells`.'
    )


def _options(config: PathsConfig) -> str:
    """The options that give this config, but for where and how long."""
    changed = ""
    for each in fields(config):
        value = vars(config)[each.name]
        if value == each.default or each.name in ("out", "seconds"):
            continue
        said = (
            "PATH"
            if each.name == "peer_python"
            else " ".join(map(str, value if isinstance(value, tuple) else (value,)))
        )
        changed += f" --{each.name.replace('_', '-')} {said}"
    return changed


def _row(result: Result, rivals: Sequence[Result]) -> str:
    cell = result.cell
    name = _path(cell)
    shape = (f"{cell.heads}", f"{cell.chunk}", f"{cell.length:,}", cell.dtype)
    if not result.seconds:
        return f"| {name} | {' | '.join(shape)} | {result.skipped or result.error} |{' |' * (len(COLUMNS) - 6)}"
    middle = statistics.median(result.seconds)
    figures = (
        f"{result.rate:,.0f}",
        f"{50 * (max(result.seconds) - min(result.seconds)) / middle:.0f} %",
        f"{result.rate * flops(cell) / 1e9:,.1f}",
        f"{100 * result.achieved:.0f} %",
        f"{100 * result.rate * moved(cell) / result.bandwidth:.0f} %",
        size(weights(cell) * (4 if cell.dtype == "float32" else 2)),
        "" if result.peak_mib is None else f"{result.peak_mib:,.0f} MiB",
        f"{result.first:.1f} s",
        *(
            _ratio(result, rivals, path, source)
            for path, source in (("peer", "peer"), ("reference", "here"), ("naive", "here"))
        ),
        _ratio(result, rivals, cell.path, "base") if cell.source == "here" else "",
    )
    return f"| {name} | {' | '.join((*shape, *figures))} |"


def _ratio(result: Result, rivals: Sequence[Result], path: str, source: str) -> str:
    for each in rivals:
        other = each.cell
        if (other.path, other.source) == (path, source) and other.shape == result.cell.shape and each.rate:
            return "" if each is result else f"{result.rate / each.rate:.1f}"
    return ""


def _save(target: Path, name: str, draw: object) -> None:
    figure, axes = plt.subplots(figsize=(9, 5), layout="constrained")
    assert callable(draw)
    draw(axes)
    figure.savefig(target.with_name(f"{target.name}-{name}.png"), dpi=110)
    plt.close(figure)


def _label(result: Result) -> str:
    cell = result.cell
    return f"{_path(cell)}, {cell.heads} × {cell.dim // cell.heads}, chunk {cell.chunk}"


def _path(cell: Cell) -> str:
    held = "" if cell.recompute is None else f", by {cell.recompute:,}"
    return f"{cell.path}{held}{' (base)' if cell.source == 'base' else ''}"


def _throughput(axes: Axes, results: Sequence[Result]) -> None:
    """Tokens per second against T, training where it was measured; one below the other where there is one T."""
    what = next(
        what for what in ("training", "forward", "stream", "decode") if any(r.cell.what == what for r in results)
    )
    lines: dict[str, list[Result]] = {}
    for each in results:
        if each.cell.what == what:
            lines.setdefault(_label(each), []).append(each)
    if len({each.cell.length for line in lines.values() for each in line}) == 1:
        _dots(axes, {name: line[0] for name, line in lines.items()}, TITLES[what])
        return
    for number, (name, line) in enumerate(lines.items()):
        line = sorted(line, key=lambda each: each.cell.length)
        style = "--" if line[0].cell.path == "peer" else "-"
        points = [each.cell.length for each in line], [each.rate for each in line]
        axes.plot(*points, style, marker="o", markersize=3, color=f"C{number % 10}", label=name)
    axes.set(xscale="log", yscale="log", xlabel="tokens T", ylabel="tokens per second", title=TITLES[what])
    axes.legend(fontsize="x-small", ncols=2)


def _dots(axes: Axes, results: dict[str, Result], title: str) -> None:
    paths = list(dict.fromkeys(each.cell.path for each in results.values()))
    colors = [f"C{paths.index(each.cell.path)}" for each in results.values()]
    # Dots: the length of a bar says nothing where the axis has no zero.
    axes.scatter([each.rate for each in results.values()], list(results), s=30, color=colors)
    axes.grid(alpha=0.3)
    axes.invert_yaxis()
    length = next(iter(results.values())).cell.length
    axes.set(xscale="log", xlabel="tokens per second", title=f"{title}, T = {length:,}")


def _roofline(axes: Axes, results: Sequence[Result]) -> None:
    """What was reached, below what the machine allows at that intensity."""
    ceiling = statistics.median(each.ceiling for each in results)
    bandwidth = statistics.median(each.bandwidth for each in results)
    points = [(flops(each.cell) / moved(each.cell), each.rate * flops(each.cell), each) for each in results]
    low, high = min(x for x, *_ in points) / 2, max(x for x, *_ in points) * 2
    roof = [low, max(low, ceiling / bandwidth), max(high, ceiling / bandwidth)]
    axes.plot(roof, [min(ceiling, x * bandwidth) / 1e9 for x in roof], color="black", linewidth=1)
    paths = list(dict.fromkeys(each.cell.path for each in results))
    for number, path in enumerate(paths):
        mine = [(x, y / 1e9) for x, y, each in points if each.cell.path == path]
        axes.scatter([x for x, _ in mine], [y for _, y in mine], s=14, color=f"C{number}", label=path)
    axes.set(xscale="log", yscale="log", xlabel="FLOP a byte of fast weights", ylabel="GFLOP/s", title="Roofline")
    axes.legend(fontsize="small")


def _breakdown(axes: Axes, results: Sequence[Result]) -> None:
    """Where the time of a token goes, at the longest T of each path."""
    longest: dict[str, Result] = {}
    for each in sorted(results, key=lambda each: each.cell.length):
        if each.breakdown and each.cell.source != "base":
            longest[_label(each)] = each
    left = [0.0] * len(longest)
    for kind in ("matrix products", "elementwise", "moving", "outside"):
        parts = [1e6 * (each.breakdown or {})[kind] / each.tokens for each in longest.values()]
        axes.barh(list(longest), parts, left=left, label=kind)
        left = [a + b for a, b in zip(left, parts, strict=True)]
    axes.set(xlabel="µs a token, forward and backward (profiled)")
    axes.tick_params(axis="y", labelsize="x-small")
    axes.legend(fontsize="small")
