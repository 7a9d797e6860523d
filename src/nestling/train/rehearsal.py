"""A rehearsal: everything that a run needs, built and tried once, and nothing written."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass

import torch

from nestling.errors import NestlingError
from nestling.train.config import TrainConfig
from nestling.train.console import duration
from nestling.train.device import peak_memory
from nestling.train.run import Run


@dataclass(frozen=True)
class DryRun:
    """What a run would take; ``str`` of it is for people."""

    parameters: int
    tokens_per_step: int
    train_tokens: int
    valid_tokens: int
    steps: int
    loss: float
    """Of the first step, in nats a token."""
    memory: int
    """Peak in bytes: of the GPU's tensors, or of this process on the CPU."""
    seconds_per_step: float
    device: str
    precision: str

    @property
    def seconds(self) -> float:
        """Estimate for all steps, without evaluations and checkpoints."""
        return self.steps * self.seconds_per_step

    @property
    def epochs(self) -> float:
        """How often the run reads the training text."""
        return self.steps * self.tokens_per_step / self.train_tokens

    def __str__(self) -> str:
        """One line a figure."""
        figures = {
            "parameters": f"{self.parameters:,}",
            "training text": f"{self.train_tokens:,} tokens, read {self.epochs:.2f} times",
            "held-out text": f"{self.valid_tokens:,} tokens",
            "a step": f"{self.tokens_per_step:,} tokens, {self.seconds_per_step:.3g} s",
            "the run": f"{self.steps:,} steps, about {duration(self.seconds)} without evaluations",
            "memory": f"{self.memory / 2**20:,.0f} MiB at the peak",
            "device": f"{self.device}, {self.precision}",
            "first loss": f"{self.loss:.3f}",
        }
        return "\n".join(f"{name:<14} {value}" for name, value in figures.items())


def dry_run(config: TrainConfig) -> DryRun:
    """Build the run, make two updates (the second is timed), and report. The run's folder is not touched.

    Raises:
        NestlingError: what ``train`` would raise for the configuration or the data, or the first loss is not finite.
    """
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as cache,
        torch.random.fork_rng(devices=list(range(torch.cuda.device_count()))),
    ):
        run = Run.build(config, cache=cache)
        first = run.update(1)
        if not first.finite:
            raise NestlingError(f"the first loss is {first.score.loss}, its gradient's norm {first.gradient_norm}.")
        begun = time.perf_counter()
        run.update(min(2, config.steps))
        seconds = time.perf_counter() - begun
    return DryRun(
        parameters=run.parameters,
        tokens_per_step=config.tokens_per_step,
        train_tokens=len(run.source.train.tokens),
        valid_tokens=len(run.source.valid.tokens),
        steps=config.steps,
        loss=first.score.loss,
        memory=peak_memory(run.device),
        seconds_per_step=seconds,
        device=str(run.device),
        precision=str(run.dtype).removeprefix("torch."),
    )
