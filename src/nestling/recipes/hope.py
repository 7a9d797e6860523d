"""Hope (arXiv 2512.24695), first form: linear self-modifying Titans → a continuum memory system."""

from __future__ import annotations

from dataclasses import dataclass

from nestling.core import Level
from nestling.models import LM, Config
from nestling.nn import CMS, Block, SelfModifying, SelfRange


@dataclass(frozen=True)
class Hope(Config):
    """``period``: tokens between commits of the memories; ``levels``: of the CMS, fast to slow; ``conv``: taps."""

    period: int = 16
    levels: tuple[Level, ...] = (Level("fast", 1, owns="*.chain.0.*"), Level("slow", 1, owns="*.chain.1.*"))
    conv: int = 4
    ranges: SelfRange = SelfRange()


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
        [Block(config.dim, mixer(), CMS(config.dim, config.levels, config.expand)) for _ in range(config.layers)],
    )
