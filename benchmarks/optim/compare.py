"""A comparison in which every optimizer has the same: eleven rates on one seed to tune by, then three seeds at the best."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import matplotlib.pyplot as plt
import torch
from torch import nn

from benchmarks.optim.optimizers import COLOURS, CONTROL, ENTRIES, REST, Entry
from benchmarks.optim.tasks import TASKS, Task
from benchmarks.shared import SEEDS, Pieces, machine, save, spread, table, write

MOST = 11
"""Rates that are tried for each optimizer"""
TUNED_ON = 100
"""The seed of the runs that choose the rate; none of ``SEEDS``"""
EVERY = {"digits": 20, "novels": 16}
WARM, FLOOR = 0.1, 0.1
STYLES = {"delta, as printed": ("#009e73", "--"), "dgd, loss × 100": ("#e69f00", "--")}


def schedule(done: float) -> float:
    """The part of the rate at the part ``done`` of a training: linear warm-up, then a cosine to ``FLOOR``.

    >>> [round(schedule(x), 2) for x in (0.05, 0.1, 1.0)]
    [0.5, 1.0, 0.1]
    """
    if done < WARM:
        return done / WARM
    return FLOOR + (1 - FLOOR) * (1 + math.cos(math.pi * (done - WARM) / (1 - WARM))) / 2


class Training:
    """One model and its optimizers: ``step`` at a part of the rate, on a batch."""

    def __init__(self, task: Task, entry: Entry, rate: float, seed: int) -> None:
        torch.manual_seed(seed)
        self.task, self.entry, self.model = task, entry, task.model()
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizers = entry.make(self.model, rate)
        self.full = [[float(group["lr"]) for group in one.param_groups] for one in self.optimizers]
        self.batches = torch.Generator().manual_seed(seed)

    def step(self, part: float) -> float:
        """One update; the loss before it. Gradients are clipped to norm 1, then multiplied by the entry's scale."""
        for one, rates in zip(self.optimizers, self.full, strict=True):
            one.zero_grad()
            for group, rate in zip(one.param_groups, rates, strict=True):
                group["lr"] = part * rate
        loss = self.task.loss(self.model, self.task.draw(self.batches))
        if not loss.isfinite():
            raise FloatingPointError
        loss.backward()
        if not nn.utils.clip_grad_norm_(self.parameters, 1.0).isfinite():
            raise FloatingPointError
        if self.entry.scale != 1.0:
            torch._foreach_mul_([p.grad for p in self.parameters if p.grad is not None], self.entry.scale)
        for one in self.optimizers:
            one.step()
        return loss.item()


def train(task: Task, entry: Entry, rate: float, seed: int) -> dict[str, Any]:
    """The curves of one training, and what it ends with; infinite where it diverges."""
    training, every = Training(task, entry, rate, seed), EVERY[task.name]
    losses: list[float] = []
    curve: list[tuple[int, float, float, float]] = []
    try:
        for step in range(1, task.steps + 1):
            losses.append(training.step(schedule(step / task.steps)))
            if step % every == 0 or step == task.steps:
                curve.append((step, statistics.fmean(losses[-every:]), *task.evaluate(training.model, task.test)))
        validation = task.evaluate(training.model, task.validation)[0]
    except FloatingPointError:
        validation = math.inf
    validation = validation if math.isfinite(validation) else math.inf
    return {"curve": curve, "validation": validation, "summary": f"{validation:.4f}"}


def tune(loss: Callable[[float], float], begin: float) -> float:
    """The best of ``MOST`` rates, by one rule for everyone: a decade apart, then half, then a quarter where it is best.

    The first eight reach from five decades below ``begin`` to two above: losses have several valleys (steps so small that hidden
    matrices stand still are one), and a search that only goes downhill ends in the nearest.

    >>> round(tune(lambda rate: abs(math.log10(rate)), 0.1), 3)
    1.0
    """
    rate = lambda place: begin * 10 ** (place / 4)  # noqa: E731
    tried = {place: loss(rate(place)) for place in range(-20, 9, 4)}
    best = lambda: min(tried, key=lambda place: (tried[place], place))  # noqa: E731
    middle = best()
    tried |= {place: loss(rate(place)) for place in (middle - 2, middle + 2)}
    middle = best()
    side = min((-1, 1), key=lambda step: tried.get(middle + 2 * step, math.inf))
    tried[middle + side] = loss(rate(middle + side))
    return rate(best())


def chosen(pieces: Pieces, task: Task, entry: Entry) -> float:
    """The tuned rate, from what was computed already or computed now."""

    def loss(rate: float) -> float:
        key = (task.name, entry.name, f"{rate:.4g}", TUNED_ON)
        return float(pieces.get(key, lambda: train(task, entry, rate, TUNED_ON))["validation"])

    return tune(loss, entry.begin)


def runs(pieces: Pieces, task: Task) -> Iterator[tuple[Entry, float, list[dict[str, Any]]]]:
    """Every optimizer with its tuned rate and its three trainings, and the control."""
    for entry in (*ENTRIES, CONTROL):
        rate = 0.0 if entry == CONTROL else chosen(pieces, task, entry)
        key = lambda seed, entry=entry, rate=rate: (task.name, entry.name, f"{rate:.4g}", seed)  # noqa: E731
        work = lambda seed, entry=entry, rate=rate: lambda: train(task, entry, rate, seed)  # noqa: E731
        yield entry, rate, [pieces.get(key(seed), work(seed)) for seed in SEEDS]


def clock(task: Task, rates: dict[str, float]) -> dict[str, Any]:
    """Milliseconds a step, all optimizers in turn in one process: the median of seven rounds of six steps, and their quartiles."""
    trainings = {entry.name: Training(task, entry, rates[entry.name], 0) for entry in ENTRIES}
    took: dict[str, list[float]] = {name: [] for name in trainings}
    for _ in range(8):
        for name, training in trainings.items():
            begin = time.perf_counter()
            for _ in range(6):
                training.step(0.1)
            took[name].append(1e3 * (time.perf_counter() - begin) / 6)
    return {"milliseconds": {name: statistics.quantiles(times[1:], n=4) for name, times in took.items()}}


def draw(task: Task, found: list[tuple[Entry, float, list[dict[str, Any]]]], times: dict[str, list[float]]) -> None:
    """Train and held-out loss against steps and against seconds: the mean of three seeds, from the lowest to the highest."""
    figure, axes = plt.subplots(2, 2, figsize=(12, 9), layout="constrained", sharey="row")
    for entry, _, trainings in found[:-1]:
        colour, style = STYLES.get(entry.name, (COLOURS.get(entry.name), "-"))
        steps = [point[0] for point in trainings[0]["curve"]]
        for row, column in ((0, 1), (1, 2)):
            values = [[point[column] for point in one["curve"]] for one in trainings]
            if len({len(one) for one in values}) != 1:
                continue
            middle = [statistics.fmean(point) for point in zip(*values, strict=True)]
            low, high = ([edge(point) for point in zip(*values, strict=True)] for edge in (min, max))
            for axis, unit in ((axes[row, 0], 1.0), (axes[row, 1], times[entry.name][1] / 1e3)):
                along = [unit * step for step in steps]
                axis.plot(along, middle, style, color=colour, label=entry.name)
                axis.fill_between(along, low, high, color=colour, alpha=0.15, linewidth=0)
    for row, title in enumerate(("training", "held-out")):
        for column, unit in enumerate(("step", f"seconds of training ({machine()})")):
            axes[row, column].set(xlabel=unit, ylabel=f"{title} loss (nats, log scale)", yscale="log")
    axes[0, 0].legend(fontsize=8)
    figure.suptitle(
        f"{task.name}: each optimizer at its best of {MOST} rates, {len(SEEDS)} seeds (bands: lowest to highest)"
    )
    save(figure, f"optim-compare-{task.name}")


def report(task: Task, found: list[tuple[Entry, float, list[dict[str, Any]]]], times: dict[str, list[float]]) -> str:
    """What each optimizer ends with."""
    rows = []
    for entry, rate, trainings in sorted(found, key=lambda one: _final(one[2], 2)):
        ends = [one["curve"][-1] for one in trainings if one["validation"] < math.inf]
        cells = [spread([end[column] for end in ends]) if ends else "–" for column in (1, 2, 3)]
        clocked = ["–", "–"]
        if entry != CONTROL:
            low, middle, high = times[entry.name]
            clocked = [f"{middle:.0f} ({low:.0f} to {high:.0f})", f"{middle * task.steps / 1e3:.1f}"]
        rows.append((entry.name, f"{rate:.2g}", *cells, *clocked))
    header = (
        "optimizer",
        "rate",
        "training loss",
        "held-out loss",
        "held-out accuracy",
        "ms a step (quartiles)",
        "seconds in all",
    )
    return table(header, rows)


def _final(trainings: list[dict[str, Any]], column: int) -> float:
    ends = [one["curve"][-1][column] if one["validation"] < math.inf else math.inf for one in trainings]
    return statistics.fmean(ends)


def main() -> None:
    """Tune, train, time, draw, write."""
    pieces, text = Pieces("optim-compare"), []
    for name, make in TASKS.items():
        task = make()
        found = list(runs(pieces, task))
        rates = {entry.name: rate for entry, rate, _ in found}
        times = pieces.get((name, "time"), lambda task=task, rates=rates: clock(task, rates))["milliseconds"]  # type: ignore[misc]
        draw(task, found, times)
        hidden = sum(p.numel() for p in task.model().parameters())
        text += [f"## {name}: {task.steps} steps, {hidden:,} parameters", "", report(task, found, times), ""]
    head = (
        f"# Optimizers compared\n\n`python -m benchmarks.optim compare` on a {machine()}, float32. Rates of hidden matrices: the best of "
        f"{MOST} (validation loss, seed {TUNED_ON}); everything else AdamW at {REST:g} for all. Seeds {', '.join(map(str, SEEDS))}: mean ± standard "
        "deviation. Warm-up and cosine, gradients clipped to norm 1, no weight decay. Losses in nats (digits: an image, novels: a byte).\n\n"
    )
    write("optim-compare", head + "\n".join(text))
