"""SwiGLU."""

from __future__ import annotations

import pytest
import torch

from nestling.nn import SwiGLU


def test_it_is_its_formula():
    layer = SwiGLU(6).double()
    x = torch.randn(2, 3, 6, dtype=torch.float64)
    up = x @ layer.up.weight.T
    gate, value = up[..., : up.shape[-1] // 2], up[..., up.shape[-1] // 2 :]
    expected = (gate / (1 + torch.exp(-gate)) * value) @ layer.down.weight.T
    torch.testing.assert_close(layer(x)[0], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("dim", "expand", "hidden"), [(48, 4, 128), (192, 4, 512), (32, 4, 96), (32, 2, 48), (6, 1, 16)]
)
def test_two_thirds_of_the_width_rounded_up_to_16(dim, expand, hidden):
    assert SwiGLU(dim, expand).down.weight.shape == (dim, hidden)
