"""How many words of a formal language a model reads without one mistake."""

from __future__ import annotations

import torch

from nestling.data import IGNORED
from nestling.data.synthetic.automata import Words
from nestling.models import LM


@torch.no_grad()
def accuracy(model: LM, words: Words, *, batch: int = 128) -> float:
    """The part of ``words`` in which the class after every symbol is right (Irie et al. 2023, arXiv 2310.16076), 0 to 1.

    Words are read side by side, ``batch`` at a time, short with short; which ones share a batch changes nothing.

    >>> import nestling
    >>> from nestling.data.synthetic.automata import LANGUAGES, task
    >>> model = nestling.build("hope", vocab_size=2, dim=16, layers=1, heads=2)
    >>> 0 <= accuracy(model, task(LANGUAGES["(aa)*"], train=1).bins[1]) <= 1
    True
    """
    training = model.training
    model.eval()
    device = model.embedding.weight.device
    right = 0
    for index in (words.targets != IGNORED).sum(1).argsort().split(batch):
        asked = words.take(index)
        logits, _ = model(asked.tokens.to(device))
        answers = logits.argmax(-1).cpu()
        right += int(((answers == asked.targets) | (asked.targets == IGNORED)).all(1).sum())
    model.train(training)
    return right / len(words)
