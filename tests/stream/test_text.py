"""Stop strings, wherever the pieces of a text are cut."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nestling.errors import NestlingError
from nestling.stream.text import stop_strings, until


def literally(text: str, stops: list[str]) -> str:
    """Letter by letter: the text before the first stop that is complete, the longest of them."""
    for end in range(len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            return text[: end - max(map(len, complete))]
    return text


@settings(max_examples=400)
@given(
    text=st.text("ab.", max_size=20),
    stops=st.lists(st.text("ab.", min_size=1, max_size=4), max_size=3),
    cuts=st.lists(st.integers(0, 20), max_size=6),
)
def test_a_text_ends_at_its_first_stop_wherever_it_is_cut(text: str, stops: list[str], cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(text)]
    pieces = [text[low:high] for low, high in pairwise(edges)]
    assert "".join(until(pieces, stops)) == literally(text, stops)


def test_a_stop_may_come_letter_by_letter() -> None:
    assert "".join(until("one, t twENDx", ["END"])) == "one, t tw"
    assert "".join(until("aaab!", ["aab!"])) == "a"


def test_text_comes_out_as_soon_as_it_is_sure() -> None:
    assert list(until(["a", "b", "\n", "c", "\n", "\n", "d"], ["\n\n"])) == ["a", "b", "\nc"]


def test_nothing_is_taken_after_a_stop() -> None:
    taken = []

    def pieces() -> Iterator[str]:
        for piece in ("one ", "two END", " three"):
            taken.append(piece)
            yield piece

    assert "".join(until(pieces(), ["END"])) == "one two "
    assert taken == ["one ", "two END"]


def test_a_string_is_one_stop_and_not_its_letters() -> None:
    assert stop_strings("END") == ("END",)
    assert stop_strings(["a", "b"]) == ("a", "b")


@pytest.mark.parametrize("stop", ["", ["a", ""]])
def test_an_empty_stop_is_refused(stop: str | list[str]) -> None:
    with pytest.raises(NestlingError, match="a stop string must not be empty"):
        stop_strings(stop)
