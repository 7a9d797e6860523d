"""NL figure 4: a valley that winds, ψ(r, θ) = r² + k (r − θ + α sin ωr)², from (−3.5, 2) (eq. 53).

The paper gives neither k, α, ω nor the rates. Here every optimizer is tuned over the same rates and decays for each of 70
valleys, all of them at once: a ``GradientMemory`` is a pure function, so ``vmap`` lifts it over valleys and settings. The
point (r, θ) is a weight of shape (1, 2), so that the momentum maps two inputs to one output and delta momentum erases
along g: m ← m (α − η gᵀg) − η g. "column" is the other reading, shape (2, 1), where gᵀg is the number ‖g‖².
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import matplotlib.pyplot as plt
import torch
import torch.utils._pytree as pytree
from torch import Tensor

from benchmarks.optim.optimizers import COLOURS
from benchmarks.shared import save, table, write
from nestling.core import L2, MLP, Constant, DotProduct, Gates, Matrix, Memory
from nestling.optim import Gradient, GradientMemory, Identity, One, Preconditioned
from nestling.optim.rules import Normalise

START = (-3.5, 2.0)
STEPS = 300
REACHED = 1e-3
"""The value of ψ below which a path has converged, if it stays there"""
RATES = tuple(10 ** (-4 + i / 5) for i in range(23))
DECAYS = (0.0, 0.5, 0.8, 0.9, 0.95, 0.99)

Rate: TypeAlias = Tensor | float


@dataclass(frozen=True)
class Valley:
    """The constants of ψ: how steep (k), how far it winds (α), how often (ω)."""

    k: float
    amplitude: float
    frequency: float

    def loss(self, point: Tensor) -> Tensor:
        """ψ = r² + k (r − θ + α sin ωr)²   NL eq. 53"""
        return psi(point, torch.tensor([self.k, self.amplitude, self.frequency], dtype=point.dtype))


STEEP, WIDE, OFTEN = (0.05, 0.1, 0.25, 0.5, 1.0, 4.0, 16.0), (0.5, 1.0, 2.0), (1.0, 2.0, 4.0)
SHAPES = [(0.0, 1.0), *itertools.product(WIDE, OFTEN)]
VALLEYS = [Valley(k, *shape) for shape in SHAPES for k in STEEP]


@dataclass(frozen=True)
class Reading:
    """An optimizer of the toy: its memory as a function of the rate, the coefficients, and the shape that (r, θ) has."""

    name: str
    rule: Callable[[Rate], GradientMemory]
    gates: Callable[[Rate, Rate], Gates]
    shape: tuple[int, int] = (1, 2)


def _delta(size: Rate) -> GradientMemory:
    return GradientMemory(Memory(Matrix(), L2()), Gradient(), Identity(size), Identity())  # type: ignore[arg-type]


_MLP, _UNIT = Memory(MLP(expand=2, depth=2), DotProduct()), Preconditioned(Normalise(2**-0.5))

READINGS = (
    Reading(
        "momentum", lambda lr: GradientMemory(Memory(Constant(), DotProduct())), lambda lr, a: Gates(lr=lr, retain=a)
    ),
    Reading("delta momentum", lambda lr: _delta(1.0), lambda lr, a: Gates(lr=lr, retain=a)),
    Reading("delta, column", lambda lr: _delta(1.0), lambda lr, a: Gates(lr=lr, retain=a), (2, 1)),
    Reading("delta, as printed", _delta, lambda lr, a: Gates(lr=1.0, retain=a)),
    Reading(
        "deep momentum",
        lambda lr: GradientMemory(_MLP, _UNIT, Gradient(), _UNIT, 2),
        lambda lr, a: Gates(lr=lr, retain={"w1": 1.0, "w2": a}),
    ),
    Reading(
        "deep, as printed",
        lambda lr: GradientMemory(_MLP, Gradient(), One(), Gradient(), 2),
        lambda lr, a: Gates(lr=lr, retain=a),
    ),
)


def psi(point: Tensor, constants: Tensor) -> Tensor:
    """ψ of one point (r, θ) with constants (k, α, ω)"""
    (r, theta), (k, amplitude, frequency) = point.reshape(2), constants
    return r**2 + k * (r - theta + amplitude * torch.sin(frequency * r)) ** 2


def paths(reading: Reading, constants: Tensor, rates: Tensor, decays: Tensor) -> Tensor:
    """(T + 1, n, 2): where n points are after each step, each with its own valley, rate and decay."""
    points = torch.tensor(START, dtype=torch.float64).reshape(reading.shape).expand(len(rates), *reading.shape)
    start = reading.rule(1.0).init(points[0])
    state = pytree.tree_map(lambda leaf: leaf.expand(len(rates), *leaf.shape), start)

    def step(point: Tensor, state: Any, valley: Tensor, rate: Tensor, decay: Tensor) -> tuple[Tensor, Any]:
        gradient = torch.func.grad(psi)(point, valley)
        update, state = reading.rule(rate).update(gradient, state, reading.gates(rate, decay))
        return point + update, state

    walked, lifted = [points], torch.func.vmap(step)
    for _ in range(STEPS):
        points, state = lifted(points, state, constants, rates, decays)
        walked.append(points)
    return torch.stack(walked).flatten(-2)


def duration(losses: Tensor) -> Tensor:
    """Steps until ψ is below ``REACHED`` for good, (n); infinite where it never is. ``losses`` (T + 1, n).

    >>> duration(torch.tensor([[9.0, 9.0], [0.0, 0.0], [1.0, 0.0], [0.0, 0.0]]))
    tensor([3., 1.], dtype=torch.float64)
    """
    above = ~(losses < REACHED)  # nan is above
    last = len(losses) - above.flip(0).double().argmax(0)  # one behind the last step that was above
    steps = torch.where(above.any(0), last, 0).double()
    return torch.where(steps < len(losses), steps, math.inf)


@dataclass(frozen=True)
class Found:
    """What the search found for one optimizer: steps to converge (valleys, rates, decays), and the paths themselves."""

    steps: Tensor
    walked: Tensor

    def tuned(self, decay: slice) -> Tensor:
        """The third fewest steps over the settings, (valleys): the fewest may be one lucky leap."""
        return self.steps[:, :, decay].flatten(1).sort(1).values[:, 2]

    def best(self, valley: int, decay: slice) -> tuple[Tensor, float, float]:
        """The path of the fewest steps (T + 1, 2), its rate and its decay."""
        of = self.steps[valley, :, decay]
        rate, index = divmod(int(of.argmin()), of.shape[1])
        index += decay.start or 0
        return self.walked[:, valley, rate, index], RATES[rate], DECAYS[index]


def search() -> dict[str, Found]:
    """Every optimizer in every valley with every setting."""
    constants = torch.tensor([(v.k, v.amplitude, v.frequency) for v in VALLEYS], dtype=torch.float64)
    grid = torch.tensor(list(itertools.product(RATES, DECAYS)), dtype=torch.float64)
    each = constants.repeat_interleave(len(grid), 0)
    rates, decays = grid.repeat(len(VALLEYS), 1).unbind(1)
    shape = (len(VALLEYS), len(RATES), len(DECAYS))
    found = {}
    for reading in READINGS:
        walked = paths(reading, each, rates, decays)
        losses = torch.func.vmap(torch.func.vmap(psi), in_dims=(0, None))(walked, each)
        found[reading.name] = Found(duration(losses).view(shape), walked.view(STEPS + 1, *shape, 2))
    return found


ALL, USUAL = slice(None), slice(DECAYS.index(0.9), DECAYS.index(0.9) + 1)
TUNINGS = {"rate tuned, decay 0.9": USUAL, "rate and decay tuned": ALL}
SHOWN = Valley(0.25, 2.0, 1.0)
COMPARED = ("momentum", "delta momentum", "deep momentum")


def draw_paths(found: dict[str, Found]) -> None:
    """The valley ``SHOWN`` from above with the best path of each optimizer, and ψ along these; one row for each tuning."""
    r, theta = torch.meshgrid(
        torch.linspace(-4.2, 3.8, 200).double(), torch.linspace(-5.5, 4.5, 200).double(), indexing="ij"
    )
    height = torch.func.vmap(torch.func.vmap(SHOWN.loss))(torch.stack([r, theta], -1))
    figure, axes = plt.subplots(2, 2, figsize=(10, 8), layout="constrained")
    for (left, right), (title, decays) in zip(axes, TUNINGS.items(), strict=True):
        left.contour(r, theta, height, levels=[2.0**i for i in range(-6, 7)], colors="#bbbbbb", linewidths=0.7)
        for name in COMPARED:
            path, rate, decay = found[name].best(VALLEYS.index(SHOWN), decays)
            losses = torch.func.vmap(SHOWN.loss)(path)
            reached = int(found[name].steps[VALLEYS.index(SHOWN), :, decays].min())
            label = f"{name}: {reached} steps (rate {rate:.2g}, decay {decay:g})"
            left.plot(
                *path[: reached + 1].T, "-", marker=".", markersize=4, linewidth=1, color=COLOURS[name], label=name
            )
            right.semilogy(losses, color=COLOURS[name], label=label)
        left.plot(*START, "kx"), left.plot(0, 0, "k*", markersize=10)
        left.set(xlabel="r", ylabel="θ", title=f"{title}: paths from × to ★", xlim=(-4.2, 3.8), ylim=(-5.5, 4.5))
        right.axhline(REACHED, color="#bbbbbb", linewidth=0.7)
        right.set(
            xlabel="step",
            ylabel="ψ (log scale)",
            title="loss; converged below the grey line",
            xlim=(0, 150),
            ylim=(1e-8, 1e3),
        )
        left.legend(fontsize=8), right.legend(fontsize=8)
    figure.suptitle(f"ψ = r² + k (r − θ + α sin ωr)², k = {SHOWN.k}, α = {SHOWN.amplitude}, ω = {SHOWN.frequency}")
    save(figure, "optim-toy")


def draw_range(found: dict[str, Found]) -> None:
    """Steps of momentum over those of delta momentum in every valley: where the claim of figure 4 holds."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 5), layout="constrained", sharey=True)
    for axis, (title, decays) in zip(axes, TUNINGS.items(), strict=True):
        ours, theirs = found["delta momentum"].tuned(decays), found["momentum"].tuned(decays)
        ratio = torch.where(ours.isinf() & theirs.isinf(), math.nan, theirs / ours).view(len(SHAPES), len(STEEP))
        image = axis.imshow(ratio.clamp(0.25, 4).log2(), cmap="PiYG", vmin=-2, vmax=2, aspect="auto")
        for (row, column), value in zip(
            itertools.product(range(len(SHAPES)), range(len(STEEP))), ratio.flatten(), strict=True
        ):
            text = "–" if value.isnan() else "∞" if value.isinf() else f"{value:.2g}"
            dark = "white" if value < 0.35 or value > 2.8 else "black"
            axis.text(column, row, text, ha="center", va="center", fontsize=8, color=dark)
        axis.set_xticks(range(len(STEEP)), [f"{k:g}" for k in STEEP])
        axis.set_yticks(range(len(SHAPES)), [f"α {a:g}, ω {w:g}" for a, w in SHAPES])
        axis.set(xlabel="k (steepness of the valley)", title=title)
    axes[0].set_ylabel("winding of the valley")
    bar = figure.colorbar(image, ax=axes, ticks=[-2, -1, 0, 1, 2])
    bar.ax.set_yticklabels(["≤ ¼", "½", "1", "2", "≥ 4"])
    bar.set_label("steps of momentum / steps of delta momentum")
    figure.suptitle(
        "Green: delta momentum converges sooner. 0: it never does; ∞: only it does; –: neither within 300 steps"
    )
    save(figure, "optim-toy-range")


def report(found: dict[str, Found]) -> str:
    """What was searched, and how often each optimizer converges and is the sooner."""
    lines = []
    for title, decays in TUNINGS.items():
        momentum = found["momentum"].tuned(decays)
        rows = []
        for name, of in found.items():
            own = of.tuned(decays)
            gentle = torch.tensor([v.k <= 0.5 for v in VALLEYS])
            sooner = [
                "–" if name == "momentum" else f"{int((own < momentum)[part].sum())} / {int(part.sum())}"
                for part in (gentle, ~gentle)
            ]
            shown = own[VALLEYS.index(SHOWN)]
            rows.append((name, int(own.isfinite().sum()), *sooner, f"{shown:.0f}" if shown.isfinite() else "–"))
        header = (
            "optimizer",
            f"converges, of {len(VALLEYS)}",
            "sooner than momentum, k ≤ 0.5",
            "k ≥ 1",
            "steps in the valley shown",
        )
        lines += [f"### {title.capitalize()}", "", table(header, rows), ""]
    both = [found[name].steps for name in COMPARED[:2]]
    same = [int((both[1] < both[0]).sum()), int((both[0] < both[1]).sum())]
    lines += [
        f"With the same rate and decay for both, delta momentum is sooner at {same[0]} settings, momentum at {same[1]} "
        f"(of {both[0].numel():,}; at the others neither converges, or both at the same step)."
    ]
    return "\n".join(lines)


def main() -> None:
    """Search, draw, write."""
    found = search()
    draw_paths(found)
    draw_range(found)
    head = (
        "# A winding valley (NL figure 4)\n\n`python -m benchmarks.optim toy`: float64, no seed but that of the deep memory's first layer (0). "
        f"{len(VALLEYS)} valleys, {len(RATES)} rates from {RATES[0]:.0e} to {RATES[-1]:.2g}, decays {', '.join(map(str, DECAYS))}, {STEPS} steps. "
        f"Converged: ψ below {REACHED} for good. Steps are the third fewest over the settings, so that no single leap decides.\n\n"
    )
    write("optim-toy", head + report(found))
