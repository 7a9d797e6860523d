"""TNT (arXiv 2511.07343): one slow memory of everything and fast ones of the present shard, in every block."""

from __future__ import annotations

from dataclasses import dataclass

from nestling.core import L2, MLP, Decay, Level, Memory, Normed, Residual
from nestling.errors import NestlingError
from nestling.models import LM, Config
from nestling.nn import TNT, Block, GateRange, Gating, SwiGLU
from nestling.recipes.sizes import MOMENTUM


@dataclass(frozen=True)
class TNTConfig(Config):
    """``schedule``: one memory a level (``Level.reset``: where it begins anew); ``memory``: what they have in common."""

    memory: Memory = Memory(Residual(Normed(MLP(expand=4, depth=2))), L2(), Decay())
    schedule: tuple[Level, ...] = (Level("global", 2048, MOMENTUM), Level("local", 8, MOMENTUM, reset=4096))
    conv: int = 4
    gates: Gating = GateRange()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (isinstance(self.memory, Memory) and all(isinstance(level, Level) for level in self.schedule)):
            raise NestlingError(f"TNT is made of a Memory and Levels, got {self.memory!r} and {self.schedule!r}.")


def tnt(config: TNTConfig) -> LM:
    """Hierarchical memory → SwiGLU, in every block; ``tiny`` has periods and shards that fit short rows.

    >>> from nestling.recipes import build
    >>> [(level.name, level.period, level.reset) for level in build("tnt", layers=1).config.schedule]
    [('global', 64, None), ('local', 8, 256)]
    """

    def mixer() -> TNT:
        return TNT(config.dim, config.heads, config.memory, config.schedule, conv=config.conv, gates=config.gates)

    return LM(config, [Block(config.dim, mixer(), SwiGLU(config.dim, config.expand)) for _ in range(config.layers)])
