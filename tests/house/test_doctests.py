"""The examples in the package's docstrings: every one runs and prints what it says."""

from __future__ import annotations

import ast
import doctest
import importlib
from pathlib import Path

import pytest

from tests.house.sources import Source, sources

# Packages that only an extra brings; a module that needs a missing one is skipped by name.
OPTIONAL = {"fla", "triton", "transformers", "lm_eval", "fastapi", "uvicorn", "trackio"}
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE | doctest.IGNORE_EXCEPTION_DETAIL


def examples(source: Source, names: dict[str, object]) -> list[doctest.DocTest]:
    """One test for each docstring with examples, found in the text: decorators and re-exports hide none of them."""
    found = []
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            text = ast.get_docstring(node, clean=True)
            name = source.module if isinstance(node, ast.Module) else f"{source.module}.{node.name}"
            line = node.body[0].lineno - 1
            if text and ">>>" in text:
                found.append(doctest.DocTestParser().get_doctest(text, dict(names), name, source.path, line))
    return found


def run(tests: list[doctest.DocTest]) -> str:
    """What the examples printed wrongly, or nothing."""
    runner, report = doctest.DocTestRunner(verbose=False, optionflags=FLAGS), []
    for test in tests:
        runner.run(test, out=report.append)
    return "".join(report)


WITH_EXAMPLES = [source for source in sources() if ">>>" in source.text]


@pytest.mark.parametrize("source", WITH_EXAMPLES, ids=[source.module for source in WITH_EXAMPLES])
def test_examples(source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        module = importlib.import_module(source.module)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in OPTIONAL:
            raise
        pytest.skip(f"{source.module} needs {error.name}, which is not installed")
    monkeypatch.chdir(tmp_path)
    report = run(examples(source, vars(module)))
    assert not report, report


def test_a_wrong_example_is_seen() -> None:
    text = 'def f():\n    """F.\n\n    >>> 1 + 1\n    {}\n    """\n'
    wrong, right = (Source("src/nestling/sample.py", text.format(answer)) for answer in (3, 2))
    assert "Expected:\n    3\nGot:\n    2" in run(examples(wrong, {}))
    assert not run(examples(right, {}))
