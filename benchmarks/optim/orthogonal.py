"""What memories of gradients keep of earlier tasks whose gradients lie in other directions (NL §4.3, eq. 45).

Eight linear regressions Lᵢ(W) = E ‖W x − y‖², one after another, the inputs of each in eight dimensions of their own, so
that the gradients of two tasks are orthogonal. All memories see the same stream of gradients, those along slow gradient
descent: what differs is the memory, not where an optimizer has gone. A memory is asked by a write that changes nothing
(rate 0, nothing forgotten): with the last gradient of task 1 for what it has kept, with the present one for its shares.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import matplotlib.pyplot as plt
import torch
import torch.utils._pytree as pytree
from torch import Tensor

from benchmarks.shared import save, spread, table, write
from nestling.core import (
    L2,
    MLP,
    Adaptive,
    Chain,
    Constant,
    DotProduct,
    Every,
    Gates,
    Matrix,
    Memory,
    Momentum,
    NewtonSchulz,
    Rule,
    Scale,
)
from nestling.optim import Gradient, GradientMemory, Identity, One, Preconditioned
from nestling.optim.rules import Normalise, mean

OUT, EACH, TASKS, STEPS, BATCH = 16, 8, 8, 100, 16
SEEDS = range(5)
LATER = (100, 200, 400, 700)
ASKED = 10
DESCENT, RATE, NOISE = 0.002, 0.05, 0.1
DEEP_RATE = 0.002
Curves: TypeAlias = tuple[list[list[float]], list[list[float]], list[list[float]]]
Read: TypeAlias = Callable[[Any, Tensor], Tensor]


@dataclass(frozen=True)
class Remembering:
    """A memory of gradients: its rule and coefficients, and how its state answers a gradient."""

    name: str
    rule: Rule
    gates: Gates
    read: Read


def asked(name: str, memory: GradientMemory, retain: Any, rate: float = RATE) -> Remembering:
    """A ``GradientMemory``, asked by a write that changes nothing."""
    silent = Gates(lr=0.0, retain=1.0)
    return Remembering(name, memory, Gates(lr=rate, retain=retain), lambda state, g: memory.update(g, state, silent)[0])


def momentum(alpha: float) -> Remembering:
    """m ← α m − η g"""
    return asked(f"momentum, α = {alpha:g}", GradientMemory(Memory(Constant(), DotProduct())), alpha)


def delta(alpha: float) -> Remembering:
    """m ← m (α − η gᵀg) − η g"""
    memory = GradientMemory(Memory(Matrix(), L2()), Gradient(), Identity(), Identity())
    return asked(f"delta momentum, α = {alpha:g}", memory, alpha)


def deep(alpha: float) -> Remembering:
    """An MLP that is taught gradients"""
    unit = Preconditioned(Normalise((EACH * TASKS) ** -0.5))
    memory = GradientMemory(Memory(MLP(expand=2, depth=2), DotProduct()), unit, Gradient(), unit)
    return asked(f"deep momentum, α = {alpha:g}", memory, {"w1": 1.0, "w2": alpha}, DEEP_RATE)


def orthogonal(name: str, of: Remembering) -> Remembering:
    """A memory read through Newton-Schulz"""
    return Remembering(
        name, of.rule, of.gates, lambda state, g: NewtonSchulz().update(of.read(state, g), (), Gates())[0]
    )


_ADAPTED = GradientMemory(Memory(Constant(), DotProduct()), One(), Preconditioned(Adaptive()), One())
_FAST = Remembering("M3, fast memory", mean(0.95), Gates(), lambda state, g: state[1])
_SLOW = Remembering(
    "M3, slow memory",
    Every(16, Chain((Scale(0.1 / 16), Momentum(0.9)))),
    Gates(),
    lambda state, g: state[1][1],
)
MEMORIES = (
    *(make(alpha) for make in (momentum, delta, deep) for alpha in (0.9, 0.99, 1.0)),
    # Its values are asked for, not its precondition: that would be written.
    Remembering(
        "preconditioned, α = 0.9", _ADAPTED, Gates(lr=RATE, retain=0.9), lambda state, g: state[0].dual["w1"].view_as(g)
    ),
    _FAST,
    _SLOW,
    orthogonal("M3, fast, orthogonalised", _FAST),
    orthogonal("M3, slow, orthogonalised", _SLOW),
)


def stream(seed: int) -> tuple[list[Tensor], list[Tensor]]:
    """The gradients of all tasks, one a step, (out, in); and a basis (in, each) of each task's inputs."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    width = EACH * TASKS
    bases = list(torch.linalg.qr(draw(width, width))[0].split(EACH, 1))
    target, weight, gradients = draw(OUT, width) / OUT**0.5, torch.zeros(OUT, width, dtype=torch.float64), []
    for basis in bases:
        for _ in range(STEPS):
            x = draw(BATCH, EACH) @ basis.mT
            y = x @ target.mT + NOISE * draw(BATCH, OUT)
            # ∇ E ‖W x − y‖²   NL eq. 45
            gradients.append(2 * (x @ weight.mT - y).mT @ x / BATCH)
            weight = weight - DESCENT * gradients[-1]
    return gradients, bases


def follow(memory: Remembering, gradients: Tensor, bases: Tensor) -> Curves:
    """For each seed: what is kept of task 1 at every tenth step after it; the share of each task in the last two answers.

    ``gradients`` (seeds, steps, out, in), ``bases`` (seeds, tasks, in, each).
    Kept: ⟨m U₁, m′ U₁⟩ / ‖m′ U₁‖² with m′ the answer when task 1 ended. Share of i: ‖m Uᵢ‖² / ‖m‖², in the answers to task 1's
    last gradient and to the last of all.
    """
    start = memory.rule.init(torch.zeros_like(gradients[0, 0]))
    state = pytree.tree_map(lambda leaf: leaf.expand(len(gradients), *leaf.shape), start)
    update = torch.func.vmap(lambda g, state: memory.rule.update(g, state, memory.gates))
    read = torch.func.vmap(memory.read)
    query, first, then, kept = gradients[:, STEPS - 1], bases[:, 0], torch.empty(0), []
    for step in range(1, gradients.shape[1] + 1):
        _, state = update(gradients[:, step - 1], state)
        if step >= STEPS and step % ASKED == 0:
            now = read(state, query) @ first
            then = now if step == STEPS else then
            kept.append((now * then).sum((1, 2)) / then.square().sum((1, 2)))
    answers = read(state, query), read(state, gradients[:, -1])
    first, last = ((one[:, None] @ bases).square().sum((2, 3)) / one.square().sum((1, 2))[:, None] for one in answers)
    return torch.stack(kept, 1).tolist(), first.tolist(), last.tolist()


Found: TypeAlias = dict[str, Curves]


def draw_kept(found: Found) -> None:
    """What is kept of task 1 while seven others are learnt, and the shares at the end."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(14, 6), layout="constrained", width_ratios=(1, 1.1))
    styles = {"momentum": "#bbbbbb", "delta momentum": "#009e73", "deep momentum": "#cc79a7"}
    dashes = {"0.9": ":", "0.99": "--", "1": "-"}
    widths = {"momentum": 6.0, "delta momentum": 3.5, "deep momentum": 1.2}  # they lie on one another
    others = {"preconditioned, α = 0.9": "#0072b2", "M3, fast memory": "#e69f00", "M3, slow memory": "#d55e00"}
    for name, (kept, _, _) in found.items():
        kind, _, alpha = name.partition(", α = ")
        if name not in others and kind not in styles:
            continue
        middle = [statistics.fmean(at) for at in zip(*kept, strict=True)]
        low, high = ([edge(at) for at in zip(*kept, strict=True)] for edge in (min, max))
        colour, style = (others[name], "-.") if name in others else (styles[kind], dashes[alpha])
        along = range(0, ASKED * len(middle), ASKED)
        left.plot(along, middle, style, color=colour, label=name, linewidth=widths.get(kind, 1.5))
        left.fill_between(along, low, high, color=colour, alpha=0.12, linewidth=0)
    left.set(
        xlabel="steps since task 1 ended (a new task every 100)",
        ylabel="kept of what was known of task 1",
        ylim=(-0.05, 1.1),
    )
    left.legend(fontsize=8, loc="center right")
    shares = [
        [statistics.fmean(at) for at in zip(*share, strict=True)]
        for share, _ in ((one[1], one[2]) for one in found.values())
    ]
    image = right.imshow(shares, cmap="Greens", vmin=0, vmax=1, aspect="auto")
    for row, line in enumerate(shares):
        for column, value in enumerate(line):
            shade = "white" if value > 0.6 else "black"
            right.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=8, color=shade)
    right.set_xticks(range(TASKS), [str(i + 1) for i in range(TASKS)])
    right.set_yticks(range(len(found)), list(found))
    right.set(
        xlabel="task, whose inputs span eight directions",
        title="share of each task in the answer to task 1's gradient, after task 8",
    )
    figure.colorbar(image, ax=right).set_label("share of ‖m‖²")
    save(figure, "optim-orthogonal")


def report(found: Found) -> str:
    """Kept and shares, with their spread over seeds."""
    rows = []
    for name, (kept, first, last) in found.items():
        cells = [spread([one[later // ASKED] for one in kept]) for later in LATER]
        shares = [spread([share[0] for share in first]), spread([sum(share[:-1]) for share in last])]
        rows.append((name, *cells, *shares))
    header = (
        "memory",
        *(f"kept after {later}" for later in LATER),
        "share of 1, asked for 1",
        "of 1 to 7, asked for 8",
    )
    return table(header, rows)


def main() -> None:
    """Follow, draw, write."""
    streams = [stream(seed) for seed in SEEDS]
    gradients = torch.stack([torch.stack(one) for one, _ in streams])
    bases = torch.stack([torch.stack(one) for _, one in streams])
    found = {memory.name: follow(memory, gradients, bases) for memory in MEMORIES}
    draw_kept(found)
    head = (
        "# Tasks in orthogonal directions (NL eq. 45)\n\n`python -m benchmarks.optim orthogonal`: float64, seeds 0 to 4, mean ± standard deviation. "
        f"{TASKS} regressions of {STEPS} steps, weight {OUT} × {EACH * TASKS}, {EACH} input directions each; η = {RATE} in the memories, "
        f"{DEEP_RATE} in the deep ones. Kept of task 1: the part of its answer when task 1 ended that is still there so many steps later, along "
        "the same directions.\n\n"
    )
    write("optim-orthogonal", head + report(found))
