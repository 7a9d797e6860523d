"""The project's own files agree with one another."""

from __future__ import annotations

import re
import tomllib

from tests.house.sources import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def normal(requirement: str) -> str:
    """The name that a requirement asks for, as package tools compare names."""
    name = re.match(r"[\w.\-]+", requirement)
    assert name is not None, requirement
    return re.sub(r"[-_.]+", "-", name.group()).lower()


def test_what_is_needed_is_pinned() -> None:
    extras = PROJECT["optional-dependencies"]
    asked = {
        normal(requirement)
        for requirement in [*PROJECT["dependencies"], *extras["dev"], *extras["docs"], *extras["examples"]]
    }
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pinned = {normal(line) for line in lines if line and not line.startswith("#") and "==" in line}
    assert not asked - pinned


def test_torch_is_pinned_without_naming_a_build() -> None:
    assert "torch==2.13.0\n" in (ROOT / "constraints.txt").read_text("utf-8")


def test_types_are_published() -> None:
    assert (ROOT / "src" / "nestling" / "py.typed").is_file()
