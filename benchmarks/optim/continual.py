"""Going on with another task: the optimizer's memories kept, or thrown away "at the end of pre-training" (NL §4.5).

A language model learns one novel, is saved with its optimizer, and goes on in a new process's objects with another novel.
"""

from __future__ import annotations

import io
import statistics
from typing import Any

import matplotlib.pyplot as plt
import torch

from benchmarks.optim.compare import Training, chosen
from benchmarks.optim.optimizers import BY_NAME, COLOURS, Entry
from benchmarks.optim.tasks import Task, novels
from benchmarks.shared import SEEDS, Pieces, machine, save, spread, table, write

FIRST, SECOND = ("Doyle_Lost_1912",), ("Burnett_Garden_1911",)
NAMES = ("adamw", "m3", "delta momentum")
STEPS, WARM = 120, 12
LOOKED_AT = (0, 1, 2, 4, 8, 16, 32, 64, 120)
WAYS = ("kept", "thrown away", "thrown away, warm-up")


def pretrain(task: Task, entry: Entry, rate: float, seed: int) -> bytes:
    """The first novel, with a warm-up and then one rate: what a file would hold."""
    training = Training(task, entry, rate, seed)
    for step in range(STEPS):
        training.step(min(1.0, (step + 1) / WARM))
    file = io.BytesIO()
    optimizers = [one.state_dict() for one in training.optimizers]
    torch.save({"model": training.model.state_dict(), "optimizers": optimizers}, file)
    return file.getvalue()


def resume(tasks: tuple[Task, Task], entry: Entry, rate: float, seed: int, file: bytes, way: str) -> list[Any]:
    """Held-out losses of both novels while the second is learnt, at the steps ``LOOKED_AT``."""
    training = Training(tasks[1], entry, rate, seed)
    saved = torch.load(io.BytesIO(file))
    training.model.load_state_dict(saved["model"])
    if way == "kept":
        for one, state in zip(training.optimizers, saved["optimizers"], strict=True):
            one.load_state_dict(state)
    found = []
    for step in range(STEPS + 1):
        if step in LOOKED_AT:
            found.append((step, *(task.evaluate(training.model, task.test)[0] for task in tasks)))
        if step < STEPS:
            training.step(min(1.0, (step + 1) / WARM) if way == "thrown away, warm-up" else 1.0)
    return found


def compute(tasks: tuple[Task, Task], entry: Entry, rate: float, seed: int) -> dict[str, Any]:
    """One first novel, and every way to go on from it."""
    file = pretrain(tasks[0], entry, rate, seed)
    ways = {way: resume(tasks, entry, rate, seed, file, way) for way in WAYS}
    return {"ways": ways, "summary": {way: [round(x, 3) for x in curve[-1]] for way, curve in ways.items()}}


def draw(found: dict[str, list[dict[str, Any]]]) -> None:
    """Loss with memories thrown away less that with memories kept, on both novels; bands without warm-up: lowest to highest."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained", sharey=True)
    for column, axis in enumerate(axes, start=1):
        for name, pieces in found.items():
            for way, style in ((WAYS[1], "-"), (WAYS[2], "--")):
                values = differences(pieces, way, column)
                middle = [statistics.fmean(point) for point in values]
                axis.plot(LOOKED_AT, middle, style, marker=".", color=COLOURS[name], label=f"{name}, {way}")
                if way == WAYS[2]:
                    continue
                low, high = ([edge(point) for point in values] for edge in (min, max))
                axis.fill_between(LOOKED_AT, low, high, color=COLOURS[name], alpha=0.12, linewidth=0)
        axis.axhline(0, color="black", linewidth=0.7)
        axis.set_xscale("symlog", linthresh=1)
        axis.set_xlim(0, 1.1 * STEPS)
        axis.set_yscale("symlog", linthresh=0.01)
        axis.set(
            xlabel="step of the second novel", title=f"held-out text of the {('first', 'second')[column - 1]} novel"
        )
    axes[0].set_ylabel("loss: thrown away − kept (nats a byte)\nabove 0: keeping is better")
    axes[0].legend(fontsize=8)
    save(figure, "optim-continual")


def differences(pieces: list[dict[str, Any]], way: str, column: int) -> list[list[float]]:
    """For each step looked at, over the seeds: the loss of a way less that of keeping."""
    pairs = [zip(one["ways"][way], one["ways"]["kept"], strict=True) for one in pieces]
    each = [[other[column] - kept[column] for other, kept in pair] for pair in pairs]
    return [list(point) for point in zip(*each, strict=True)]


def report(found: dict[str, list[dict[str, Any]]]) -> str:
    """Losses at the end, and the differences on the way."""
    rows = []
    for name, pieces in found.items():
        for way in WAYS:
            ends = [one["ways"][way][-1] for one in pieces]
            cells = [spread([end[column] for end in ends]) for column in (1, 2)]
            if way == "kept":
                rows.append((name, way, *cells, "", "", "", ""))
                continue
            at = [LOOKED_AT.index(step) for step in (4, 120)]
            gaps = [spread(differences(pieces, way, column)[place]) for column in (1, 2) for place in at]
            rows.append((name, way, *cells, *gaps))
    header = ("optimizer", "memories", "first novel", "second novel", "first, − kept, step 4", "step 120")
    return table((*header, "second, − kept, step 4", "step 120"), rows)


def main() -> None:
    """Train, go on in each way, draw, write."""
    tasks, tuned, pieces = (novels(FIRST), novels(SECOND)), Pieces("optim-compare"), Pieces("optim-continual")
    found: dict[str, list[dict[str, Any]]] = {}
    for name in NAMES:
        entry = BY_NAME[name]
        rate = chosen(tuned, novels(), entry)
        work = lambda seed, entry=entry, rate=rate: lambda: compute(tasks, entry, rate, seed)  # noqa: E731
        found[name] = [pieces.get((name, f"{rate:.4g}", seed), work(seed)) for seed in SEEDS]
    draw(found)
    head = (
        f"# Going on with another novel\n\n`python -m benchmarks.optim continual` on a {machine()}: {STEPS} steps on {FIRST[0]}, saved, {STEPS} on "
        f"{SECOND[0]}, at the rate that the comparison chose, constant after {WARM} steps of warm-up. Held-out losses in nats a byte after the "
        f"second novel, and what throwing the optimizer's state away adds (positive: keeping is better); seeds {', '.join(map(str, SEEDS))}, mean ± "
        "standard deviation.\n\n"
    )
    write("optim-continual", head + report(found))
