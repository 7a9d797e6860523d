"""What a step of each optimizer costs, beside torch's, on the matrices of a transformer of 50M parameters, in one process.

    python -m benchmarks.optimizers             about twelve minutes on one core
    python -m benchmarks.optimizers entries     one of the tables
    python -m benchmarks.optimizers --quick     3M parameters, a minute

All optimizers move the same weights with the same gradients, each with its own state; rivals of a table take turns, a step each
a round, and a row is the median of its rounds. What does something once in a period (M3, Shampoo, SOAP) is run with period 2, so
that every other step is a dear one, and its row is the mean over its own period. Parity with torch is checked before. Writes
``benchmarks/results/optimizers-<table>-<machine>-<date>.md`` and the raw figures beside it.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from benchmarks import shared
from nestling import optim

ROWS = 512
"""Inputs of each layer that an optimizer of layers sees in a step."""


@dataclass
class Contender:
    """One row: how it is made, whom it is compared with, and how often it does what is dear."""

    name: str
    make: Callable[[nn.Module], torch.optim.Optimizer]
    rival: str = ""
    period: int = 1
    layers: bool = False
    seconds: list[float] = field(default_factory=list)
    optimizer: Any = None

    @property
    def cost(self) -> float:
        """Seconds a step; of a periodic one the mean over its period."""
        if self.period == 1:
            return statistics.median(self.seconds)
        odd, even = (statistics.median(self.seconds[i::2]) for i in (0, 1))
        return (max(odd, even) + (self.period - 1) * min(odd, even)) / self.period

    @property
    def spread(self) -> float:
        """Half the range of its rounds in percent of their median; of a periodic one that of the cheap steps."""
        seconds = min((self.seconds[i::2] for i in (0, 1)), key=statistics.median) if self.period > 1 else self.seconds
        return 50 * (max(seconds) - min(seconds)) / statistics.median(seconds)

    @property
    def state(self) -> int:
        """Bytes of all that it remembers."""
        kept = (leaf for state in self.optimizer.state.values() for leaf in state.values())
        return sum(leaf.nbytes for leaf in kept if isinstance(leaf, Tensor))


def of(make: Callable[..., torch.optim.Optimizer], **settings: Any) -> Callable[[nn.Module], torch.optim.Optimizer]:
    """An optimizer of a model's parameters."""
    return lambda model: make(model.parameters(), lr=1e-5, **settings)


def unchecked(make: Callable[..., torch.optim.Optimizer]) -> Callable[[nn.Module], torch.optim.Optimizer]:
    """An optimizer that trusts its gradients, as torch's do."""
    return lambda model: make([{"params": list(model.parameters()), "error_if_nonfinite": False}], lr=1e-5)


ROUNDS = {"entries": 15, "matrices": 5}


def tables() -> dict[str, list[Contender]]:
    """Rivals that take turns: optimizers that move entry by entry, and those of matrices and layers."""
    theirs, each = torch.optim, {"foreach": True}
    wide = {"period": 2, "widest": (1024, 1024)}
    entries = [
        Contender("torch.optim.SGD", of(theirs.SGD, **each)),
        Contender("SGD", of(optim.SGD), "torch.optim.SGD"),
        Contender("SGD, checked by the caller", unchecked(optim.SGD), "torch.optim.SGD"),
        Contender("torch.optim.SGD, momentum", of(theirs.SGD, momentum=0.9, **each)),
        Contender("SGD, momentum", of(optim.SGD, momentum=0.9), "torch.optim.SGD, momentum"),
        Contender(
            "PreconditionedMomentum, P = 1", of(optim.PreconditionedMomentum, by=_one()), "torch.optim.SGD, momentum"
        ),
        Contender("torch.optim.Adam", of(theirs.Adam, **each)),
        Contender("Adam", of(optim.Adam), "torch.optim.Adam"),
        Contender("torch.optim.AdamW", of(theirs.AdamW, **each)),
        Contender("AdamW", of(optim.AdamW), "torch.optim.AdamW"),
        Contender("Lion", of(optim.Lion), "torch.optim.AdamW"),
    ]
    matrices = [
        Contender("torch.optim.Muon", of(in_float32)),
        Contender("Muon", of(optim.Muon), "torch.optim.Muon"),
        Contender("M3", of(optim.M3, period=2), "Muon", 16),
        Contender("DeltaMomentum", of(optim.DeltaMomentum), "Muon"),
        Contender("DeepMomentum", of(optim.DeepMomentum), "Muon"),
        Contender("Shampoo", of(optim.Shampoo, **wide), "Muon", 10),
        Contender("SOAP", of(optim.SOAP, **wide), "Muon", 10),
        Contender("DGD", lambda model: optim.DGD(model.parameters(), 1e-5, model), "Muon", layers=True),
    ]
    return {"entries": entries, "matrices": matrices}


def in_float32(parameters: Iterable[Any], lr: float) -> torch.optim.Optimizer:
    """``torch.optim.Muon`` without its cast to bfloat16, which a processor without that type emulates, many times slower."""

    class Muon(torch.optim.Muon):
        def step(self, closure: Any = None) -> Any:
            with mock.patch.object(Tensor, "bfloat16", Tensor.clone):
                return super().step(closure)

    return Muon(parameters, lr=lr)


def _one() -> Any:
    from nestling.core import Scale

    return Scale(1.0)


def transformer(width: int, blocks: int) -> nn.ModuleList:
    """The matrices of a transformer: q, k, v, o, up and down in each block."""
    sides = [*[(width, width)] * 4, (width, 4 * width), (4 * width, width)] * blocks
    return nn.ModuleList(nn.Linear(a, b, bias=False) for a, b in sides)


def give(model: nn.ModuleList, gradients: list[Tensor], layers: bool) -> None:
    """Gradients; where an optimizer looks at the inputs of layers, by a backward pass over ``ROWS`` of them."""
    for p, gradient in zip(model.parameters(), gradients, strict=True):
        p.grad = None if layers else gradient
    if layers:
        for layer in model:
            layer(torch.randn(ROWS, layer.in_features)).square().mean().backward()


def parity() -> dict[str, float]:
    """The largest relative difference of weights from torch's after five steps on a small model."""
    found = {}
    for contender in (c for table in tables().values() for c in table if c.rival == f"torch.optim.{c.name}"):
        rival = next(c for table in tables().values() for c in table if c.name == contender.rival)
        after = []
        for each in (contender, rival):
            torch.manual_seed(0)
            model = transformer(64, 1)
            optimizer = each.make(model)
            optimizer.param_groups[0]["lr"] = 1e-2
            for _ in range(5):
                give(model, [torch.randn_like(p) for p in model.parameters()], layers=False)
                optimizer.step()
            after.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
        found[contender.name] = float((after[0] - after[1]).norm() / after[1].norm())
    return found


def measure(table: list[Contender], model: nn.ModuleList, rounds: int) -> Iterator[int]:
    """Fill in the rows of a table, round after round."""
    torch.manual_seed(1)
    gradients = [1e-3 * torch.randn_like(p) for p in model.parameters()]
    for contender in table:
        contender.optimizer = contender.make(model)
    for number in range(rounds + 1):
        for contender in table:
            for _ in range(1 if contender.period == 1 else 2):
                give(model, gradients, contender.layers)
                begin = time.process_time()
                contender.optimizer.step()
                if number:  # the first one makes the state
                    contender.seconds.append(time.process_time() - begin)
        print(f"round {number} of {rounds}", file=sys.stderr, flush=True)
        if number:
            yield number


HEADER = ("optimizer", "ms a step", "± %", "times", "of", "bytes of state a parameter")


def markdown(contenders: list[Contender], header: str, count: int, differences: dict[str, float]) -> str:
    """The table, and what must be known to read it."""
    cost = {contender.name: contender.cost for contender in contenders}
    rows = []
    for c in contenders:
        times = f"{c.cost / cost[c.rival]:.2f}" if c.rival else ""
        rows.append((c.name, f"{1e3 * c.cost:,.0f}", f"{c.spread:.0f}", times, c.rival, f"{c.state / count:.1f}"))
    said = ", ".join(f"{name} {value:.1e}" for name, value in differences.items())
    lines = [
        header,
        "",
        shared.table(HEADER, rows),
        "",
        f"Parity with torch after five steps, relative difference of all weights (float32; Muon without torch's cast to bfloat16): {said}.",
    ]
    if any(c.layers for c in contenders):
        lines += [
            "M3 is the mean over its period of 16, Shampoo and SOAP over 10, with sides of at most 1,024.",
            f"DGD has seen {ROWS} inputs a layer and step; its forward and backward pass is not in its time.",
        ]
    return "\n".join(lines)


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", choices=[*ROUNDS, []], help="which to measure; none: all")
    parser.add_argument("--quick", action="store_true", help="3M parameters instead of 50M")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    differences = parity()
    if not all(value < 1e-4 for value in differences.values()):
        raise SystemExit(f"no parity with torch: {differences}")
    model = transformer(512, 1 if options.quick else 16)
    for name in options.tables or ROUNDS:
        table = tables()[name]
        for _ in measure(table, model, ROUNDS[name]):
            text = write(name, table, options.quick, model, differences)
        print(text)
    return 0


def write(name: str, contenders: list[Contender], quick: bool, model: nn.ModuleList, parity: dict[str, float]) -> str:
    """The table and the raw figures of what has been measured so far."""
    today, count = datetime.date.today().isoformat(), sum(p.numel() for p in model.parameters())
    command = f"python -m benchmarks.optimizers {name}" + (" --quick" if quick else "")
    header = (
        f"# Cost of a step: {name} ({today})\n\n`{command}` on a {shared.machine()}, seed 0, {count:,} parameters in {len(model)} matrices of "
        f"width 512, float32. Processor time, {len(contenders[0].seconds)} rounds in turns."
    )
    text = markdown(contenders, header, count, parity)
    cores = shared.machine().split(",")[0].replace(" ", "-")
    base = f"optimizers-{name}-{cores}-{today}{'-quick' if quick else ''}"
    shared.write(base, text)
    raw = [{"name": c.name, "seconds": c.seconds, "state_bytes": c.state} for c in contenders]
    (shared.RESULTS / f"{base}.json").write_text(json.dumps({"parity": parity, "optimizers": raw}, indent=1) + "\n")
    return text


if __name__ == "__main__":
    sys.exit(main())
