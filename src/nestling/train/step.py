"""One update of the weights, and one evaluation."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nestling.data import IGNORED, Batch, Tokenizer
from nestling.models import LM
from nestling.nn import State
from nestling.ops import stretches
from nestling.train.device import autocast


@dataclass(frozen=True)
class Score:
    """How well text was predicted.

    >>> Score(loss=math.log(256), tokens=100, bytes=100).bits_per_byte
    8.0
    """

    loss: float
    """Mean cross entropy of a token, in nats."""
    tokens: int
    """Tokens that were predicted."""
    bytes: int
    """Bytes that they stand for."""

    @property
    def bits_per_byte(self) -> float:
        """Bits that an ideal coder spends on a byte: comparable across tokenizers."""
        return self.loss * self.tokens / max(self.bytes, 1) / math.log(2)


def backward(
    model: LM, batches: Sequence[Batch], dtype: torch.dtype = torch.float32, recompute: int | None = None
) -> Tensor:
    """Add the gradient of the mean loss over all targets of ``batches``, one batch after the other; return that loss.

    ℓ = Σ_b Σ_i −log p(target) / N with N the number of targets in all batches, so the split into batches changes nothing.
    ``recompute``: hold so many tokens of a row at once, and compute each such stretch again (``ops.stretches``); None holds all.
    """
    targets = max(count(batches), 1)
    loss = torch.zeros((), device=model.embedding.weight.device)
    for batch in batches:
        part = negative_log_likelihood(model, batch, dtype, recompute) / targets
        part.backward()
        loss = loss + part.detach()
    return loss


@torch.no_grad()
def evaluate(
    model: LM,
    batches: Iterable[Batch],
    tokenizer: Tokenizer,
    dtype: torch.dtype = torch.float32,
    stretch: int | None = None,
) -> Score:
    """The mean loss over all targets of ``batches``, without learning; ``stretch`` tokens of a row at once, None all."""
    loss, seen = 0.0, []
    training = model.training
    model.eval()
    for batch in batches:
        loss += float(negative_log_likelihood(model, batch, dtype, stretch))
        seen.append(batch)
    model.train(training)
    return score(loss / max(count(seen), 1), seen, tokenizer)


def negative_log_likelihood(model: LM, batch: Batch, dtype: torch.dtype, stretch: int | None = None) -> Tensor:
    """Σ −log p(target) over the targets of a batch, in at least float32; by stretches of so many tokens, or all at once."""
    batch = batch.to(model.embedding.weight.device)
    row, lost = (batch.tokens, batch.targets, batch.starts), _Lost(model, dtype)
    if stretch is None or stretch >= batch.tokens.shape[1]:
        return lost(row, None)[0]
    return torch.stack(stretches(lost, row, None, stretch)[0]).sum()


class _Lost(nn.Module):
    """(tokens, targets, starts), state -> Σ −log p(target), state"""

    def __init__(self, model: LM, dtype: torch.dtype) -> None:
        super().__init__()
        self.model, self.dtype = model, dtype

    def forward(self, row: tuple[Tensor, Tensor, Tensor], state: State | None) -> tuple[Tensor, State]:
        tokens, targets, starts = row
        with autocast(tokens.device, self.dtype):
            logits, state = self.model(tokens, state, starts=starts)
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32)).flatten(0, 1)
        return F.cross_entropy(wide, targets.flatten(), ignore_index=IGNORED, reduction="sum"), state


def score(loss: float, batches: Sequence[Batch], tokenizer: Tokenizer) -> Score:
    """The score of a mean loss over ``batches``."""
    size = sum(tokenizer.count_bytes(batch.targets[batch.targets != IGNORED]) for batch in batches)
    return Score(loss, count(batches), size)


def count(batches: Sequence[Batch]) -> int:
    """Targets in ``batches``; those that are ignored do not count."""
    return sum(int((batch.targets != IGNORED).sum()) for batch in batches)
