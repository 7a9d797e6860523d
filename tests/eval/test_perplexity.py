"""Evaluation is exact: in batches and pieces, fresh and carried, and no model beats chance on random tokens."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import nestling
from nestling.data import BPETokenizer, ByteTokenizer, Document
from nestling.errors import NestlingError
from nestling.eval import Carried, Fresh, Score, score
from nestling.models import LM
from nestling.stream import Session
from tests.each import each
from tests.stream.tiny import Letters, direct, random_tokens, tiny

BYTES = ByteTokenizer()
LENGTHS = (40, 3, 0, 97, 1, 40, 64, 2, 33)
each_recipe = pytest.mark.parametrize("recipe", each(nestling.recipes()))


def texts(lengths: tuple[int, ...] = LENGTHS) -> list[Document]:
    rows = [random_tokens(length, seed, 128) for seed, length in enumerate(lengths)]
    return [Document(str(index), BYTES.decode(row)) for index, row in enumerate(rows)]


def encoded(document: Document) -> Tensor:
    return torch.tensor(BYTES.encode(document.text), dtype=torch.int64)


def assert_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@each_recipe
def test_documents_are_scored_as_if_each_were_alone(recipe: str) -> None:
    model = tiny(recipe)
    expected = [direct(model, encoded(document)) for document in texts() if len(document.text) > 1]
    for batch, piece in ((1, 256), (3, 16), (8, 7), (100, 64)):
        found = score(model, texts(), BYTES, Fresh(batch), piece=piece)
        assert_close(found.nats, torch.cat(expected))
        assert found.positions.tolist() == [position for each in expected for position in range(1, len(each) + 1)]
        assert found.sizes.tolist() == [1] * len(found.nats)


@each_recipe
def test_carried_is_one_stream_of_a_session(recipe: str) -> None:
    model = tiny(recipe)
    session = Session(model, BYTES)
    expected = torch.cat([session.feed(encoded(document)) for document in texts()])
    found = score(model, texts(), BYTES, Carried(), piece=50)
    assert_close(found.nats, expected)
    assert found.positions.tolist() == list(range(1, sum(LENGTHS)))


@each_recipe
def test_streams_can_begin_at_a_state(recipe: str) -> None:
    model = tiny(recipe)
    session = Session(model, BYTES)
    session.feed(random_tokens(45, seed=99))
    documents = [document for document in texts() if len(document.text) > 1]
    alone = [session.fork().feed(encoded(document))[1:] for document in documents]
    assert_close(score(model, documents, BYTES, Fresh(4), state=session.state).nats, torch.cat(alone))
    together = torch.cat([session.feed(encoded(document)) for document in documents])[1:]
    session = Session(model, BYTES)
    session.feed(random_tokens(45, seed=99))
    assert_close(score(model, documents, BYTES, Carried(), state=session.state).nats, together)


@pytest.mark.parametrize("policy", [Fresh(2), Carried()])
def test_evaluation_leaves_the_state_that_it_began_at(policy: Fresh | Carried) -> None:
    session = Session(tiny("hope"), BYTES)
    session.feed(random_tokens(45))
    before = session.fork()
    score(session.model, texts(), BYTES, policy, state=session.state)
    assert torch.equal(session.feed(random_tokens(10)), before.feed(random_tokens(10)))


def test_bits_are_counted_over_the_bytes_of_the_tokens() -> None:
    tokenizer = BPETokenizer.train([Document("a", "the then them there the then")], vocab_size=260)
    document = Document("b", "the thin thing is there")
    ids = tokenizer.encode(document.text)
    found = score(tiny("hope", vocab_size=260), [document], tokenizer)
    assert found.sizes.tolist() == [len(tokenizer.to_bytes([token])) for token in ids[1:]]
    assert set(found.sizes.tolist()) != {1}


@pytest.mark.parametrize("recipe", ["titans_lmm", "hope"])
def test_a_frozen_model_remembers_nothing(recipe: str) -> None:
    """Beyond the convolution's four tokens, what was read makes no difference; with memories on it does."""
    model = tiny(recipe)
    one, tail = random_tokens(60, 1, 128), random_tokens(40, 2, 128)
    documents = [Document("", BYTES.decode(torch.cat((head, tail)))) for head in (one, one.flip(0))]

    def difference(model: LM) -> float:
        first, second = (score(model, [document], BYTES).nats[-30:] for document in documents)
        return float((first - second).abs().max())

    assert difference(model.frozen()) < 1e-12
    assert difference(model) > 1e-3


@pytest.mark.parametrize("seen", ["memory on", "memory off"])
@each_recipe
def test_nothing_beats_chance_on_random_tokens(recipe: str, seen: str) -> None:
    torch.manual_seed(0)
    model = nestling.build(recipe, dim=32, layers=1, heads=2, vocab_size=16)
    model = model.frozen() if seen == "memory off" else model
    assert excess(model) > -4
    # Chance is reached, so that the smallest leak would show.
    assert score(model, random_letters(), Letters(16), Fresh(4)).nats_per_token < math.log(16) + 0.1


def test_a_model_that_peeks_is_caught() -> None:
    torch.manual_seed(0)
    assert excess(Peeking(nestling.build("hope", dim=32, layers=1, heads=2, vocab_size=16))) < -100


class Peeking(nn.Module):
    """Logits that favour the next token a little."""

    def __init__(self, model: LM) -> None:
        super().__init__()
        self.model, self.config, self.embedding = model, model.config, model.embedding
        self.initial_state = model.initial_state

    def forward(self, tokens: Tensor, *rest: object) -> tuple[Tensor, object]:
        logits, state = self.model(tokens, *rest)
        return logits + nn.functional.one_hot(tokens.roll(-1, 1), logits.shape[-1]), state


def random_letters() -> list[Document]:
    rows = random_tokens(4 * 1000, vocab_size=16).view(4, -1)
    return [Document(str(index), Letters(16).decode(row)) for index, row in enumerate(rows)]


def excess(model: LM | Peeking) -> float:
    """Nats per token above those of chance, ln V, in standard errors."""
    nats = score(model, random_letters(), Letters(16), Fresh(4)).nats - math.log(16)
    return float(nats.mean() / (nats.std() / len(nats) ** 0.5))


@pytest.mark.parametrize("policy", [Fresh(), Carried()])
@pytest.mark.parametrize("documents", [[], [Document("a", "")], [Document("a", "x"), Document("b", "")]])
def test_nothing_to_score_is_said(policy: Fresh | Carried, documents: list[Document]) -> None:
    with pytest.raises(NestlingError, match="nothing to score"):
        score(tiny("hope"), documents, BYTES, policy)


def test_bad_values_are_refused() -> None:
    with pytest.raises(NestlingError, match="batch must be at least 1, got 0"):
        Fresh(0)
    with pytest.raises(NestlingError, match="piece must be at least 1 token, got 0"):
        score(tiny("hope"), texts(), BYTES, piece=0)
    with pytest.raises(NestlingError, match="the tokenizer has 256 tokens, the model's vocabulary 100"):
        score(tiny("hope", vocab_size=100), texts(), BYTES)


def test_scores_are_kept_in_double_whatever_the_model_is() -> None:
    found = score(tiny("transformer", torch.float32), texts(), BYTES)
    assert found.nats.dtype == torch.float64
    assert replace(found, nats=found.nats * 2).bits_per_byte == pytest.approx(2 * found.bits_per_byte)
    assert isinstance(found, Score)
