"""Fixtures of the paths' tests."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that is new is full of NaN: whatever is read before it is written to, or left out, shows."""

    def fill(make):
        def filled(*args, **options):
            found = make(*args, **options)
            return found.fill_(float("nan")) if found.is_floating_point() else found

        return filled

    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        monkeypatch.setattr(owner, name, fill(getattr(owner, name)))
