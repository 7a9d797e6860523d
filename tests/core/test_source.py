"""``parse``: every repr evaluates back; nothing but literals and calls of the given names is read."""

from __future__ import annotations

import dataclasses

import pytest

from nestling import core
from nestling.core import Level, Memory, parse, values
from nestling.errors import NestlingError
from tests.core.values import VALUES


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_a_repr_evaluates_back_to_an_equal_value(value):
    again = parse(repr(value), values())
    assert again == value and type(again) is type(value)
    assert repr(again) == repr(value) and hash(again) == hash(value)


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_a_value_is_frozen(value):
    for field in dataclasses.fields(value):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, field.name, None)


def test_every_public_value_is_in_the_vocabulary_and_tried():
    tried = {type(value).__name__ for value in VALUES}
    assert tried == set(values())
    bases = {"Architecture", "Objective", "Retention", "Rule"}
    states = {"Gates", "MemoryState", "Pairs", "Surprise"}
    named = {name for name in core.__all__ if isinstance(getattr(core, name), type)}
    assert named - bases - states == set(values()), "a new value belongs into core._VALUES and tests.core.values"


def test_literals():
    assert parse(" [1, (2.5, -3), 'a', None, True] ", {}) == [1, (2.5, -3), "a", None, True]
    assert parse("(inf, -inf)", {}) == (float("inf"), float("-inf"))
    assert parse("Level('a', period=inf)", values()) == Level("a", float("inf"))
    assert parse("Memory(Matrix(), period=4)", values()) == Memory(core.Matrix(), period=4)


REFUSED = [
    "",
    "  ",
    "Memory(",
    "Memory",
    "Memory(Matrix)",
    "print('x')",
    "__import__('os').system('true')",
    "Matrix().__class__",
    "Memory.__init__",
    "(lambda: 1)()",
    "[Matrix() for _ in (1, 2)]",
    "{'a': 1}",
    "{1, 2}",
    "1 + 1",
    "2 ** 100000000",
    "not True",
    "-'a'",
    "-Matrix()",
    "Matrix() if True else 1",
    "f'{Matrix()}'",
    "Matrix()[0]",
    "Matrix()()",
    "a := 1",
    "Memory(*(Matrix(),))",
    "Memory(Matrix(), **{'period': 3})",
    "Memory(Matrix(), period=3, period=4)",
    "Memory()",
    "Memory(Matrix(), speed=3)",
    "MLP(depth=0)",
    "MLP(depth='two')",
    "Memory(Matrix(), period=0)",
    "Matrix(); Matrix()",
    "import os",
    "\0",
    "(" * 1000,
    "-" * 100_000 + "1",
    "Residual(" * 5000 + "Matrix()" + ")" * 5000,
]


@pytest.mark.parametrize("text", REFUSED, ids=lambda text: repr(text[:40]))
def test_anything_else_is_refused_in_one_line(text):
    with pytest.raises(NestlingError) as raised:
        parse(text, values())
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 600


def test_a_refusal_offers_what_would_be_read():
    with pytest.raises(NestlingError, match=r"cannot read 'Matrx\(\)'.*Matrix"):
        parse("Memory(Matrx())", values())
