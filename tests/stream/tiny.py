"""Models and tokenizers that are quick, and far enough from uniform predictions that a mistake shows."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

import nestling
from nestling.data.tokenizer import check_range
from nestling.models import LM

CHANGES = {
    "transformer": {"window": 24},
    "hope": {"period": 8},
}


def tiny(recipe: str, dtype: torch.dtype = torch.float64, *, seed: int = 0, **changes: object) -> LM:
    """One layer; logits with a spread of about 2 instead of the 0.1 of fresh parameters."""
    torch.manual_seed(seed)
    shape = {"dim": 32, "layers": 1, "heads": 2, "vocab_size": 256, **CHANGES.get(recipe, {}), **changes}
    model = nestling.build(recipe, **shape).to(dtype)
    with torch.no_grad():
        model.embedding.weight.mul_(20)
    return model


def random_tokens(length: int, seed: int = 0, vocab_size: int = 256) -> Tensor:
    return torch.randint(vocab_size, (length,), generator=torch.Generator().manual_seed(seed))


def direct(model: LM, tokens: Tensor) -> Tensor:
    """−ln p of every token but the first: one call of the model, read off its log softmax."""
    with torch.no_grad():
        logits, _ = model(tokens[None])
    return -logits[0, :-1].log_softmax(-1).gather(1, tokens[1:, None])[:, 0]


class Letters:
    """A tokenizer of few tokens: the first letters of the alphabet."""

    def __init__(self, vocab_size: int) -> None:
        self._size = vocab_size

    @property
    def vocab_size(self) -> int:
        return self._size

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(str(self._size).encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        return [ord(letter) - ord("a") for letter in text]

    def to_bytes(self, ids: Sequence[int]) -> bytes:
        return bytes(ord("a") + int(index) for index in check_range(ids, self._size))

    def decode(self, ids: Sequence[int]) -> str:
        return self.to_bytes(ids).decode()

    def count_bytes(self, ids: Sequence[int]) -> int:
        return len(ids)

    def save(self, path: str | Path) -> None:
        raise NotImplementedError
