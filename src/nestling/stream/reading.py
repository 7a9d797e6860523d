"""Reading: the one step that sessions and evaluations are made of, and what it measures."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from nestling import tree
from nestling.data.tokenizer import Tokenizer
from nestling.errors import NestlingError
from nestling.models import LM
from nestling.nn import State
from nestling.stream.program import Program


@tree.state
class Moment:
    """Where the rows of a batch stand in their streams: all that is needed to go on."""

    state: State
    """The model's state; every leaf has B as its first dimension."""
    logits: Tensor
    """(B, V): the prediction of the next token; zeros before the first token, where there is none."""
    position: Tensor
    """(B,) int64: tokens read"""


@dataclass(frozen=True)
class Surprisal:
    """What predicted tokens cost: ``nats`` = −Σ ln p(token | all before it), over ``tokens`` that stand for ``bytes``.

    Without any token, the rates are NaN.

    >>> cost = Surprisal(tokens=2, bytes=4, nats=4 * math.log(2))
    >>> cost.bits_per_byte, cost.perplexity, cost.nats_per_token == 2 * math.log(2)
    (1.0, 4.0, True)
    """

    tokens: int
    bytes: int
    nats: float

    @property
    def nats_per_token(self) -> float:
        """The mean negative log likelihood: the training loss's unit."""
        return self.nats / self.tokens if self.tokens else math.nan

    @property
    def perplexity(self) -> float:
        """exp(nats per token)."""
        rate = self.nats_per_token
        return math.inf if rate > 709 else math.exp(rate)  # exp(710) is no float

    @property
    def bits_per_byte(self) -> float:
        """nats / ln 2 / bytes: comparable between tokenizers."""
        return self.nats / math.log(2) / self.bytes if self.bytes else math.nan


@dataclass(frozen=True)
class Reading:
    """What a session has read in one go: ``tokens``, their ``bytes``, and how many ``seconds`` it took.

    ``surprisal`` is over the tokens that were predicted: all but the first one of a fresh session.

    >>> print(Reading(tokens=1001, bytes=1001, surprisal=Surprisal(1000, 1000, 1386.3), seconds=0.5))
    1,001 tokens, 1,001 bytes, 2.000 bits per byte, 2,002 tokens/s
    """

    tokens: int
    bytes: int
    surprisal: Surprisal
    seconds: float

    @property
    def bits_per_byte(self) -> float:
        """Of the tokens that were predicted."""
        return self.surprisal.bits_per_byte

    @property
    def tokens_per_second(self) -> float:
        """Tokens read in a second."""
        return self.tokens / self.seconds if self.seconds else math.nan

    def __str__(self) -> str:
        """One line."""
        return (
            f"{self.tokens:,} tokens, {self.bytes:,} bytes, {self.bits_per_byte:.3f} bits per byte, "
            f"{self.tokens_per_second:,.0f} tokens/s"
        )


def begin(model: LM, batch: int = 1, state: State | None = None) -> Moment:
    """The moment before the first token of ``batch`` streams; ``state``, of one row, is where all of them begin.

    Shares no memory with the model or with ``state``: what trains the model in place does not reach a stream.
    """
    if state is None:
        state = model.initial_state(batch)
    elif any(leaf.shape[:1] != (1,) for leaf in tree.leaves(state)):
        raise NestlingError("a stream begins at the state of one row (B = 1), got more. Take one row of every leaf.")
    else:
        state = tree.map(lambda leaf: leaf.repeat_interleave(batch, 0), state)
    like = model.embedding.weight
    return Moment(
        state=tree.fork(state),
        logits=torch.zeros(batch, model.config.vocab_size, dtype=like.dtype, device=like.device),
        position=torch.zeros(batch, dtype=torch.int64, device=like.device),
    )


@torch.no_grad()
def advance(
    model: LM | Program, tokens: Tensor, moment: Moment, valid: Tensor | None = None
) -> tuple[Tensor, Tensor, Moment]:
    """Read one piece of every row, and score each token by what was predicted before it.

    ``tokens`` (B, T) int64; ``valid`` (B, T) bool is False for padding, which stands at the right end of a row.
    Returns the nats of every token (B, T), which of them were predicted (B, T), and the moment after them. Padding and the
    first token of a stream are not predicted: their nats are zero. No gradient is kept.

    >>> import nestling
    >>> model = nestling.build("titans_lmm", dim=32, layers=1, heads=2)
    >>> nats, predicted, after = advance(model, torch.tensor([[7, 8, 9]]), begin(model))
    >>> predicted, after.position
    (tensor([[False,  True,  True]]), tensor([3]))
    """
    logits, state = model(tokens, moment.state, valid)
    length = torch.arange(tokens.shape[1], device=tokens.device)
    predicted = moment.position[:, None] + length > 0
    count, last = torch.full_like(moment.position, tokens.shape[1]), logits[:, -1].clone()
    if valid is not None:
        predicted, count = predicted & valid, valid.sum(1)
        index = (count - 1).clamp_min(0)[:, None, None].expand(-1, 1, logits.shape[-1])
        last = torch.where(count[:, None] > 0, logits.gather(1, index)[:, 0], moment.logits)
    first = _nats(moment.logits[:, None], tokens[:, :1])
    nats = torch.cat((first, _nats(logits[:, :-1], tokens[:, 1:])), 1)
    return torch.where(predicted, nats, 0), predicted, Moment(state, last, moment.position + count)


def _nats(logits: Tensor, tokens: Tensor) -> Tensor:
    # −ln p = ln Σ exp(logits) − logit, in at least single precision
    logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    return logits.logsumexp(-1) - logits.gather(-1, tokens[..., None])[..., 0]


def check_vocabulary(model: LM, tokenizer: Tokenizer) -> None:
    """Refuse a tokenizer that has ids for which the model has no row."""
    if tokenizer.vocab_size > model.config.vocab_size:
        raise NestlingError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, the model's vocabulary {model.config.vocab_size}: use the "
            "tokenizer that the model was trained with."
        )
