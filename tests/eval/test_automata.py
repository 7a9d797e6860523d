"""A word counts only if every position is right."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from nestling.data.synthetic.automata import Parity, Words, encode
from nestling.eval.automata import accuracy


class Reader(nn.Module):
    """Answers parity; errs at one position of words that begin with ``0``."""

    def __init__(self, wrong_at: int | None) -> None:
        super().__init__()
        self.embedding = nn.Embedding(2, 1)
        self.wrong_at, self.modes = wrong_at, []

    def forward(self, tokens: Tensor) -> tuple[Tensor, None]:
        self.modes.append(self.training)
        even = 1 - tokens.cumsum(1) % 2
        if self.wrong_at is not None and self.wrong_at < tokens.shape[1]:
            even[:, self.wrong_at] = torch.where(tokens[:, 0] == 0, 1 - even[:, self.wrong_at], even[:, self.wrong_at])
        return nn.functional.one_hot(even, 2).float(), None


@pytest.fixture
def words() -> Words:
    return encode(Parity(), ["11", "0011", "0110", "101000", "110011"])


@pytest.mark.parametrize(
    ("wrong_at", "right"), [(None, 1.0), (1, 0.6), (3, 0.6), (4, 1.0)], ids=["perfect", "early", "last", "in padding"]
)
@pytest.mark.parametrize("batch", [1, 2, 128])
def test_one_mistake_costs_the_word(words: Words, wrong_at: int | None, right: float, batch: int) -> None:
    assert accuracy(Reader(wrong_at), words, batch=batch) == pytest.approx(right)


def test_models_are_asked_in_evaluation_and_left_as_they_were(words: Words) -> None:
    reader = Reader(None).train()
    accuracy(reader, words)
    assert reader.modes == [False]
    assert reader.training
