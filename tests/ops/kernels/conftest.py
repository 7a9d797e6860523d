"""Fixtures of the kernels' tests."""

from __future__ import annotations

import pytest


@pytest.fixture
def kernels() -> None:
    pytest.importorskip("triton", reason="kernels need the package triton")
