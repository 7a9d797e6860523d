"""The sizes of the papers (Titans, NeurIPS version, table 5), and one for a desk."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Size:
    """Width, depth and heads; ``window``: tokens that attention sees."""

    dim: int
    layers: int
    heads: int
    window: int


SIZES = {
    "tiny": Size(dim=192, layers=4, heads=4, window=256),
    "170m": Size(dim=768, layers=12, heads=16, window=2048),
    "340m": Size(dim=1024, layers=24, heads=16, window=2048),
    "760m": Size(dim=1536, layers=24, heads=16, window=2048),
    "1.3b": Size(dim=2048, layers=18, heads=8, window=2048),
}
