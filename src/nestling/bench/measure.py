"""One recipe, measured: what it holds, how fast it trains and decodes, and how well it predicts after its training."""

from __future__ import annotations

import hashlib
import json
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from nestling.bench.config import BenchConfig
from nestling.errors import NestlingError
from nestling.models import LM, describe
from nestling.recipes import build, configure
from nestling.train import Evaluated, Intervals, OptimizerConfig, TrainConfig, Trained, load_model, read, train

TRIES = 3
"""Of decoding; the fastest counts."""


@dataclass(frozen=True)
class Row:
    """What came out for one recipe; figures that were not reached are None."""

    recipe: str
    key: str
    """Of everything that the figures depend on but the machine and the code."""
    parameters: int
    state_bytes: int
    """That one sequence carries, however long it is."""
    training: float | None = None
    """Tokens per second, forward, backward and update; median of the steps"""
    decoding: float | None = None
    """Tokens per second, one at a time after a prompt"""
    before: float | None = None
    """Bits per byte of the first batch, before any update"""
    trained: float | None = None
    """Bits per byte of the last tenth of the batches, each before its update"""
    valid: float | None = None
    """Bits per byte of held-out text after the training"""
    gradient: float | None = None
    """The largest norm of a gradient, before clipping"""
    failure: str = ""
    """Why the training stopped, or nothing"""


def key(recipe: str, config: BenchConfig) -> str:
    """A hash of the settings and of the recipe's configuration: equal keys, equal figures (but for the machine).

    >>> key("hope", BenchConfig()) == key("hope", BenchConfig(out="elsewhere")) != key("hope", BenchConfig(seed=1))
    True
    """
    whole = json.dumps([config.settings, repr(configure(recipe, vocab_size=config.vocab_size))], sort_keys=True)
    return hashlib.sha256(whole.encode()).hexdigest()[:12]


def measure(recipe: str, config: BenchConfig) -> Row:
    """Train ``recipe``, or go on with its run below ``config.out``, and measure it.

    Raises:
        NestlingError: the recipe is unknown, or a setting or the folder is not usable.
        SystemExit: a signal has stopped the training; the same command goes on with it.
    """
    with torch.random.fork_rng(devices=[]):
        system = describe(build(recipe, vocab_size=config.vocab_size))
    row = Row(recipe, key(recipe, config), system.parameters, system.state_bytes)
    run = training(recipe, config)
    try:
        result = train(run)
    except NestlingError as error:
        if not (Path(run.out) / "log.jsonl").exists():
            raise
        return Row(**{**vars(row), **_curve(run), "failure": str(error)})
    if result.signal:
        raise SystemExit(result.exit_code)
    model, _, _ = load_model(run.out)
    return Row(**{**vars(row), **_curve(run), "decoding": decoding(model, config)})


def training(recipe: str, config: BenchConfig) -> TrainConfig:
    """The run of a recipe, in a folder of its own for each set of settings."""
    return TrainConfig(
        recipe=recipe,
        tokenizer="bytes" if config.vocab_size == 256 else "bpe",
        vocab_size=config.vocab_size,
        out=str(Path(config.out) / f"{recipe}-{key(recipe, config)}"),
        steps=config.steps,
        batch=config.batch,
        length=config.length,
        seed=config.seed,
        device="cpu",
        eval_batches=config.valid,
        optimizer=OptimizerConfig(lr=config.lr),
        every=Intervals(log=1, evaluate=config.steps, checkpoint=max(config.steps // 4, 1)),
        keep=1,
        tensorboard=False,
    )


@torch.no_grad()
def decoding(model: LM, config: BenchConfig) -> float:
    """Tokens per second, one at a time, each the likeliest after the one before; the fastest of three tries."""
    prompt = torch.randint(model.config.vocab_size, (1, config.length), generator=torch.Generator().manual_seed(0))
    logits, state = model(prompt)
    token, best = logits[:, -1:].argmax(-1), 0.0
    for _ in range(TRIES):
        begun = time.perf_counter()
        for _ in range(config.decode):
            logits, state = model(token, state)
            token = logits.argmax(-1)
        best = max(best, config.decode / (time.perf_counter() - begun))
    return best


def _curve(run: TrainConfig) -> dict[str, float | None]:
    events = [event for _, event in read(Path(run.out) / "log.jsonl")]
    updates = [event for event in events if isinstance(event, Trained)]
    found = [event.bits_per_byte for event in events if isinstance(event, Evaluated)]
    if not updates:
        return {}
    last = updates[-max(len(updates) // 10, 1) :]
    return {
        "training": statistics.median(event.tokens_per_second for event in updates),
        "before": updates[0].bits_per_byte,
        "trained": statistics.mean(event.bits_per_byte for event in last),
        "valid": found[-1] if found else None,
        "gradient": max(event.gradient_norm for event in updates),
    }
