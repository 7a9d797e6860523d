"""A run that takes a second: a small model, a small text, many checkpoints."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from nestling.train import Intervals, OptimizerConfig, TrainConfig

MODEL: dict[str, int | float | str | bool] = {"dim": 16, "layers": 1, "heads": 2}


def text(folder: Path) -> str:
    """A folder of small texts, written once."""
    if not folder.exists():
        folder.mkdir(parents=True)
        for index in range(30):
            lines = [f"line {line} of text {index}: {'ab' * (line * index % 7)}\n" for line in range(4 + index % 5)]
            (folder / f"{index:02}.txt").write_text("".join(lines))
    return str(folder)


def config(folder: Path, **changes: Any) -> TrainConfig:
    """A run in ``folder/run``, on the text in ``folder/text``."""
    base = TrainConfig(
        recipe="transformer",
        changes=MODEL,
        data=(text(folder / "text"),),
        out=str(folder / "run"),
        steps=12,
        batch=2,
        length=16,
        accumulate=2,
        device="cpu",
        optimizer=OptimizerConfig(lr=1e-2, warmup=0.25),
        every=Intervals(log=1, evaluate=6, checkpoint=4),
        eval_batches=2,
        console="quiet",
        tensorboard=False,
    )
    return replace(base, **changes)


def curve(run: Path) -> list[dict[str, Any]]:
    """The updates and evaluations in the log of a run, without what the clock says."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    timed = ("time", "tokens_per_second")
    chosen = [line for line in lines if line["event"] in ("train", "eval")]
    return [{name: value for name, value in line.items() if name not in timed} for line in chosen]
