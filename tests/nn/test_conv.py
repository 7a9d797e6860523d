"""The short convolution, against torch's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from nestling.errors import NestlingError
from nestling.nn import ShortConv
from nestling.nn.conv import _Taps
from nestling.ops import Marks


@pytest.mark.parametrize("size", [1, 2, 4, 7])
def test_it_is_torchs_depthwise_convolution_padded_on_the_left(size):
    conv = ShortConv(5, size).double()
    x = torch.randn(2, 9, 5, dtype=torch.float64)
    taps = conv.weight.detach().flip(0).T[:, None]  # torch's first tap is the oldest
    expected = F.conv1d(F.pad(x.mT, (size - 1, 0)), taps, groups=5).mT
    y, state = conv(x)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(state, x[:, 9 - (size - 1) :])


def test_its_state_is_the_last_inputs_also_when_fewer_came():
    conv = ShortConv(3, 4)
    x = torch.randn(1, 2, 3)
    _, state = conv(x)
    assert torch.equal(state, torch.cat((torch.zeros(1, 1, 3), x), 1))


def test_padding_and_documents_leave_in_the_state_what_is_still_seen():
    conv = ShortConv(1, 4)
    x = torch.arange(1.0, 7.0).reshape(1, 6, 1)
    valid = torch.tensor([[True, True, True, True, False, False]])
    starts = torch.tensor([[False, False, False, True, False, False]])
    assert conv(x, None, Marks(valid))[1].flatten().tolist() == [2, 3, 4]
    assert conv(x, None, Marks(None, starts))[1].flatten().tolist() == [4, 5, 6]
    assert conv(x, None, Marks(valid, starts))[1].flatten().tolist() == [0, 0, 4]
    ended = torch.tensor([[False, False, False, True, True, False]])
    assert conv(x, None, Marks(valid, ended))[1].flatten().tolist() == [0, 0, 0], "a document of padding began"


def test_no_taps_are_refused():
    with pytest.raises(NestlingError, match="at least one tap"):
        ShortConv(4, 0)


@pytest.mark.parametrize("size", [1, 4])
def test_its_derivatives_are_those_of_the_sum(size):
    seen = torch.randn(2, size + 4, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(size, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(_Taps.apply, (seen, weight))
    assert torch.autograd.gradgradcheck(_Taps.apply, (seen, weight))
