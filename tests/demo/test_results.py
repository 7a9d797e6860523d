"""Differences between readers, and when they count."""

from __future__ import annotations

import math

import pytest

from nestling.demo.results import Difference, Kept, Reader, Sessions


def reader(*windows: float) -> Reader:
    return Reader("x", sum(windows) / len(windows), windows, 1.0, 1)


def test_a_difference_is_what_is_saved() -> None:
    found = Difference.between(reader(3.0, 3.0, 3.0, 3.0), reader(2.0, 2.5, 2.0, 2.5))
    assert found.mean == pytest.approx(0.75)
    assert (found.first, found.last) == (1.0, 0.5)
    # The standard error of four numbers: s/√4 with s² = Σ(x−x̄)²/3.
    assert found.error == pytest.approx(math.sqrt(4 * 0.25**2 / 3) / 2)
    assert found.sure


def test_a_difference_is_over_all_bytes_and_not_over_windows() -> None:
    slow, fast = reader(2.0, 2.0), Reader("y", 1.25, (1.0, 2.0), 1.0, 1)
    assert Difference.between(slow, fast).mean == 0.75


def test_a_difference_within_its_scatter_is_not_sure() -> None:
    assert not Difference.between(reader(2.0, 2.0), reader(1.9, 2.2)).sure
    assert not Difference.between(reader(2.0, 2.0), reader(2.0, 2.0)).sure


def test_one_window_is_enough_to_compute() -> None:
    assert Difference.between(reader(2.0), reader(1.5)).last == 0.5


def test_a_change_counts_beyond_two_standard_errors() -> None:
    assert Kept("documents", 4, 4000, 2.0, 2.03, 0.01).sure
    assert not Kept("documents", 4, 4000, 2.0, 2.01, 0.01).sure


def test_exact_means_zero_and_a_child_that_moved() -> None:
    assert Sessions(1, 1, 1, 0.0, 0.0, 0.1).exact
    assert not Sessions(1, 1, 1, 1e-12, 0.0, 0.1).exact
    assert not Sessions(1, 1, 1, 0.0, 0.0, 0.0).exact
