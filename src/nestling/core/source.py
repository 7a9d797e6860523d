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
    except SyntaxError:
        raise NestlingError(
            f"cannot read {text!r}. Write it as its repr, e.g. Memory(MLP(depth=2), L2(), period=16)."
        ) from None


def _value(node: ast.expr, names: Mapping[str, Any]) -> Any:
    match node:
        case ast.Constant(value):
            return value
        case ast.Name("inf"):
            return math.inf
        case ast.Name(name) if name in names:
            return names[name]
        case ast.UnaryOp(ast.USub(), operand):
            return -_value(operand, names)
        case ast.Tuple(elements):
            return tuple(_value(element, names) for element in elements)
        case ast.List(elements):
            return [_value(element, names) for element in elements]
        case ast.Call(ast.Name(name), arguments, keywords) if name in names:
            named = {keyword.arg: _value(keyword.value, names) for keyword in keywords if keyword.arg is not None}
            return names[name](*(_value(argument, names) for argument in arguments), **named)
        case _:
            known = ", ".join(sorted(names))
            raise NestlingError(
                f"cannot read {ast.unparse(node)!r}: only literals, tuples and calls of {known} are allowed."
            )
