"""The house rules that a program can check: no pickle, no sniffing, no way around the floors."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence

import pytest

from tests.house.sources import Source, sources

PICKLES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
PICKLING_CALLS = {"torch.load", "torch.save"}


def pickles(package: Sequence[Source]) -> list[str]:
    """Files that can be opened only by running what is in them: imports and calls of pickle, in any of its coats."""
    found = [
        f"{source.at(node)}: import {name}" for source in package for node, name in imports(source) if name in PICKLES
    ]
    return found + [
        f"{source.at(node)}: {name}" for source in package for node, name in calls(source) if name in PICKLING_CALLS
    ]


def sniffing(package: Sequence[Source]) -> list[str]:
    """Questions about what an object happens to have, where its type should be matched (rule 8)."""
    found = []
    for source in package:
        for node, name in calls(source):
            asks = name == "hasattr" or (name == "getattr" and len(node.args) == 3)
            found += [f"{source.at(node)}: {name}"] if asks else []
    return found


def around_the_floors(package: Sequence[Source]) -> list[str]:
    """Imports of the package's own root: its public names reach every floor, so a floor that used them would see upwards."""
    floors = modules() - {"nestling"}
    return [
        f"{source.at(node)}: {name}"
        for source in package
        for node, name in imports(source)
        if source.module != "nestling" and name.partition(".")[0] == "nestling" and name not in floors
    ]


def imports(source: Source) -> Iterator[tuple[ast.stmt, str]]:
    """Every imported module by its dotted name; ``from a import b`` is ``a.b`` where that is a module of the package."""
    for node in ast.walk(source.tree):
        match node:
            case ast.Import(names):
                yield from ((node, alias.name) for alias in names)
            case ast.ImportFrom(module=str(module), names=names):
                deep = [f"{module}.{alias.name}" for alias in names]
                yield from ((node, name if name in modules() else module) for name in deep)


def modules() -> set[str]:
    return {source.module for source in sources()}


def calls(source: Source) -> Iterator[tuple[ast.Call, str]]:
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
            yield node, ast.unparse(node.func)


@pytest.mark.parametrize("rule", [pickles, sniffing, around_the_floors])
def test_the_package_keeps_the_rule(rule) -> None:
    found = rule(sources())
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (pickles, "import pickle"),
        (pickles, "from joblib import dump"),
        (pickles, "import torch\ntorch.save({}, 'a.pt')"),
        (sniffing, "hasattr(config, 'dim')"),
        (sniffing, "getattr(config, 'dim', 3)"),
        (around_the_floors, "from nestling import build"),
        (around_the_floors, "from nestling.nowhere import thing"),
    ],
)
def test_the_rule_sees_who_breaks_it(rule, text: str) -> None:
    assert rule([Source("src/nestling/core/sample.py", text)])
