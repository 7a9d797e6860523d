"""Values from their own ``repr``: configurations, checkpoints and command lines name memories by source, not by pickle."""

from __future__ import annotations

import ast
import math
from collections.abc import Mapping
from typing import Any

from nestling.errors import NestlingError


def parse(text: str, names: Mapping[str, Any]) -> Any:
    """Evaluate ``text``, an expression of literals and calls of ``names`` alone; nothing else can run.

    >>> from nestling.core import values
    >>> parse("Memory(MLP(expand=2), L2(), period=16)", values())
    ... # doctest: +ELLIPSIS
    Memory(architecture=MLP(expand=2, depth=2, activation=GELU()), objective=L2(), ..., period=16, read_at='current')
    """
    try:
        return _value(ast.parse(text.strip(), mode="eval").body, names)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        if isinstance(error, NestlingError):
            raise
        raise NestlingError(
            f"cannot read {_short(text)}. Write it as its repr, e.g. Memory(MLP(depth=2), L2(), period=16)."
        ) from None


def _value(node: ast.expr, names: Mapping[str, Any]) -> Any:
    match node:
        case ast.Constant(value):
            return value
        case ast.Name("inf"):
            return math.inf
        case ast.UnaryOp(ast.USub(), ast.Constant(int() | float()) | ast.Name("inf")):
            return -_value(node.operand, names)
        case ast.Tuple(elements):
            return tuple(_value(element, names) for element in elements)
        case ast.List(elements):
            return [_value(element, names) for element in elements]
        case ast.Call(ast.Name(name), arguments, keywords) if name in names and _plain(keywords):
            given = [_value(argument, names) for argument in arguments]
            named = {str(keyword.arg): _value(keyword.value, names) for keyword in keywords}
            try:
                return names[name](*given, **named)
            except TypeError as error:
                raise NestlingError(f"cannot read {_short(ast.unparse(node))}: {error}.") from None
        case _:
            known = ", ".join(sorted(names))
            raise NestlingError(
                f"cannot read {_short(ast.unparse(node))}: only literals, tuples and calls of {known} are allowed."
            )


def _plain(keywords: list[ast.keyword]) -> bool:
    """No ``**mapping``, and no name twice: both would be lost without a word."""
    return all(keyword.arg for keyword in keywords) and len({keyword.arg for keyword in keywords}) == len(keywords)


def _short(text: str) -> str:
    return repr(text if len(text) <= 80 else f"{text[:77]}...")
