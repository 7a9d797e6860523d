"""Blocks: two residual branches, two states."""

from __future__ import annotations

import torch

from nestling.nn import Attention, Block, RMSNorm, ShortConv, SwiGLU


def test_each_branch_is_normed_before_and_added_after():
    block = Block(8, Attention(8, 2, 4), SwiGLU(8)).double()
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    y = x + block.mixer(block.mixer_norm(x))[0]
    y = y + block.channel(block.channel_norm(y))[0]
    assert torch.equal(block(x)[0], y)


def test_both_branches_may_keep_state_and_nest():
    inner = Block(8, ShortConv(8, 2), ShortConv(8, 3))
    block = Block(8, Attention(8, 2, 4), inner)
    _, (window, (first, second)) = block(torch.randn(2, 5, 8))
    assert window.key.shape[2] == 4 and first.shape == (2, 1, 8) and second.shape == (2, 2, 8)
    assert [row.name for row in block.levels()] == ["mixer.window"]


def test_a_branch_that_says_nothing_leaves_the_stream_as_it_is():
    block = Block(8, Attention(8, 2, 4), SwiGLU(8))
    with torch.no_grad():
        block.mixer.out.weight.zero_()
        block.channel.down.weight.zero_()
    x = torch.randn(2, 5, 8)
    assert torch.equal(block(x)[0], x)
    assert isinstance(block.mixer_norm, RMSNorm)
