"""The continuum memory system: a chain of channel mixers (its updates are ``Level``s, outside)."""

from __future__ import annotations

import pytest
import torch

from nestling.core import Level
from nestling.errors import NestlingError
from nestling.nn import CMS, SwiGLU

LEVELS = [
    Level("fast", 1, owns="*.chain.0.*"),
    Level("slow", 8, owns="*.chain.1.*"),
    Level("slower", 64, owns="*.chain.2.*"),
]


def test_it_is_a_chain_with_a_residual_and_a_norm_between():
    """NL eq. 70: y = MLP_k(… MLP_1(x)); the block adds x to the whole."""
    cms = CMS(8, LEVELS).double()
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    total = x + cms.chain[0](x)[0]
    for norm, mlp in zip(cms.norms, cms.chain[1:], strict=True):
        total = total + mlp(norm(total))[0]
    torch.testing.assert_close(cms(x)[0], total - x, rtol=1e-10, atol=1e-12)


def test_one_level_is_a_plain_channel_mixer():
    cms = CMS(8, LEVELS[:1])
    x = torch.randn(2, 5, 8)
    plain = SwiGLU(8)
    plain.load_state_dict(cms.chain[0].state_dict())
    assert torch.equal(cms(x)[0], plain(x)[0])


def test_each_level_owns_the_parameters_of_its_own_mixer():
    cms = CMS(8, LEVELS)
    owned = [
        {name for name, _ in cms.named_parameters(prefix="blocks.0.channel") if level.owner(name)} for level in LEVELS
    ]
    assert all(owned) and sum(map(len, owned)) == len(set().union(*owned)) == 6


def test_levels_share_the_width_of_one_mixer():
    def count(module: torch.nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    assert count(CMS(192, LEVELS[:2])) == pytest.approx(count(SwiGLU(192)), rel=0.01)


def test_no_level_is_refused():
    with pytest.raises(NestlingError, match="at least one level"):
        CMS(8, [])
