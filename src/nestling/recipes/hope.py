"""Hope (arXiv 2512.24695): a token mixer that learns in context → a continuum memory system."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nestling.core import Level
from nestling.models import LM, Config
from nestling.nn import CMS, Attention, Block, Fused, InSequence, SelfModifying, SelfRange, Wiring

FAST, SLOW = Level("fast", 1), Level("slow", 4)


@dataclass(frozen=True)
class Hope(Config):
    """``period``: tokens between commits of the memories; ``conv``: taps.

    ``levels``: of the CMS, fast to slow, with periods in steps of training; ``wiring``: how they are joined.
    """

    period: int = 16
    levels: tuple[Level, ...] = (FAST, SLOW)
    wiring: Wiring = InSequence()
    conv: int = 4
    ranges: SelfRange = SelfRange()


@dataclass(frozen=True)
class HopeAttention(Config):
    """``window``: tokens that attention sees; ``levels`` and ``wiring`` as in ``Hope``."""

    window: int = 256
    levels: tuple[Level, ...] = (FAST, SLOW)
    wiring: Wiring = InSequence()


@dataclass(frozen=True)
class HopeGated(Config):
    """As ``Hope``, with any number of levels beside the memory instead of after it."""

    period: int = 16
    levels: tuple[Level, ...] = (FAST, Level("middle", 16), Level("slow", 256))
    conv: int = 4
    ranges: SelfRange = SelfRange()


ABLATIONS: dict[str, dict[str, Any]] = {
    "w/o CMS": {"levels": (FAST,)},
    "only fast levels": {"levels": (FAST, Level("also fast", 1))},
    "only slow levels": {"levels": (Level("also slow", SLOW.period), SLOW)},
}
"""Rows of NL table 6, and the two of its press summary, as changes of ``hope``"""


def hope(config: Hope) -> LM:
    """Self-modifying Titans → CMS, in every block (NL eq. 97).

    >>> from nestling.recipes import build
    >>> len(build("hope", layers=1).config.levels)
    2
    """

    def mixer() -> SelfModifying:
        return SelfModifying(config.dim, config.heads, config.period, conv=config.conv, ranges=config.ranges)

    return LM(
        config,
        [
            Block(config.dim, mixer(), CMS(config.dim, config.levels, config.expand, config.wiring))
            for _ in range(config.layers)
        ],
    )


def hope_attention(config: HopeAttention) -> LM:
    """Softmax attention → CMS, in every block (NL §8.3).

    >>> from nestling.recipes import build
    >>> build("hope_attention", layers=1, levels=(Level("fast", 1), Level("slow", 8))).config.window
    256
    """
    return LM(
        config,
        [
            Block(
                config.dim,
                Attention(config.dim, config.heads, config.window),
                CMS(config.dim, config.levels, config.expand, config.wiring),
            )
            for _ in range(config.layers)
        ],
    )


def hope_gated(config: HopeGated) -> LM:
    """Self-modifying Titans and levels beside one another, fused by a learnt gate, in every block; the model's norm follows.

    >>> from nestling.recipes import build
    >>> [level.period for level in build("hope_gated", layers=1).config.levels]
    [1, 16, 256]
    """

    def mixer() -> SelfModifying:
        return SelfModifying(config.dim, config.heads, config.period, conv=config.conv, ranges=config.ranges)

    return LM(config, [Fused(config.dim, mixer(), config.levels, config.expand) for _ in range(config.layers)])
