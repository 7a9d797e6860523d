"""How fast this machine is, for a demonstration that is given minutes instead of tokens."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F

from nestling.data import ByteTokenizer
from nestling.demo.ahead import cores
from nestling.demo.config import DemoConfig, Plan
from nestling.demo.contenders import baseline_config, memory_config
from nestling.demo.reading import PIECE
from nestling.recipes import build
from nestling.stream import Session
from nestling.train import TrainConfig

_OVERHEAD = 25.0  # seconds: to make the tokenizer, evaluate, check sessions, ask about old documents, draw
_BYTES_PER_TOKEN = 2.5  # about what a small byte-pair encoding makes of source code
_FEWEST = 10


def fitted(plan: Plan, config: DemoConfig, unseen_bytes: int) -> Plan:
    """``plan`` with as many steps as make about ``config.minutes`` in all; the results then depend on the machine."""
    if config.minutes is None:
        return plan
    tokens = min(plan.unseen, int(unseen_bytes / _BYTES_PER_TOKEN))
    updates: list[float] = []
    reading = 0.0
    for make, readers in ((memory_config, 2), (baseline_config, 1)):
        update, token = measure(make(config.recipe, plan, config.seed, Path(config.out)))
        updates.append(update)
        reading += readers * token * tokens
    left = 60 * config.minutes - _OVERHEAD - reading
    # Beside one another where there are two cores, else one after the other.
    together = max(updates) if cores() > 1 else sum(updates)
    return replace(plan, steps=max(int(left / together), _FEWEST))


def measure(config: TrainConfig) -> tuple[float, float]:
    """Seconds for an update of the weights, and for reading one token of a stream."""
    with torch.random.fork_rng(devices=[]):
        model = build(config.recipe, config.size, config.vocab_size, **config.changes)
        tokens = torch.randint(256, (config.batch, config.length + 1))
        session = Session(model, ByteTokenizer(), piece=PIECE)

        def update() -> None:
            logits, _ = model(tokens[:, :-1])
            F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()

        def read() -> None:
            session.feed(tokens.flatten()[:PIECE])

        return _seconds(update), _seconds(read) / min(PIECE, tokens.numel())


def _seconds(work: Callable[[], None]) -> float:
    """Of the second and third time: the first one is never as fast."""
    work()
    begun = time.perf_counter()
    for _ in range(2):
        work()
    return (time.perf_counter() - begun) / 2
