"""The two models of a demonstration, of equal size and trained alike."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nestling.data import Tokenizer
from nestling.demo.config import Plan
from nestling.demo.results import Contender
from nestling.errors import NestlingError
from nestling.models import LM
from nestling.recipes import build
from nestling.train import Evaluated, Intervals, OptimizerConfig, TrainConfig, Trained, load_model, read, train

TOLERANCE = 0.03
"""How far the sizes of the two models may differ, as a fraction."""

_POINTS = 50  # of the training curve
_HELD_OUT = 32_768  # tokens that are predicted after the training


@dataclass(frozen=True, eq=False)
class Trainee:
    """A model after its training, and what the report says of it."""

    model: LM
    tokenizer: Tokenizer
    found: Contender


def memory_config(recipe: str, plan: Plan, seed: int, out: Path) -> TrainConfig:
    """The run of the model with a memory."""
    return _config(recipe, {}, plan, seed, out)


def baseline_config(recipe: str, plan: Plan, seed: int, out: Path) -> TrainConfig:
    """The run of a transformer with as many parameters as ``recipe`` has.

    It attends to everything in a training row. Its channel mixers are as wide as makes the sizes equal.

    Raises:
        NestlingError: no width brings the sizes within ``TOLERANCE``.
    """
    wanted = parameters(recipe, plan, {})
    changes = {"window": plan.length, "expand": _expand(wanted, plan)}
    got = parameters("transformer", plan, changes)
    if abs(got - wanted) > TOLERANCE * wanted:
        raise NestlingError(
            f"no transformer of these sizes has about {wanted:,} parameters like {recipe}, the nearest has {got:,}: "
            "use other sizes."
        )
    return _config("transformer", changes, plan, seed, out)


def parameters(recipe: str, plan: Plan, changes: dict[str, Any]) -> int:
    """Number of weights of a recipe at the sizes of ``plan``.

    >>> from nestling.demo.config import QUICK
    >>> parameters("hope", QUICK, {}) > 10_000
    True
    """
    with torch.device("meta"):
        model = build(recipe, "tiny", plan.vocab_size, **{**_shape(plan), **changes})
    return sum(parameter.numel() for parameter in model.parameters())


def fit(config: TrainConfig) -> Trainee:
    """Train by ``config``, or go on where a run of the same settings has stopped.

    Raises:
        SystemExit: a signal has stopped the run; the same command goes on with it.
    """
    result = train(config)
    if result.signal:  # the run is saved and has said so
        raise SystemExit(result.exit_code)
    model, tokenizer, manifest = load_model(config.out)
    events = [event for _, event in read(Path(config.out) / "log.jsonl")]
    trained = [event for event in events if isinstance(event, Trained)]
    evaluated = [event for event in events if isinstance(event, Evaluated)]
    seconds, before = 0.0, 0
    for event in trained:
        seconds += (event.tokens - before) / event.tokens_per_second
        before = event.tokens
    found = Contender(
        recipe=config.recipe,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        shape=repr(model.config),
        folder=config.out,
        tokens=manifest.step * config.tokens_per_step,
        seconds=seconds,
        bits_per_byte=evaluated[-1].bits_per_byte,
        curve=smooth([(event.tokens, event.bits_per_byte) for event in trained], _POINTS),
    )
    return Trainee(model, tokenizer, found)


def smooth(curve: Sequence[tuple[int, float]], points: int) -> tuple[tuple[int, float], ...]:
    """Means over equal parts of a curve: at most ``points`` of them, each at the end of its part.

    >>> smooth([(1, 4.0), (2, 2.0), (3, 1.0), (4, 0.0)], 2)
    ((2, 3.0), (4, 0.5))
    """
    width = -(-len(curve) // points)
    parts = [curve[low : low + width] for low in range(0, len(curve), width)]
    return tuple((part[-1][0], sum(bits for _, bits in part) / len(part)) for part in parts)


def _shape(plan: Plan) -> dict[str, Any]:
    return {"dim": plan.dim, "layers": plan.layers, "heads": plan.heads}


def _expand(wanted: int, plan: Plan) -> float:
    """The width whose size comes nearest, by bisection: more width, more parameters."""
    low, high = 0.25, 32.0
    while high - low > 0.01:
        middle = (low + high) / 2
        if parameters("transformer", plan, {"expand": middle}) < wanted:
            low = middle
        else:
            high = middle
    ends = [round(low, 2), round(high + 0.01, 2)]
    return min(ends, key=lambda expand: abs(parameters("transformer", plan, {"expand": expand}) - wanted))


def _config(recipe: str, changes: dict[str, Any], plan: Plan, seed: int, out: Path) -> TrainConfig:
    config = TrainConfig(
        recipe=recipe,
        changes={**_shape(plan), **changes},
        tokenizer="bytes" if plan.vocab_size == 256 else "bpe",
        vocab_size=plan.vocab_size,
        out=str(out),
        steps=plan.steps,
        batch=plan.batch,
        length=plan.length,
        seed=seed,
        device="cpu",
        eval_batches=max(_HELD_OUT // (plan.batch * plan.length), 1),
        optimizer=OptimizerConfig(lr=plan.lr),
        every=Intervals(log=1, evaluate=plan.steps, checkpoint=max(plan.steps // 4, 1)),
        tensorboard=False,
    )
    # A folder for each set of settings: the same command goes on with a run, another one never meets it.
    name = hashlib.sha256(json.dumps(config.to_json(), sort_keys=True).encode()).hexdigest()[:8]
    return TrainConfig.from_json({**config.to_json(), "out": str(out / f"{recipe}-{name}")})
