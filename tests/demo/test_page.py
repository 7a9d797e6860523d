"""The page: whole, alone, and true to the summary."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from nestling.demo import page
from nestling.demo.results import Results
from tests.demo.conftest import Report

VOID = {"meta", "link", "br", "hr", "img", "input"}
SVG = {"path", "use", "rect", "line", "circle", "polyline"}


class Checked(HTMLParser):
    """Elements that are open, the names that were given, and the numbers that say where they are from."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.ids: list[str] = []
        self.numbers: list[tuple[str, str, str]] = []
        self.problems: list[str] = []
        self._number: tuple[str, str] | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag not in VOID:
            self.open.append(tag)
        if "id" in given:
            self.ids.append(given["id"])
        if "data-from" in given:
            self._number = (given["data-from"], given["data-style"])

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.ids += [value or "" for name, value in attrs if name == "id"]

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.problems.append(f"</{tag}> closes what is not open at {self.getpos()}")

    def handle_data(self, data: str) -> None:
        if self._number is not None:
            self.numbers.append((*self._number, data))
            self._number = None


def checked(text: str) -> Checked:
    parser = Checked()
    parser.feed(text)
    parser.close()
    return parser


def entry(summary: Any, path: str) -> Any:
    for key in path.split("."):
        summary = summary[int(key)] if isinstance(summary, list) else summary[key]
    return summary


def test_the_page_is_well_formed(report: Report) -> None:
    found = checked(report.page)
    assert report.page.startswith("<!doctype html>")
    assert found.problems == []
    assert found.open == []
    assert len(found.ids) == len(set(found.ids))


def test_the_page_needs_nothing_else(report: Report) -> None:
    assert "http" not in report.page
    assert not re.search(r'(?:src|href)="(?!#)', report.page)
    assert not re.search(r"url\((?!#)", report.page)
    assert "<script" not in report.page
    assert "@import" not in report.page


def test_what_a_plot_refers_to_is_on_the_page(report: Report) -> None:
    referred = set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', report.page))
    assert {name for pair in referred for name in pair if name} <= set(checked(report.page).ids)


def test_numbers_are_those_of_the_summary(report: Report) -> None:
    numbers = checked(report.page).numbers
    assert len(numbers) > 30
    for path, style, shown in numbers:
        assert shown == format(entry(report.summary, path), style), path


def test_findings_are_those_of_the_summary(report: Report) -> None:
    for sentence in [*report.summary["findings"], report.summary["caveat"]]:
        assert sentence in report.page


def test_it_is_made_for_phones_and_for_the_night(report: Report) -> None:
    assert '<meta name="viewport" content="width=device-width' in report.page
    assert "@media (prefers-color-scheme: dark)" in report.page
    colours = set(re.findall(r"#[0-9a-f]{6}", report.page[report.page.index("<body>") :]))
    assert not colours, "plots take their colours from the page"
    assert report.page.count("<svg") == 3


def test_text_is_escaped(results: Results, tmp_path: Path) -> None:
    from dataclasses import replace

    page.write(tmp_path, replace(results, command="<b>&"))
    assert "&lt;b&gt;&amp;" in (tmp_path / "index.html").read_text()


def test_a_level_that_is_never_updated_says_so(results: Results, tmp_path: Path) -> None:
    page.write(tmp_path, results)
    text = (tmp_path / "index.html").read_text()
    assert "<td>never</td>" in text
    assert json.loads((tmp_path / "summary.json").read_text())["levels"][1]["period"] is None
