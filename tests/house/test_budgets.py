"""The size budgets: a file, a function and a signature that a reader holds in mind, and values instead of flags."""

from __future__ import annotations

import ast
from collections.abc import Sequence

import pytest

from tests.house.sources import Function, Source, sources

FILE_LINES = 400
FUNCTION_LINES = 70
ARGUMENTS = 8
BOOLEANS_PER_THOUSAND_LINES = 2


def long_files(package: Sequence[Source]) -> list[str]:
    counted = [(source.path, source.text.count("\n")) for source in package]
    return [f"{path}: {lines} lines, at most {FILE_LINES}" for path, lines in counted if lines > FILE_LINES]


def long_functions(package: Sequence[Source]) -> list[str]:
    return [
        f"{source.at(function)}: {function.name} has {lines} lines, at most {FUNCTION_LINES}"
        for source in package
        for function in source.functions()
        if (lines := (function.end_lineno or 0) - function.lineno + 1) > FUNCTION_LINES
    ]


def wide_functions(package: Sequence[Source]) -> list[str]:
    return [
        f"{source.at(function)}: {function.name} takes {len(names)} arguments, at most {ARGUMENTS}"
        for source in package
        for function in source.functions()
        if len(names := arguments(function)) > ARGUMENTS
    ]


def arguments(function: Function) -> list[str]:
    given = function.args
    both = [*given.posonlyargs, *given.args, *given.kwonlyargs, *filter(None, (given.vararg, given.kwarg))]
    return [argument.arg for argument in both if argument.arg not in ("self", "cls")]


def boolean_defaults(package: Sequence[Source]) -> list[str]:
    """Where a parameter or a dataclass field is a flag: its default is True or False."""
    found = []
    for source in package:
        for node in ast.walk(source.tree):
            match node:
                case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda():
                    defaults = [*node.args.defaults, *node.args.kw_defaults]
                case ast.ClassDef():
                    defaults = [field.value for field in node.body if isinstance(field, ast.AnnAssign)]
                case _:
                    continue
            found += [source.at(value) for value in defaults if is_boolean(value)]
    return found


def is_boolean(value: ast.expr | None) -> bool:
    return isinstance(value, ast.Constant) and isinstance(value.value, bool)


def undocumented(package: Sequence[Source]) -> list[str]:
    return [
        f"{source.path}: {name} has no docstring"
        for source in package
        for name, node in source.documented()
        if not is_private(name) and not ast.get_docstring(node)
    ]


def is_private(name: str) -> bool:
    return any(part.startswith("_") for part in name.split("."))


@pytest.mark.parametrize("budget", [long_files, long_functions, wide_functions, undocumented])
def test_the_package_keeps_the_budget(budget) -> None:
    found = budget(sources())
    assert not found, "\n".join(found)


def test_flags_are_rare() -> None:
    lines = sum(source.text.count("\n") for source in sources())
    found = boolean_defaults(sources())
    allowed = max(1, BOOLEANS_PER_THOUSAND_LINES * lines // 1000)
    assert len(found) <= allowed, f"{len(found)} boolean defaults in {lines} lines, at most {allowed}: {found}"


def sample(text: str) -> list[Source]:
    return [Source("src/nestling/sample.py", text)]


def test_the_budgets_see_what_exceeds_them() -> None:
    assert long_files(sample("x = 1\n" * 401))
    assert not long_files(sample("x = 1\n" * 400))
    assert long_functions(sample("def f():\n" + "    x = 1\n" * 70))
    assert not long_functions(sample("def f():\n" + "    x = 1\n" * 69))
    assert wide_functions(sample("def f(a, b, c, d, e, *f, g, **h): ...\ndef g(a, b, c, d, /, e, f, *, g, h, i): ..."))
    assert not wide_functions(sample("class A:\n    def f(self, a, b, c, d, e, f, g, h): ..."))
    assert len(boolean_defaults(sample("def f(a, b=True, *, c=False, d=1): ...\nclass A:\n    e: bool = True"))) == 3
    missing = sample('"""Module."""\nclass A:\n    """A."""\n    def f(self): ...\n    def _g(self): ...\ndef h(): ...')
    assert undocumented(missing) == [
        "src/nestling/sample.py: nestling.sample.A.f has no docstring",
        "src/nestling/sample.py: nestling.sample.h has no docstring",
    ]
