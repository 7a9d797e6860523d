"""A run in memory: everything that its configuration names, built."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch

from nestling.data import Tokenizer
from nestling.models import LM
from nestling.ops import Chunk
from nestling.recipes import build
from nestling.train.checkpoint import Checkpoint
from nestling.train.config import TrainConfig
from nestling.train.device import choose_device, choose_dtype
from nestling.train.optimizer import learning_rate, scheduled, set_rate
from nestling.train.source import Source, prepare
from nestling.train.step import Score, backward, evaluate, score


@dataclass(frozen=True)
class Update:
    """What one update saw: the score on its batches, before it, and the norm of the gradient, before clipping."""

    score: Score
    lr: float
    gradient_norm: float

    @property
    def finite(self) -> bool:
        """False when the loss or the gradient is nan or infinite."""
        return math.isfinite(self.score.loss) and math.isfinite(self.gradient_norm)


@dataclass(frozen=True, eq=False)
class Run:
    """The model, its optimizer and its data: step ``s`` of a run is a function of these and of ``s``."""

    config: TrainConfig
    model: LM
    optimizer: torch.optim.Optimizer
    source: Source
    dtype: torch.dtype

    @classmethod
    def build(cls, config: TrainConfig, tokenizer: Tokenizer | None = None, cache: str | Path | None = None) -> Run:
        """Build what ``config`` names; the weights are drawn from its seed, by torch's global random state.

        Raises:
            NestlingError: a name, a size, a device or the data is not what it should be.
        """
        device = choose_device(config.device)
        source = prepare(config, tokenizer, cache)
        torch.manual_seed(config.seed)
        model = build(config.recipe, config.size, source.tokenizer.vocab_size, **config.changes).to(device).train()
        model = model.using(Chunk(compiled=True)) if config.compile else model
        optimizer = scheduled(model, config.optimizer)
        return cls(config, model, optimizer, source, choose_dtype(config.precision, device))

    def update(self, step: int) -> Update:
        """Update the weights for the ``step``-th time, from 1; where the gradient is not finite, leave them as they are."""
        config = self.config
        rate = learning_rate(config.optimizer, step, config.steps)
        first = (step - 1) * config.accumulate
        batches = [self.source.train.batch(index) for index in range(first, first + config.accumulate)]
        self.optimizer.zero_grad(set_to_none=True)
        loss = float(backward(self.model, batches, self.dtype, config.recompute))
        norm = float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.optimizer.clip or math.inf))
        update = Update(score(loss, batches, self.source.tokenizer), rate, norm)
        if update.finite:
            set_rate(self.optimizer, config.optimizer, rate)
            self.optimizer.step()
        return update

    def evaluate(self) -> Score:
        """The score on held-out text: the same batches each time, and no text twice."""
        valid = self.source.valid
        number = min(self.config.eval_batches, math.ceil(valid.rows / valid.batch_size))
        held = map(valid.batch, range(number))
        return evaluate(self.model, held, self.source.tokenizer, self.dtype, self.config.recompute)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.embedding.weight.device

    @property
    def parameters(self) -> int:
        """Number of trained weights."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def checkpoint(self) -> Checkpoint:
        """What a checkpoint of this run holds."""
        return Checkpoint(self.model, self.optimizer, self.source.tokenizer, self.config.to_json(), self.source.key)
