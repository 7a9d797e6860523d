"""What a test runs for each of: all names, those that take long marked slow."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

LONGEST = frozenset({"atlas", "f_divergence"})
"""One forms and orthogonalises weights for every token, the other goes token by token: a tenth of the whole suite was theirs"""


def each(names: Iterable[str], slow: frozenset[str] = LONGEST) -> list[object]:
    """Parameters, in their order; ``make slow`` runs the slow ones.

    >>> [getattr(one, "values", one) for one in each(["hope", "atlas"])]
    ['hope', ('atlas',)]
    """
    return [pytest.param(name, marks=pytest.mark.slow) if name in slow else name for name in names]
