"""The laws of a session: where it is cut, who it belongs to, and what a fork may not see."""

from __future__ import annotations

import math
from itertools import islice
from pathlib import Path

import pytest
import torch

import nestling
from nestling import tree
from nestling.core import MLP, Chain, Descend, Memory, Momentum
from nestling.data import BPETokenizer, ByteTokenizer, Document
from nestling.errors import NestlingError
from nestling.stream import Sampler, Session
from tests.each import each
from tests.stream.tiny import Letters, direct, random_tokens, tiny

RECIPES = nestling.recipes()
BYTES = ByteTokenizer()
GREEDY = Sampler(temperature=0)
each_recipe = pytest.mark.parametrize("recipe", each(RECIPES))


def fresh(recipe: str, dtype: torch.dtype = torch.float64, piece: int = 256) -> Session:
    return Session(tiny(recipe, dtype), BYTES, piece=piece)


def letters(recipe: str) -> Session:
    """A session whose every token is a character."""
    return Session(tiny(recipe, vocab_size=20), Letters(20))


def drawn(session: Session, count: int, sampler: Sampler = Sampler()) -> list[int]:
    return [session.draw(sampler) for _ in range(count)]


def assert_same(one: Session, other: Session, tolerance: float = 0.0) -> None:
    assert one.position == other.position
    assert_same_state(one.state, other.state, tolerance)


def assert_same_state(one: object, other: object, tolerance: float = 0.0) -> None:
    for (path, a), (_, b) in zip(tree.items(one), tree.items(other), strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance, msg=lambda text, path=path: f"{path}: {text}")


# Reading


# In float32 an untrained memora, softmax after softmax, turns the last bit of a token's loss into 1.3e-5 of it.
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 2e-5)])
@each_recipe
def test_a_stream_may_be_cut_anywhere(recipe: str, dtype: torch.dtype, tolerance: float) -> None:
    tokens = random_tokens(100)
    expected = direct(tiny(recipe, dtype), tokens)
    whole = fresh(recipe, dtype)
    torch.testing.assert_close(whole.feed(tokens), expected, rtol=tolerance, atol=tolerance)
    for seed in range(4):
        cuts = torch.randint(100, (6,), generator=torch.Generator().manual_seed(seed)).sort().values.tolist()
        parts = fresh(recipe, dtype, piece=1 + 6 * seed)
        nats = [parts.feed(part) for part in tokens.tensor_split(cuts)]
        torch.testing.assert_close(torch.cat(nats), expected, rtol=tolerance, atol=tolerance)
        assert_same(parts, whole, tolerance)


@each_recipe
def test_only_the_first_token_of_a_fresh_session_is_not_predicted(recipe: str) -> None:
    session = fresh(recipe)
    assert [len(session.feed(part)) for part in ([], [5], [6], [], [7, 8, 9])] == [0, 0, 1, 0, 3]
    assert session.position == 5


@each_recipe
def test_learning_says_what_it_read(recipe: str) -> None:
    session, text = fresh(recipe), "Bücher, die lesen."
    nats = direct(session.model, torch.tensor(BYTES.encode(text)))
    reading = session.learn(text)
    assert (reading.tokens, reading.bytes) == (19, 19)
    assert (reading.surprisal.tokens, reading.surprisal.bytes) == (18, 18)
    assert reading.bits_per_byte == pytest.approx(float(nats.mean()) / math.log(2), rel=1e-9)
    again = session.learn(text)
    assert (again.surprisal.tokens, again.surprisal.bytes) == (19, 19)
    assert session.position == 38


def test_bits_are_counted_over_the_bytes_that_tokens_stand_for() -> None:
    tokenizer = BPETokenizer.train([Document("a", "the then them there the then")], vocab_size=260)
    text = "then the them"
    ids = tokenizer.encode(text)
    assert len(ids) < len(text)
    model = tiny("hope", vocab_size=260)
    reading = Session(model, tokenizer).learn(text)
    nats = direct(model, torch.tensor(ids)).sum()
    size = len(text) - tokenizer.count_bytes(ids[:1])
    assert reading.surprisal.bytes == size
    assert reading.bits_per_byte == pytest.approx(float(nats) / math.log(2) / size, rel=1e-9)


def test_learning_nothing_changes_nothing() -> None:
    session = fresh("hope")
    before = session.fork()
    reading = session.learn("")
    assert (reading.tokens, reading.bytes) == (0, 0)
    assert math.isnan(reading.bits_per_byte)
    assert_same(session, before)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([1] * 20 + [256], "token id 256 at position 20 is outside the vocabulary of 256"),
        ([-1], "token id -1 at position 0"),
        ([1.5], "token ids must be integers"),
        ("some text", r"feeds on token ids, got the text 'some text'\. Use session\.learn"),
        ([[1, 2]], r"a session reads tokens \(T,\), got \(1, 2\)"),
    ],
)
def test_tokens_that_cannot_be_read_change_nothing(tokens: list[int], message: str) -> None:
    session = fresh("hope", piece=4)
    session.learn("abc")
    before = session.fork()
    with pytest.raises(NestlingError, match=message):
        session.feed(tokens)
    assert_same(session, before)


def test_an_interrupted_feed_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    session = fresh("hope", piece=4)
    session.learn("abc")
    before, forward, calls = session.fork(), session.model.forward, []

    def interrupted(*arguments: object) -> object:
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return forward(*arguments)

    monkeypatch.setattr(session.model, "forward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        session.learn("0123456789abcdef")
    assert len(calls) == 3
    assert_same(session, before)


@each_recipe
def test_memory_is_constant_in_the_length_of_the_stream(recipe: str) -> None:
    session = fresh(recipe, torch.float32)
    session.feed(random_tokens(10))
    sizes = session.nbytes, held(session)
    session.feed(random_tokens(9_990))
    assert session.position == 10_000
    assert (session.nbytes, held(session)) == sizes
    assert sizes[0] == sizes[1]


def held(session: Session) -> int:
    """Bytes of the memory that the session keeps alive, views counted with what they are views of."""
    storages = {
        leaf.untyped_storage().data_ptr(): leaf.untyped_storage().nbytes() for leaf in tree.leaves(session._moment)
    }
    return sum(storages.values())


@each_recipe
def test_the_model_is_left_as_it_was(recipe: str) -> None:
    session = fresh(recipe)
    before = {name: parameter.detach().clone() for name, parameter in session.model.named_parameters()}
    for training in (True, False):
        session.model.train(training)
        session.learn("some text")
        session.generate(" and", max_tokens=3)
        assert all(module.training is training for module in session.model.modules())
    for name, parameter in session.model.named_parameters():
        assert torch.equal(parameter, before[name]), name
        assert parameter.grad is None
    assert not any(leaf.requires_grad for leaf in tree.leaves(session.state))


@each_recipe
def test_training_the_model_does_not_change_what_a_session_holds(recipe: str) -> None:
    session = fresh(recipe)
    session.feed([1])
    before = tree.fork(session.state)
    with torch.no_grad():
        for parameter in session.model.parameters():
            parameter.add_(1)
    assert_same_state(session.state, before)


# Writing


@each_recipe
def test_what_is_generated_has_been_read(recipe: str) -> None:
    speaker = fresh(recipe)
    reader = speaker.fork()
    speaker.feed(BYTES.encode("Say: "))
    tokens = drawn(speaker, 20)
    reader.feed(BYTES.encode("Say: ") + tokens)
    assert_same(speaker, reader, 1e-9)
    assert reader.position == 25


@each_recipe
def test_a_token_is_in_the_state_before_its_text_is_given(recipe: str) -> None:
    session = fresh(recipe)
    pieces = session.stream("abc", max_tokens=50, sampler=Sampler(top_k=40))
    assert session.position == 3
    other = session.fork()
    said = "".join(islice(pieces, 5))
    count = session.position - 3
    assert count >= 5
    tokens = drawn(other, count, Sampler(top_k=40))
    assert BYTES.decode(tokens).startswith(said)
    assert_same(session, other)


@each_recipe
def test_greedy_takes_the_likeliest_token(recipe: str) -> None:
    session = fresh(recipe)
    prompt = random_tokens(12)
    session.feed(prompt)
    found = drawn(session, 15, GREEDY)
    tokens = prompt
    for _ in range(15):
        with torch.no_grad():
            logits, _ = session.model(tokens[None])
        tokens = torch.cat((tokens, logits[0, -1:].argmax(-1)))
    assert found == tokens[12:].tolist()


@each_recipe
def test_a_seed_fixes_the_text_and_another_changes_it(recipe: str) -> None:
    start = fresh(recipe)
    start.learn("abc")
    texts = [drawn(start.fork(), 20, Sampler(seed=seed)) for seed in (1, 1, 2)]
    assert texts[0] == texts[1]
    assert texts[0] != texts[2]


@each_recipe
def test_a_text_can_be_drawn_in_parts(recipe: str) -> None:
    whole = letters(recipe)
    parts = whole.fork()
    text = whole.generate("abc", max_tokens=24)
    assert parts.generate("abc", max_tokens=10) + parts.generate(max_tokens=14) == text
    assert len(text) == 24
    assert_same(parts, whole)
    assert whole.position == 27


@pytest.mark.parametrize("recipe", ["titans_lmm", "titans_mac"])
def test_words_that_wait_to_be_written_are_in_all_that_is_shown_and_kept(recipe: str, tmp_path: Path) -> None:
    memory = Memory(MLP(2), rule=Chain((Descend(), Momentum())), period=16, read_at="commit")
    model = tiny(recipe, torch.float64, memory=memory)
    one, other = Session(model, BYTES), Session(model, BYTES)
    words = [*b"abc"]
    one.feed(words)
    for count in (4, 5, 12):
        words += drawn(one, count, GREEDY)
        other = Session(model, BYTES)
        other.feed(words)
        assert one.nbytes == other.nbytes, "constant, whatever waits"
        assert_same(one, other, 1e-9)
        drawn(one.fork(), 3, GREEDY)
    words += drawn(one, 3, GREEDY)
    one.save(tmp_path / "session.safetensors")
    loaded = Session.load(model, tmp_path / "session.safetensors")
    assert drawn(loaded, 9, GREEDY) == drawn(one, 9, GREEDY)
    assert_same(loaded, one)


def test_the_same_text_is_not_said_twice_by_one_seed() -> None:
    """Random numbers belong to a position: repeating a request does not repeat its luck."""
    model = tiny("transformer")
    with torch.no_grad():
        model.embedding.weight.zero_()  # every token is equally likely, always
    session = Session(model, BYTES)
    session.feed([0])
    assert drawn(session, 10) != drawn(session, 10)


def test_characters_come_out_whole() -> None:
    model, text = tiny("hope"), "né€𝄞!"
    session = Session(model, BYTES)
    script = iter(BYTES.encode(text)[1:])
    session.draw = lambda sampler: next(script)  # type: ignore[method-assign]
    pieces = list(session.stream("n", max_tokens=len(BYTES.encode(text)) - 1))
    assert [piece for piece in pieces if piece] == ["é", "€", "𝄞", "!"]
    script = iter("€".encode())
    assert session.generate("n", max_tokens=2) == "�"


def test_generation_stops_at_a_stop_and_has_read_it() -> None:
    session = letters("hope")
    text = session.fork().generate("a", max_tokens=60)
    stop = text[30:32]
    assert session.generate("a", max_tokens=60, stop=stop) == text[: text.index(stop)]
    assert session.position == 1 + text.index(stop) + 2


def test_no_token_is_drawn_that_the_tokenizer_does_not_have() -> None:
    model = tiny("hope", vocab_size=256)
    with torch.no_grad():
        model.embedding.weight[:4] *= 0  # the tokenizer's tokens are never the likeliest
    session = Session(model, Letters(4))
    session.feed([1, 2])
    tokens = drawn(session, 30, GREEDY) + drawn(session, 30)
    assert set(tokens) <= {0, 1, 2, 3}
    assert len(session.generate("ab", max_tokens=9)) == 9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": ""}, "a fresh session has nothing to go on from: the prompt is empty"),
        ({"prompt": "a", "max_tokens": -1}, "max_tokens must be at least 0, got -1"),
        ({"prompt": "a", "stop": ""}, "a stop string must not be empty"),
    ],
)
def test_bad_requests_are_refused_before_anything_is_read(arguments: dict[str, object], message: str) -> None:
    session = fresh("hope")
    with pytest.raises(NestlingError, match=message):
        session.stream(**arguments)
    assert session.position == 0


def test_a_fresh_session_has_nothing_to_draw_from() -> None:
    with pytest.raises(NestlingError, match="a fresh session has nothing to go on from"):
        fresh("hope").draw()


def test_a_prompt_can_be_read_without_going_on() -> None:
    session = fresh("hope")
    assert session.generate("abc", max_tokens=0) == ""
    assert session.position == 3


# Forking


@each_recipe
def test_forks_are_worlds_of_their_own(recipe: str) -> None:
    parent = fresh(recipe)
    parent.learn("what all of them know")
    before = tree.fork(parent.state)
    child, sibling = parent.fork(), parent.fork()
    child.learn("what only one knows")
    assert_same_state(parent.state, before)
    assert_same(sibling, parent)
    for leaf in tree.leaves(child.state) + tree.leaves(sibling.state):
        leaf.add_(1)  # even in place
    assert_same_state(parent.state, before)
    grandchild = parent.fork()
    assert torch.equal(grandchild.feed(random_tokens(30)), parent.feed(random_tokens(30)))


# What it was built for


def test_a_tokenizer_of_more_tokens_than_the_model_is_refused() -> None:
    with pytest.raises(NestlingError, match="the tokenizer has 256 tokens, the model's vocabulary 100"):
        Session(tiny("hope", vocab_size=100), BYTES)


def test_pieces_hold_a_token_at_least() -> None:
    with pytest.raises(NestlingError, match="piece must be at least 1 token, got 0"):
        fresh("hope", piece=0)


@pytest.mark.parametrize("recipe", ["transformer", "titans_lmm"])  # Hope's memories solve systems in single precision
def test_half_precision_models_have_sessions(recipe: str, tmp_path: Path) -> None:
    session = fresh(recipe, torch.bfloat16)
    nats = session.feed(random_tokens(40))
    assert nats.isfinite().all()
    assert nats.mean() < 2 * math.log(256)
    session.save(tmp_path / "s")
    loaded = Session.load(session.model, tmp_path / "s")
    assert drawn(loaded, 5) == drawn(session, 5)


def test_a_session_says_where_it_is() -> None:
    session = fresh("hope")
    session.feed(random_tokens(1_234))
    assert repr(session).startswith("Session(hope (tiny, changed), position=1,234, ")
