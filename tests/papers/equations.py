"""docs/equations.md from what the tests hold: ``python -m tests.papers.equations`` writes its tables.

``equations.toml`` names every equation of the papers and where it stands in the code; the tests say by
``@pytest.mark.equation(PAPER, NUMBER, ...)`` which of them they hold. The text around the tables is written by hand.
"""

from __future__ import annotations

import ast
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "equations.md"
DATA = Path(__file__).with_suffix(".toml")
BEGIN, END = "<!-- tables: written by tests/papers/equations.py -->", "<!-- tables end -->"

Label = int | str
"""The number of an equation, or where something without a number stands."""


@dataclass(frozen=True)
class Row:
    """One line of a paper's table. Without ``code`` it is not implemented; ``code`` in words is a definition."""

    label: str
    what: str
    code: str = ""
    held: str = ""
    """What holds it where no test is marked: the example of a docstring, a law"""

    @property
    def labels(self) -> list[Label]:
        """What the label names: "8, 10–12, Alg. 1" is 8, 10, 11, 12 and "Alg. 1"."""
        found: list[Label] = []
        for part in self.label.split(", "):
            if span := re.fullmatch(r"(\d+)–(\d+)", part):
                found += range(int(span[1]), int(span[2]) + 1)
            else:
                found.append(int(part) if part.isdigit() else part)
        return found

    @property
    def implemented(self) -> bool:
        return bool(self.code) and not self.code.startswith("not implemented")


@dataclass(frozen=True)
class Paper:
    """Its name in marks, and the rows of its table."""

    name: str
    rows: tuple[Row, ...]
    equations: int = 0
    """Its equations are numbered from 1 to this; 0: the table is a selection"""


def papers() -> list[Paper]:
    found = tomllib.loads(DATA.read_text("utf-8"))["paper"]
    return [Paper(each["name"], tuple(Row(*row) for row in each["rows"]), each.get("equations", 0)) for each in found]


def marks() -> dict[tuple[str, Label], set[str]]:
    """The files whose tests hold an equation, read from their text: no test has to run."""
    found: dict[tuple[str, Label], set[str]] = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        name = path.relative_to(ROOT).as_posix()
        text = path.read_text("utf-8")
        if "mark.equation" not in text:
            continue
        for node in ast.walk(ast.parse(text)):
            for mark in node.decorator_list if isinstance(node, ast.FunctionDef) else []:
                if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.equation":
                    paper, *labels = (ast.literal_eval(argument) for argument in mark.args)
                    for label in labels:
                        found.setdefault((paper, label), set()).add(name)
    return found


def tables(known: list[Paper], held: dict[tuple[str, Label], set[str]]) -> str:
    """The tables of all papers."""
    parts = []
    for paper in known:
        lines = [f"## {paper.name}", "", "| eq. | what | code | test |", "|---|---|---|---|"]
        lines += [f"| {row.label} | {row.what} | {_code(row)} | {_tests(paper, row, held)} |" for row in paper.rows]
        parts.append("\n".join(lines))
    missing = [
        f"- {paper.name} {row.label}: {row.what}" for paper in known for row in paper.rows if not row.implemented
    ]
    return "\n\n".join([*parts, "## Not implemented", "\n".join(missing)])


def _code(row: Row) -> str:
    return row.code or "not implemented"


def _tests(paper: Paper, row: Row, held: dict[tuple[str, Label], set[str]]) -> str:
    if not row.implemented:
        return ""
    files = set().union(*(held.get((paper.name, label), set()) for label in row.labels))
    return ", ".join(f"`{name}`" for name in sorted(files)) or row.held or "–"


def page(text: str) -> str:
    """The page with its tables written anew."""
    head, begin, rest = text.partition(f"{BEGIN}\n")
    _, end, tail = rest.partition(f"{END}\n")
    assert begin and end, f"{PAGE} has no lines {BEGIN} and {END}"
    return f"{head}{begin}\n{tables(papers(), marks())}\n\n{end}{tail}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text("utf-8")), "utf-8")
