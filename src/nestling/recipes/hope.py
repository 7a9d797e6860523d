"""Hope (arXiv 2512.24695): a token mixer that learns in context → a continuum memory system."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nestling.core import Chain, Delta, Descend, Level, Momentum, Returning
from nestling.models import LM, Config
from nestling.nn import CMS, Attention, Block, Fused, InSequence, SelfForm, SelfModifying, SelfRange, Wiring

FAST, SLOW = Level("fast", 1), Level("slow", 4)


@dataclass(frozen=True)
class Hope(Config):
    """``period``: tokens between commits of the memories, which ``form`` says what they are made of; ``conv``: taps.

    ``levels``: of the CMS, fast to slow, with periods in steps of training; ``wiring``: how they are joined.
    """

    period: int = 16
    levels: tuple[Level, ...] = (FAST, SLOW)
    wiring: Wiring = InSequence()
    conv: int = 4
    ranges: SelfRange = SelfRange()
    form: SelfForm = SelfForm()


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
    form: SelfForm = SelfForm()


WHOLE = SelfForm(
    adaptive=("q", "k", "v", "η", "α"), static=("β",), rule=Chain((Descend(), Momentum())), retention=Returning(Delta())
)
"""All that NL table 6 takes something away from: adaptive projections, q among them, momentum, forgetting, DGD"""

ABLATIONS: dict[str, dict[str, Any]] = {
    "Hope": {"form": WHOLE},
    "w/o DGD": {"form": WHOLE.without("DGD")},
    "w/o momentum": {"form": WHOLE.without("momentum")},
    "w/o weight decay": {"form": WHOLE.without("weight decay")},
    "w/o CMS": {"form": WHOLE, "levels": (FAST,)},
    "w/o inner-projection k": {"form": WHOLE.without("k")},
    "w/o inner-projection v": {"form": WHOLE.without("v")},
    "w/o inner-projection q": {"form": WHOLE.without("q")},
    "only fast levels": {"form": WHOLE, "levels": (FAST, Level("also fast", 1))},
    "only slow levels": {"form": WHOLE, "levels": (Level("also slow", SLOW.period), SLOW)},
}
"""The rows of NL table 6, and the two of the press summary, as changes of ``hope``: ``build("hope", **ABLATIONS["w/o CMS"])``"""


def hope(config: Hope) -> LM:
    """Self-modifying Titans → CMS, in every block (NL eq. 97).

    >>> from nestling.recipes import build
    >>> len(build("hope", layers=1).config.levels)
    2
    """
    return LM(
        config,
        [
            Block(config.dim, _mixer(config), CMS(config.dim, config.levels, config.expand, config.wiring))
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
    return LM(config, [Fused(config.dim, _mixer(config), config.levels, config.expand) for _ in range(config.layers)])


def _mixer(config: Hope | HopeGated) -> SelfModifying:
    return SelfModifying(
        config.dim, config.heads, config.period, form=config.form, conv=config.conv, ranges=config.ranges
    )
