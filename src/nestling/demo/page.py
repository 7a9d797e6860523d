"""The report: one page that needs nothing else, and the same numbers for programs."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from nestling.atomic import write_text
from nestling.demo import plots, words
from nestling.demo.results import Results

PAGE, SUMMARY = "index.html", "summary.json"


def write(folder: Path, results: Results) -> Path:
    """Write the report and return the page's path."""
    summary = {"findings": words.findings(results), "caveat": words.caveat(results), **results.to_json()}
    write_text(folder / SUMMARY, json.dumps(summary, indent=1, ensure_ascii=False) + "\n")
    write_text(folder / PAGE, render(summary, results))
    return folder / PAGE


def render(summary: dict[str, Any], results: Results) -> str:
    """The page."""
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.globals["number"] = _numbers(summary)
    template = environment.from_string(files("nestling.demo").joinpath("page.html.j2").read_text("utf-8"))
    drawn = {
        "training": plots.training(results),
        "stream": plots.stream(results.stream),
        "saved": plots.saved(results.stream),
    }
    return template.render(summary=summary, plots=drawn) + "\n"


def number(value: float, style: str) -> str:
    """A number for people: ``style`` is a format such as ``.3f`` or ``,d``.

    >>> number(1234567, ",d"), number(0.0, ".3g")
    ('1,234,567', '0')
    """
    return format(value, style)


def _numbers(summary: dict[str, Any]) -> Any:
    """Every number on the page comes from here: it says which entry of ``summary.json`` it is."""

    def show(path: str, style: str) -> Markup:
        value: Any = summary
        for key in path.split("."):
            value = value[int(key)] if isinstance(value, list | tuple) else value[key]
        markup = Markup('<span data-from="{}" data-style="{}">{}</span>')
        return markup.format(path, style, number(value, style))

    return show
