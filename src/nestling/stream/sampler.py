"""How the next token is chosen from the logits: a value, and a pure function of logits and random numbers."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from nestling.errors import NestlingError


@dataclass(frozen=True)
class Sampler:
    """p ∝ exp(logits / temperature), cut to the ``top_k`` likeliest tokens, then to the nucleus of mass ``top_p``.

    ``temperature`` 0 takes the likeliest token. ``top_k`` None keeps all. ``top_p`` keeps the smallest set of likeliest tokens
    that together have at least that probability (Holtzman et al. 2020), after the cut to ``top_k``; equally likely tokens are
    kept in the order of their ids. ``seed`` chooses the random numbers: those of a token depend on it and on the token's
    position in its stream, and on nothing else, so that a text can be drawn in parts.

    Raises:
        NestlingError: a field is out of its range, or the logits hold NaN.

    >>> logits = torch.tensor([[0.0, 1.0, 3.0, 2.0]])
    >>> Sampler(temperature=0)(logits)
    tensor([2])
    >>> Sampler(top_k=2).probabilities(logits)
    tensor([[0.0000, 0.0000, 0.7311, 0.2689]])
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise NestlingError(
                f"temperature must be at least 0, got {self.temperature}. Use 0 for greedy, 1 as trained."
            )
        if self.top_k is not None and self.top_k < 1:
            raise NestlingError(f"top_k must be at least 1, got {self.top_k}. Use None to keep all tokens.")
        if not 0 < self.top_p <= 1:
            raise NestlingError(f"top_p must be above 0 and at most 1, got {self.top_p}. Use 1 to keep all tokens.")

    def __call__(self, logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """One token for each row: logits (B, V) -> (B,) int64. ``generator`` None: torch's global random state."""
        probabilities = self.probabilities(logits)
        if self.temperature == 0:
            return probabilities.argmax(-1)
        return torch.multinomial(probabilities, 1, generator=generator)[:, 0]

    def probabilities(self, logits: Tensor) -> Tensor:
        """What tokens are drawn from: logits (B, V) -> (B, V), rows that sum to 1."""
        if logits.dim() != 2:
            raise NestlingError(f"a sampler reads logits (B, V), got {tuple(logits.shape)}. Pass logits[:, -1].")
        # Half precision cannot hold a cumulative sum over a vocabulary.
        logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
        best = logits.max(-1, keepdim=True).values
        if not bool(best.isfinite().all()):
            raise NestlingError(
                "the logits hold NaN or inf: nothing can be drawn. Check the model's weights and state."
            )
        if self.temperature == 0:
            return torch.zeros_like(logits).scatter(1, logits.argmax(-1, keepdim=True), 1.0)
        # The largest logit goes first: a small temperature must not overflow.
        spread = (logits - best) / self.temperature
        if self.top_k is None and self.top_p == 1:
            return spread.softmax(-1)
        ordered, tokens = spread.sort(dim=-1, descending=True, stable=True)
        kept = ordered[:, : self.top_k].softmax(-1)
        if self.top_p < 1:
            before = kept.cumsum(-1) - kept
            kept = torch.where(before < self.top_p, kept, 0)
            kept = kept / kept.sum(-1, keepdim=True)
        return torch.zeros_like(logits).scatter(1, tokens[:, : self.top_k], kept)

    def generator(self, position: int, device: torch.device | str = "cpu") -> torch.Generator:
        """The random numbers for the token at ``position`` of a stream."""
        digest = hashlib.sha256(f"{self.seed} {position}".encode()).digest()
        return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "big") >> 1)
