"""The documentation tells the truth: its Python runs, its links lead somewhere, its commands exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.house.sources import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]

FENCE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:|mailto:|#)([^)\s#]+)")
TARGET = re.compile(r"^([a-z]+):", re.MULTILINE)


@pytest.mark.parametrize(
    "page", [page for page in PAGES if FENCE.search(page.read_text("utf-8"))], ids=lambda page: page.name
)
def test_python_on_the_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks marked ``python``, from top to bottom, in one namespace."""
    monkeypatch.chdir(tmp_path)
    text, names = page.read_text("utf-8"), {"__name__": "page"}
    for block in FENCE.finditer(text):
        before = text.count("\n", 0, block.start(1))
        exec(compile("\n" * before + block.group(1), page.name, "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_to_files(page: Path) -> None:
    broken = [link for link in LINK.findall(page.read_text("utf-8")) if not (page.parent / link).exists()]
    assert not broken


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_named_files_exist(page: Path) -> None:
    named = re.findall(r"`((?:src|tests|docs|benchmarks|examples)/[\w./-]+\.\w+)`", page.read_text("utf-8"))
    assert not [name for name in named if not (ROOT / name).exists()]


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_named_make_targets_exist(page: Path) -> None:
    targets = set(TARGET.findall((ROOT / "Makefile").read_text("utf-8")))
    assert set(re.findall(r"`make ([a-z]+)", page.read_text("utf-8"))) <= targets


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text("utf-8")
    assert not [page.name for page in PAGES if page.parent.name == "docs" and page.name not in navigation]


def test_every_recipe_is_described() -> None:
    import nestling

    page = (ROOT / "docs" / "recipes.md").read_text("utf-8")
    assert not [recipe for recipe in nestling.recipes() if f"`{recipe}`" not in page]
