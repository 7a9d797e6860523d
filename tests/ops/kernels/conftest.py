"""Fixtures of the kernels' tests."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture
def kernels() -> None:
    pytest.importorskip("triton", reason="kernels need the package triton")


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """What kernels write to is full of NaN before: whatever they leave out shows."""

    def fill(make):
        return lambda *args, **options: make(*args, **options).fill_(float("nan"))

    monkeypatch.setattr(torch, "empty_like", fill(torch.empty_like))
    monkeypatch.setattr(torch.Tensor, "new_empty", fill(torch.Tensor.new_empty))
