"""The formal languages against recognisers that know nothing of how words are made."""

from __future__ import annotations

from collections import Counter
from itertools import product
from random import Random

import pytest
import torch

from nestling.data import IGNORED
from nestling.data.synthetic.automata import (
    BINS,
    LANGUAGES,
    Counts,
    Language,
    Parity,
    Repeats,
    Shuffle,
    encode,
    task,
    vocabulary,
)
from nestling.errors import NestlingError


def belongs(language: Language, word: str) -> bool:
    """By definition."""
    match language:
        case Parity():
            return word.count("1") % 2 == 0
        case Repeats(unit):
            return word == unit * (len(word) // len(unit))
        case Counts(symbols):
            n = len(word) // len(symbols)
            return n > 0 and word == "".join(symbol * n for symbol in symbols)
        case Shuffle(pairs):
            return all(_balanced([symbol for symbol in word if symbol in pair], pair) for pair in pairs)


def _balanced(symbols: list[str], pair: str) -> bool:
    depth = 0
    for symbol in symbols:
        depth += 1 if symbol == pair[0] else -1
        if depth < 0:
            return False
    return depth == 0


def every_word(language: Language, longest: int) -> list[str]:
    texts = ("".join(each) for length in range(1, longest + 1) for each in product(language.symbols, repeat=length))
    return [text for text in texts if belongs(language, text)]


@pytest.mark.parametrize("name", LANGUAGES)
def test_classes_are_what_may_follow(name: str) -> None:
    """Equal classes, equal continuations; different classes, different ones: over all short words of the language."""
    language, longest = LANGUAGES[name], 8
    words = every_word(language, longest)
    prefixes = {word[:end] for word in words for end in range(1, len(word) + 1)}
    follow: dict[int, set[object]] = {}
    for word in words:
        if len(word) > longest - 4 and not isinstance(language, Counts):
            continue
        for end, kind in enumerate(language.label(word), 1):
            prefix = word[:end]
            match language:
                case Parity() | Repeats():
                    follow.setdefault(kind, set()).add(belongs(language, prefix))
                case Counts(symbols):
                    # Longer words than those listed go on with the first symbol.
                    first = {symbols[0]} if set(prefix) == {symbols[0]} else set()
                    legal = {symbol for symbol in symbols if prefix + symbol in prefixes} | first
                    end_too = {""} if belongs(language, prefix) else set()
                    more = {symbols[1]} if first else set()
                    follow.setdefault(kind, set()).add(frozenset(legal | end_too | more))
                case Shuffle():
                    legal = {symbol for symbol in language.symbols if prefix + symbol in prefixes}
                    follow.setdefault(kind, set()).add(frozenset(legal))
    assert all(len(kinds) == 1 for kinds in follow.values()), follow
    assert len(set().union(*follow.values())) == len(follow) == language.classes


@pytest.mark.parametrize("name", LANGUAGES)
def test_every_word_that_is_drawn_belongs_and_has_its_size(name: str) -> None:
    language, random = LANGUAGES[name], Random(1)
    times = len(language.symbols) if isinstance(language, Counts) else 1
    for low, high in BINS:
        for _ in range(100):
            word = language.draw(random, low, high)
            assert belongs(language, word), word
            assert low * times <= len(word) <= high * times


def test_lengths_of_parity_are_geometric_and_cut_off() -> None:
    random = Random(0)
    lengths = Counter(len(Parity().draw(random, 2, 50)) for _ in range(4000))
    # P(length ≥ 49) before a last 1: (26/27)^49 = 0.157 of the words, of which those of 50 that are odd are drawn anew
    assert 0.08 < (lengths[49] + lengths[50]) / 4000 < 0.2
    assert sum(lengths[n] for n in range(2, 12)) > sum(lengths[n] for n in range(22, 32)) > 0
    ones = "".join(Parity().draw(random, 20, 50) for _ in range(300))
    assert 0.47 < ones.count("1") / len(ones) < 0.54


@pytest.mark.parametrize(("name", "sizes"), [("(aa)*", (25, 25)), ("(abab)*", (12, 13)), ("a^n b^n", (49, 50))])
def test_languages_with_a_word_a_size_are_asked_whole(name: str, sizes: tuple[int, int]) -> None:
    made = task(LANGUAGES[name], train=2000)
    assert tuple(map(len, made.bins)) == sizes
    lengths = (made.train.targets != IGNORED).sum(1)
    drawn = lengths.unique(return_counts=True)[1].double() / 2000
    assert drawn.max() < 2.5 / sizes[0]  # uniform


@pytest.mark.parametrize("name", ["parity", "shuffle-2"])
def test_words_that_are_asked_were_not_learnt(name: str) -> None:
    made = task(LANGUAGES[name], train=300, test=50)
    rows = [
        tuple(row.tolist()) for words in (made.train, *made.bins) for row in words.take(torch.arange(len(words))).tokens
    ]
    texts = {
        (tuple(tokens[targets != IGNORED].tolist()))
        for words in (made.train, *made.bins)
        for tokens, targets in zip(words.tokens, words.targets, strict=True)
    }
    assert len(texts) == len(rows) == 400


def test_equal_seeds_make_equal_words() -> None:
    one, again, other = (task(LANGUAGES["parity"], seed, 50, 10) for seed in (1, 1, 2))
    assert torch.equal(one.train.tokens, again.train.tokens)
    assert one.train.tokens.shape != other.train.tokens.shape or not torch.equal(one.train.tokens, other.train.tokens)


@pytest.mark.parametrize("name", LANGUAGES)
def test_tokens_and_targets_fit_the_vocabulary(name: str) -> None:
    language = LANGUAGES[name]
    made = encode(language, [language.draw(Random(2), 2, 50) for _ in range(20)])
    inside = made.targets != IGNORED
    assert made.tokens.max() < vocabulary(language)
    assert made.targets[inside].min() >= 0
    assert made.targets.max() < language.classes
    assert (made.tokens[~inside] == 0).all()


def test_taking_words_drops_the_padding_that_none_needs() -> None:
    words = encode(Counts("ab"), ["ab", "aaabbb"])
    assert words.take(torch.tensor([0])).tokens.tolist() == [[0, 1]]
    assert words.take(torch.tensor([1, 0])).targets.tolist() == [[0, 0, 0, 1, 1, 2], [0, 2, *[IGNORED] * 4]]


def test_a_task_needs_words() -> None:
    with pytest.raises(NestlingError, match="at least one word"):
        task(Parity(), train=0)
