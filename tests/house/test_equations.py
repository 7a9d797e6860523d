"""docs/equations.md says what the tests hold: generated, complete, and nothing marked that is not there."""

from __future__ import annotations

import pytest

from tests.papers.equations import PAGE, Paper, Row, marks, page, papers, tables


def test_the_page_is_what_the_tests_say() -> None:
    text = PAGE.read_text("utf-8")
    assert page(text) == text, "write it anew: python -m tests.papers.equations"


@pytest.mark.parametrize("paper", [paper for paper in papers() if paper.equations], ids=lambda paper: paper.name)
def test_every_equation_of_the_paper_is_named(paper: Paper) -> None:
    named = {label for row in paper.rows for label in row.labels}
    assert not set(range(1, paper.equations + 1)) - named


def test_only_what_is_named_and_implemented_is_marked() -> None:
    known = {(paper.name, label) for paper in papers() for row in paper.rows if row.implemented for label in row.labels}
    assert not sorted(
        f"{paper} {label}: {files}" for (paper, label), files in marks().items() if (paper, label) not in known
    )


def test_labels_name_equations() -> None:
    assert Row("8, 10–12, Alg. 1", "").labels == [8, 10, 11, 12, "Alg. 1"]


def test_a_table_shows_what_holds_a_line_and_what_is_missing() -> None:
    rows = (
        Row("1, 2", "held", "`a`"),
        Row("3", "by example", "`b`", "example"),
        Row("4", "bare", "`c`"),
        Row("5", "gone"),
    )
    text = tables([Paper("P", rows)], {("P", 2): {"tests/x.py"}, ("P", 5): {"tests/y.py"}})
    lines = text.splitlines()
    assert "| 1, 2 | held | `a` | `tests/x.py` |" in lines
    assert "| 3 | by example | `b` | example |" in lines
    assert "| 4 | bare | `c` | – |" in lines
    assert "| 5 | gone | not implemented |  |" in lines
    assert lines[-1] == "- P 5: gone"
