"""Formal languages, read prefix by prefix: parity, (aa)*, (abab)*, aⁿbⁿ, aⁿbⁿcⁿ and Shuffle-2.

The construction of Bhattamishra et al. 2020 (arXiv 2009.11264), with targets as classes as in Irie et al. 2023
(arXiv 2310.16076): a model reads a word of the language and names, after every symbol, the class of the prefix: whether it
is a word itself (regular languages), or which symbols may follow (counter languages). Models learn from sizes up to 50 (bin
0) and are asked about these and about sizes 51 to 100 (bin 1); a word counts only if every position is right. The size is
the length, and for aⁿbⁿ and aⁿbⁿcⁿ it is n.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from random import Random

import torch
from torch import Tensor

from nestling.data.packing import IGNORED
from nestling.errors import NestlingError

BINS = ((2, 50), (51, 100))
"""Smallest and largest size of bin 0, which models also learn from, and of bin 1."""


@dataclass(frozen=True)
class Parity:
    """Words of 0 and 1 with an even number of ones; the class says whether the prefix has an even number.

    Lengths are geometric around the middle L of the bin, P(0) = P(1) = L / 2(1 + L), cut off at its end; a word that comes
    out odd gets another 1. Words differ from one another, so those for testing are none of those learnt from.

    >>> Parity().label("1101")
    [0, 1, 1, 0]
    """

    symbols: str = "01"
    classes: int = 2
    distinct: bool = True

    def draw(self, random: Random, low: int, high: int) -> str:
        """A word of ``low`` to ``high`` symbols."""
        middle = (low + high) // 2
        while True:
            word = ""
            while len(word) < high and random.random() < middle / (1 + middle):
                word += random.choice(self.symbols)
            even = word + "1" * (word.count("1") % 2)
            if low <= len(word) and len(even) <= high:
                return even

    def label(self, word: str) -> list[int]:
        """1 where the prefix is even, 0 where it is odd."""
        return [1 - ones % 2 for ones in accumulate(int(symbol) for symbol in word)]


@dataclass(frozen=True)
class Repeats:
    """(aa)* or (abab)*: words that repeat ``unit``; the class says whether the prefix does.

    Of each length there is one word. Lengths are uniform in the bin, rounded down to whole repetitions.

    >>> Repeats("abab").label("abababab")
    [0, 0, 0, 1, 0, 0, 0, 1]
    """

    unit: str
    classes: int = 2
    distinct: bool = False

    @property
    def symbols(self) -> str:
        """The alphabet."""
        return "".join(sorted(set(self.unit)))

    def draw(self, random: Random, low: int, high: int) -> str:
        """A word of ``low`` to ``high`` symbols."""
        while True:
            word = self.unit * (random.randint(low, high) // len(self.unit))
            if len(word) >= low:
                return word

    def label(self, word: str) -> list[int]:
        """1 after each whole repetition, else 0."""
        return [int(length % len(self.unit) == 0) for length in range(1, len(word) + 1)]


@dataclass(frozen=True)
class Counts:
    """aⁿbⁿ, aⁿbⁿcⁿ, …: every one of ``symbols`` n times; the class says which symbols may follow.

    n is uniform in the bin. Class 0: the first or the second symbol (the first has not ended); class i > 0: symbol i alone; the
    last class: the end of the word.

    >>> Counts("abc").label("aabbcc")
    [0, 0, 1, 2, 2, 3]
    """

    symbols: str
    distinct: bool = False

    @property
    def classes(self) -> int:
        """One more than symbols: the end."""
        return len(self.symbols) + 1

    def draw(self, random: Random, low: int, high: int) -> str:
        """The word of an n of ``low`` to ``high``."""
        n = random.randint(low, high)
        return "".join(symbol * n for symbol in self.symbols)

    def label(self, word: str) -> list[int]:
        """What may follow each prefix."""
        n, kinds = word.count(self.symbols[0]), len(self.symbols)
        later = [kind for kind in range(1, kinds) for _ in range(n)]
        return [0] * n + later[1:] + [kinds]


@dataclass(frozen=True)
class Shuffle:
    """Words of several pairs of brackets, each balanced by itself; the class says which pairs are open (so may be closed).

    Words come from the grammar S → (ᵢ S )ᵢ with probability 1/2 | S S with 1/4 | nothing with 1/4, so they are Dyck words of
    which only the counters are asked: class Σᵢ 2ⁱ [pair i is open].

    >>> Shuffle(("()", "[]")).label("([])")
    [1, 3, 1, 0]
    """

    pairs: tuple[str, ...]
    distinct: bool = True

    @property
    def symbols(self) -> str:
        """The alphabet."""
        return "".join(self.pairs)

    @property
    def classes(self) -> int:
        """One for each set of open pairs."""
        return int(2 ** len(self.pairs))

    def draw(self, random: Random, low: int, high: int) -> str:
        """A word of ``low`` to ``high`` symbols."""
        while True:
            if len(word := self._grow(random, 0, high)) >= low:
                return word

    def _grow(self, random: Random, size: int, limit: int) -> str:
        """S inside brackets of ``size`` symbols; nothing where it would pass the limit."""
        if size >= limit or (chance := random.random()) >= 0.75:
            return ""
        if chance < 0.5:
            first, last = tuple(random.choice(self.pairs))
            word = first + self._grow(random, size + 2, limit) + last
        else:
            word = self._grow(random, size, limit) + self._grow(random, size, limit)
        return word if len(word) <= limit else ""

    def label(self, word: str) -> list[int]:
        """The open pairs after each prefix."""
        found, depths = [], [0] * len(self.pairs)
        for symbol in word:
            pair, closes = divmod(self.symbols.index(symbol), 2)
            depths[pair] += 1 - 2 * closes
            found.append(sum(2**i for i, depth in enumerate(depths) if depth > 0))
        return found


Language = Parity | Repeats | Counts | Shuffle

LANGUAGES: dict[str, Language] = {
    "parity": Parity(),
    "(aa)*": Repeats("aa"),
    "(abab)*": Repeats("abab"),
    "a^n b^n": Counts("ab"),
    "a^n b^n c^n": Counts("abc"),
    "shuffle-2": Shuffle(("()", "[]")),
}


@dataclass(frozen=True, eq=False)
class Words:
    """Words as tokens (N, T) and classes (N, T), both int64; behind a word's end stand token 0 and ``IGNORED``."""

    tokens: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.tokens)

    def take(self, index: Tensor) -> Words:
        """The words at ``index``, as wide as the longest of them."""
        targets = self.targets[index]
        width = int((targets != IGNORED).sum(1).max())
        return Words(self.tokens[index, :width], targets[:, :width])


@dataclass(frozen=True, eq=False)
class Task:
    """What is learnt from, and what is asked: bin 0 and bin 1."""

    train: Words
    bins: tuple[Words, Words]


def vocabulary(language: Language) -> int:
    """Tokens that a model of ``language`` needs: its symbols are read, its classes are predicted.

    >>> [vocabulary(language) for language in LANGUAGES.values()]
    [2, 2, 2, 3, 4, 4]
    """
    return max(len(language.symbols), language.classes)


def task(language: Language, seed: int = 0, train: int = 10_000, test: int = 2_000) -> Task:
    """``train`` words to learn from and up to ``test`` words of each bin; equal seeds, equal words.

    Languages with one word of each size have few: all of a bin are asked, and the same are learnt from again and again.

    >>> made = task(LANGUAGES["(aa)*"], train=100)
    >>> len(made.train), [len(words) for words in made.bins], made.bins[1].tokens.shape[1]
    (100, [25, 25], 100)
    """
    if train < 1 or test < 1:
        raise NestlingError(f"a task needs at least one word to learn and one to ask, got {train} and {test}.")
    random = Random(f"{seed} {language!r}")
    (low, high), beyond = BINS
    if not language.distinct:
        learnt = [language.draw(random, low, high) for _ in range(train)]
        asked = [sorted({language.draw(random, *sizes) for _ in range(test)}, key=len) for sizes in BINS]
    else:
        near = _distinct(language, random, train + test, (low, high))
        learnt, asked = near[:train], [near[train:], _distinct(language, random, test, beyond)]
    return Task(encode(language, learnt), (encode(language, asked[0]), encode(language, asked[1])))


def encode(language: Language, words: Sequence[str]) -> Words:
    """Words as tokens and classes.

    >>> encode(Counts("ab"), ["ab", "aabb"]).targets.tolist()
    [[0, 2, -100, -100], [0, 0, 1, 2]]
    """
    # Each word once: many languages have few.
    places = {word: place for place, word in enumerate(dict.fromkeys(words))}
    width, number = max(map(len, places)), {symbol: token for token, symbol in enumerate(language.symbols)}
    tokens = [[*(number[symbol] for symbol in word), *[0] * (width - len(word))] for word in places]
    targets = [[*language.label(word), *[IGNORED] * (width - len(word))] for word in places]
    index = torch.tensor([places[word] for word in words])
    return Words(torch.tensor(tokens)[index], torch.tensor(targets)[index])


def _distinct(language: Language, random: Random, count: int, sizes: tuple[int, int]) -> list[str]:
    """``count`` words, no two alike, in the order in which they came."""
    found: dict[str, None] = {}
    while len(found) < count:
        found[language.draw(random, *sizes)] = None
    return list(found)
