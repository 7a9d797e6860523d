"""What no file of the repository may say: where a machine keeps its things, unfinished work, an unresolved merge."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.house.sources import ROOT, files

# Written in pieces where the whole would find itself.
FORBIDDEN = {
    "a path of somebody's machine": re.compile(r"(?<![\w.~\-])/(?:home|Users|root|work|opt|mnt|scratch|srv)/\w"),
    "a Windows user's path": re.compile(r"\b[A-Z]:\\\\?Users\b"),
    "a package registry": re.compile("index" + r"-url|\bfind" + "-links"),
    "unfinished work": re.compile(r"\b(?:TO" + r"DO|FIX" + r"ME|XX" + r"X)\b"),
    "an unresolved merge": re.compile(r"^(?:<{7}|>{7}) ", re.MULTILINE),
}
# The licence speaks for itself; this file speaks of the words.
EXEMPT = {"LICENSE", "tests/house/test_words.py"}


def offences(name: str, text: str, here: Path = ROOT) -> list[str]:
    patterns = {**FORBIDDEN, "this checkout": re.compile(re.escape(str(here)) + r"\b")}
    return [
        f"{name}:{text.count(chr(10), 0, match.start()) + 1}: {what}: {match.group()!r}"
        for what, pattern in patterns.items()
        for match in pattern.finditer(text)
    ]


def test_no_file_says_what_it_must_not() -> None:
    named = [(path.relative_to(ROOT).as_posix(), path) for path in files()]
    found = [
        offence for name, path in named if name not in EXEMPT for offence in offences(name, path.read_text("utf-8"))
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "text",
    [
        "see /home/ada/notes",
        "'/opt/models'",
        r"C:\Users\ada",
        "pip --extra-index" + "-url x",
        "# TO" + "DO later",
        "<" * 7 + " HEAD",
    ],
)
def test_offences_are_seen(text: str) -> None:
    assert offences("sample", text)


@pytest.mark.parametrize("text", ["src/home/out.py", "https://host/home/x", "a todo list", "runs/demo", "~/data/x"])
def test_innocent_text_passes(text: str) -> None:
    assert not offences("sample", text)
