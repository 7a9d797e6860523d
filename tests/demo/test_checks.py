"""Sessions that are copied, and documents that are asked about."""

from __future__ import annotations

import pytest
import torch

import nestling as nl
from nestling.data import ByteTokenizer, Document
from nestling.demo.checks import Copies, excerpts, kept
from nestling.demo.reading import Text, feed, reader
from nestling.stream import Session


@pytest.fixture
def session() -> Session:
    return Session(nl.build("titans_lmm", dim=16, layers=1, heads=2), ByteTokenizer(), piece=16)


def test_copies_go_on_exactly_and_the_child_does_not(session: Session) -> None:
    tokens = torch.randint(256, (75,))
    session.feed(tokens[:33])
    copies = Copies.of(session, astray=tokens[:20])
    late, _ = feed(session, tokens[33:])
    found = copies.compare(tokens[33:], late)
    assert (found.position, found.tokens) == (33, 42)
    assert found.reload_difference == found.fork_difference == 0
    assert found.child_difference > 0


def test_a_session_that_was_disturbed_is_seen(session: Session) -> None:
    tokens = torch.randint(256, (75,))
    session.feed(tokens[:33])
    copies = Copies.of(session, astray=tokens[:20])
    session.feed(tokens[:1])
    late, _ = feed(session, tokens[33:])
    assert copies.compare(tokens[33:], late).reload_difference > 0


def test_excerpts_are_spread_over_the_corpus() -> None:
    documents = [Document(str(number), "x" * 100) for number in range(10)]
    assert [each.name for each in excerpts(documents, 5, 50)] == ["0", "2", "4", "6", "8"]
    assert {len(each.text) for each in excerpts(documents, 5, 50)} == {50}
    assert len(excerpts(documents, 99, 50)) == 10
    assert len(excerpts(documents, 3, 1000)) == 3


def test_what_is_kept_is_what_each_document_costs(session: Session) -> None:
    documents = [Document("a", "one two three four"), Document("b", "five six seven eight nine ten eleven")]
    session.learn("something else " * 5)
    found = kept("documents", session.model, session.tokenizer, documents, session.state)
    costs = []
    for document in documents:
        fresh, after = Session(session.model, session.tokenizer), session.fork()
        ids = session.tokenizer.encode(document.text)
        costs.append([float(each.feed(ids)[-(len(ids) - 1) :].double().sum()) for each in (fresh, after)])
    size = sum(len(document.text) - 1 for document in documents)
    nats = torch.tensor(costs, dtype=torch.float64).sum(0) / size
    assert found.bytes == size
    assert [found.fresh, found.after] == pytest.approx((nats / torch.tensor(2.0).log()).tolist(), rel=1e-5)
    assert found.error > 0


def test_a_reading_is_counted_in_bytes() -> None:
    text = Text.of([Document("pack/a", "abcd"), Document("pack/b", "efgh")], ByteTokenizer(), limit=6)
    assert (text.package, text.documents, text.whole, len(text.tokens)) == ("pack", 2, False, 6)
    assert Text.of([Document("pack/a", "abcd")], ByteTokenizer(), limit=4).whole
    nats = torch.tensor([1.0, 1.0, 2.0, 2.0, 2.0], dtype=torch.float64) * torch.tensor(2.0, dtype=torch.float64).log()
    found = reader("x", text, nats, 1.0, 1, windows=2)
    assert found.bits_per_byte == pytest.approx(8 / 5)
    assert found.windows == pytest.approx((4 / 3, 2.0))
