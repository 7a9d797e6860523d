"""Every model on every formal language: train, ask, write down, go on (Nested Learning, table 5)."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from nestling.core import Delta, Level, Matrix
from nestling.data import IGNORED
from nestling.data.synthetic.automata import LANGUAGES, Task, task, vocabulary
from nestling.errors import NestlingError
from nestling.eval.automata import accuracy
from nestling.models import LM
from nestling.nn import FixedDecay, Scaled, SelfForm, SelfModifying, SelfRange, Tracking, Within
from nestling.ops import Chunk
from nestling.recipes import build
from nestling.reproduce.config import AutomataConfig
from nestling.train.config import OptimizerConfig
from nestling.train.optimizer import learning_rate, optimizer_of, set_rate

WINDOW = 300
"""Symbols of the longest word: aⁿbⁿcⁿ with n = 100"""


@dataclass(frozen=True)
class Contender:
    """A row of the table: what builds the model, and what is changed of it beside the shape that all share."""

    make: Callable[..., LM]
    changes: Mapping[str, Any] = field(default_factory=dict)

    def build(self, vocab_size: int) -> LM:
        """Some 10,000 to 20,000 parameters."""
        return self.make(vocab_size=vocab_size, **{**SHAPE, **self.changes})


SHAPE = {"dim": 32, "heads": 4, "layers": 1, "expand": 2, "tied": False}
TRACKING: dict[str, Any] = {
    "period": 1,
    "form": SelfForm(
        memory=Matrix(),
        projections=Matrix(),
        retention=Delta(),
        value=Within(),
        start=Tracking(additive=3, reflecting=1),
    ),
    "ranges": SelfRange(lr=1.0, slow=0.0, fast=0.0, retain=14.0, projections=0.01),
    "levels": (Level("fast", 1), Level("slow", 1)),
}
"""Hope as it counts and tracks states (docs/automata.md): NL eqs 83-88 as printed, with matrices, committed after every token, each
write bounded, heads that begin where this happens: ``build("hope", **TRACKING)``"""
# Linear attention: Sₜ = Sₜ₋₁ + vₜkₜᵀ, a RetNet that neither forgets (1 - 2⁻⁶⁴ is 1 in float32) nor turns.
CONTENDERS = {
    "transformer": Contender(partial(build, "transformer"), {"window": WINDOW}),
    "linear attention": Contender(partial(build, "retnet"), {"gates": FixedDecay(64), "features": Scaled()}),
    "deltanet": Contender(partial(build, "deltanet")),
    "gated deltanet": Contender(partial(build, "gated_deltanet")),
    "hope": Contender(partial(build, "hope"), TRACKING),
}


LONGER = {"shuffle-2": 2}
"""Times the steps: its words are all different, and 1,000 batches of 8 are not yet all of them."""


@dataclass(frozen=True)
class Point:
    """What was found after ``step`` updates: the loss of the last batch, and the part of words right in each bin."""

    step: int
    loss: float
    bins: tuple[float, float]

    @property
    def solved(self) -> bool:
        """Is every word of both bins right?"""
        return self.bins == (1.0, 1.0)


@dataclass(frozen=True)
class Cell:
    """One run. ``best``: the point with the highest mean of both bins, which is what the benchmark reports."""

    model: str
    language: str
    seed: int
    parameters: int
    seconds: float
    curve: tuple[Point, ...]

    @property
    def best(self) -> Point:
        """The earliest of the best."""
        return max(self.curve, key=lambda point: sum(point.bins))

    @property
    def last(self) -> Point:
        """Where the run ended."""
        return self.curve[-1]


def train(contender: Contender, language: str, seed: int, config: AutomataConfig, made: Task) -> Iterator[Point]:
    """Train a fresh model and ask it now and then; ends when both bins are at 100 %.

    AdamW with warm-up and cosine; cross entropy of the class after every symbol. What is asked is the average of the last weights.
    The seed sets weights and order.
    """
    torch.manual_seed(seed)
    model = contender.build(vocabulary(LANGUAGES[language]))
    # w̄ₜ = average w̄ₜ₋₁ + (1 - average) wₜ
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.average))
    asked = cast(LM, average.module)
    # A compiled step of the other memories takes as long as theirs.
    if config.compile and any(isinstance(module, SelfModifying) for module in model.modules()):
        model = model.using(Chunk(compiled=True))
    schedule = OptimizerConfig(lr=config.lr, weight_decay=0.01, floor=0.03)
    optimizer = optimizer_of(model, schedule)
    order = torch.Generator().manual_seed(seed)
    steps = config.steps * LONGER.get(language, 1)
    for step in range(1, steps + 1):
        batch = made.train.take(torch.randint(len(made.train), (config.batch,), generator=order))
        set_rate(optimizer, schedule, learning_rate(schedule, step, steps))
        logits, _ = model(batch.tokens)
        loss = F.cross_entropy(
            logits.flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORED, label_smoothing=config.smoothing
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), schedule.clip)
        optimizer.step()
        average.update_parameters(model)
        if step % config.every == 0 or step == steps:
            near, far = (accuracy(asked, words) for words in made.bins)
            point = Point(step, loss.item(), (near, far))
            yield point
            if point.solved or not math.isfinite(point.loss):
                return


def run(config: AutomataConfig, tell: Callable[[str], None] = lambda line: None) -> list[Cell]:
    """All cells, one seed after the other; those that stand in ``out`` already are not made again."""
    rows = _chosen("model", config.models, CONTENDERS)
    columns = _chosen("language", config.languages, LANGUAGES)
    folder = Path(config.out)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "cells.jsonl"
    done = {(cell.model, cell.language, cell.seed): cell for cell in read(path, config)}
    wanted = [(model, language, seed) for seed in range(config.seeds) for language in columns for model in rows]
    tasks: dict[tuple[str, int], Task] = {}
    for count, (model, language, seed) in enumerate(wanted, 1):
        head = f"[{count}/{len(wanted)}] {model} · {language} · seed {seed}"
        if (model, language, seed) in done:
            tell(f"{head}: done before")
            continue
        if (language, seed) not in tasks:
            tasks = {(language, seed): task(LANGUAGES[language], seed, test=config.asked)}
        contender, begun, curve = CONTENDERS[model], time.perf_counter(), list[Point]()
        for point in train(contender, language, seed, config, tasks[language, seed]):
            curve.append(point)
            near, far = point.bins
            tell(f"{head}: step {point.step}, loss {point.loss:.4f}, {near:.1%} / {far:.1%}")
        size = sum(parameter.numel() for parameter in contender.build(vocabulary(LANGUAGES[language])).parameters())
        cell = Cell(model, language, seed, size, round(time.perf_counter() - begun, 1), tuple(curve))
        done[model, language, seed] = cell
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**asdict(cell), "settings": settings(config, contender)}, ensure_ascii=False) + "\n")
    return [done[key] for key in wanted]


def settings(config: AutomataConfig, contender: Contender) -> dict[str, Any]:
    """What a cell depends on, as JSON: the budget, and the source of the model's configuration."""
    budget = {
        name: value
        for name, value in asdict(config).items()
        if name in ("steps", "batch", "lr", "smoothing", "average", "every", "asked")
    }
    return {**budget, "model": repr(contender.build(2).config)}


def read(path: Path, config: AutomataConfig) -> list[Cell]:
    """The cells in a file, if there is one.

    Raises:
        NestlingError: a cell was made with other settings.
    """
    cells = []
    for line in path.read_text("utf-8").splitlines() if path.exists() else []:
        held = json.loads(line)
        ours, theirs = settings(config, CONTENDERS[held["model"]]), held.pop("settings")
        if ours != theirs:
            name = next(name for name in ours if ours[name] != theirs.get(name))
            raise NestlingError(
                f"{path} holds cells with {name} {theirs.get(name)!r}, asked is {ours[name]!r}: choose another --out."
            )
        curve = tuple(replace(Point(**point), bins=tuple(point["bins"])) for point in held.pop("curve"))
        cells.append(Cell(**held, curve=curve))
    return cells


def _chosen(kind: str, names: tuple[str, ...], known: Mapping[str, Any]) -> tuple[str, ...]:
    for name in names:
        if name not in known:
            raise NestlingError(f"unknown {kind} {name!r}: use one of {', '.join(known)}.")
    return names or tuple(known)
