"""The sizes of the papers (Titans, NeurIPS version, table 5), and one for a desk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nestling.core import Chain, Descend, Level, Momentum


@dataclass(frozen=True)
class Size:
    """Width, depth and heads; ``window``: tokens that attention sees; ``persistent``: learnt tokens; ``segment``: MAC's."""

    dim: int
    layers: int
    heads: int
    window: int
    persistent: int
    segment: int


SIZES = {
    "tiny": Size(dim=192, layers=4, heads=4, window=256, persistent=16, segment=64),
    "170m": Size(dim=768, layers=12, heads=16, window=2048, persistent=128, segment=512),
    "340m": Size(dim=1024, layers=24, heads=16, window=2048, persistent=128, segment=512),
    "760m": Size(dim=1536, layers=24, heads=16, window=2048, persistent=128, segment=512),
    "1.3b": Size(dim=2048, layers=18, heads=8, window=2048, persistent=128, segment=512),
}

# The papers' widths and depths alone hold fewer parameters than the names say (a transformer of "170m" with tied embeddings of
# 32,000 tokens: 110 million). So the head is untied, and the channel mixers are as wide as the nominal number needs.
EXPAND = {
    "transformer": (6.54, 3.45, 3.84, 5.73),
    "retnet": (6.03, 2.94, 3.34, 5.23),
    "gla": (6.01, 2.93, 3.33, 5.23),
    "deltanet": (6.02, 2.93, 3.33, 5.23),
    "longhorn": (6.02, 2.93, 3.33, 5.23),
    "gated_deltanet": (6.01, 2.92, 3.33, 5.23),
    "ttt_linear": (5.99, 2.9, 3.3, 5.17),
    "ttt_mlp": (5.77, 2.68, 3.08, 4.73),
    "mamba2": (5.35, 2.3, 2.75, 4.66),
    "samba": (5.94, 2.88, 3.28, 5.2),
    "titans_lmm": (5.72, 2.64, 3.06, 4.72),
    "titans_mac": (3.63, 0.58, 1.01, 2.69),
    "titans_mag": (3.63, 0.58, 1.01, 2.69),
    "titans_mal": (6.08, 3.01, 3.43, 5.21),
    "moneta": (5.67, 2.6, 3.04, 4.69),
    "yaad": (5.67, 2.6, 3.03, 4.69),
    "memora": (5.67, 2.6, 3.04, 4.69),
    "atlas": (6.57, 3.61, 4.13, 6.13),
    "tnt": (5.4, 2.34, 2.78, 4.21),
    "hope": (6.94, 3.82, 4.25, 6.04),
    "hope_attention": (6.5, 3.42, 3.81, 5.72),
    "hope_gated": (6.85, 3.8, 4.22, 6.05),
}
MOMENTUM = Chain((Descend(), Momentum()))
NOMINAL = {"170m": 170_000_000, "340m": 340_000_000, "760m": 760_000_000, "1.3b": 1_300_000_000}
"""Parameters, with an untied vocabulary of 32,000 tokens"""


DESK: dict[str, dict[str, Any]] = {
    "tnt": {"schedule": (Level("global", 64, MOMENTUM), Level("local", 8, MOMENTUM, reset=256))},
}
"""What "tiny" has smaller besides: rows are short"""


def preset(recipe: str, size: str) -> dict[str, Any]:
    """The fields of a configuration that a size sets.

    >>> preset("transformer", "170m")["expand"], preset("transformer", "tiny").get("expand")
    (6.54, None)
    """
    shape = dict(vars(SIZES[size]))
    if size not in NOMINAL:
        return {**shape, **DESK.get(recipe, {})}
    return {**shape, "expand": EXPAND[recipe][list(NOMINAL).index(size)], "tied": False}
