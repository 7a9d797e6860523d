"""Models by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

from nestling.core import parse, values
from nestling.errors import NestlingError
from nestling.models import LM, Config
from nestling.nn import (
    ChannelRange,
    Drawn,
    Exactly,
    FixedDecay,
    Gated,
    GateRange,
    ImplicitRange,
    Independent,
    InSequence,
    KeyDecayRange,
    Learnt,
    Length,
    Nested,
    Polynomial,
    RateDecayRange,
    RateRange,
    Rotated,
    Scaled,
    SelfForm,
    SelfRange,
    ShareRange,
    StepRange,
    ThresholdRange,
    Tracking,
    Unit,
    UpTo,
    Within,
    Zeros,
)
from nestling.recipes.atlas import Atlas, atlas
from nestling.recipes.hope import Hope, HopeAttention, HopeGated, hope, hope_attention, hope_gated
from nestling.recipes.linear import (
    GLA,
    DeltaNet,
    GatedDeltaNet,
    Longhorn,
    RetNet,
    deltanet,
    gated_deltanet,
    gla,
    longhorn,
    retnet,
)
from nestling.recipes.mamba import Mamba, SambaMamba, mamba2, samba
from nestling.recipes.miras import Memora, Moneta, Yaad, memora, moneta, yaad
from nestling.recipes.sizes import SIZES, preset
from nestling.recipes.titans import (
    H3,
    Samba,
    TitansLMM,
    TitansMAC,
    TitansMAG,
    TitansMAL,
    titans_lmm,
    titans_mac,
    titans_mag,
    titans_mal,
)
from nestling.recipes.tnt import TNTConfig, tnt
from nestling.recipes.transformer import Transformer, transformer
from nestling.recipes.ttt import TTTMLP, TTTLinear, ttt_linear, ttt_mlp

RECIPES: dict[str, tuple[type[Config], Callable[[Any], LM]]] = {
    "transformer": (Transformer, transformer),
    "retnet": (RetNet, retnet),
    "gla": (GLA, gla),
    "deltanet": (DeltaNet, deltanet),
    "longhorn": (Longhorn, longhorn),
    "gated_deltanet": (GatedDeltaNet, gated_deltanet),
    "ttt_linear": (TTTLinear, ttt_linear),
    "ttt_mlp": (TTTMLP, ttt_mlp),
    "mamba2": (Mamba, mamba2),
    "samba": (SambaMamba, samba),
    "titans_lmm": (TitansLMM, titans_lmm),
    "titans_mac": (TitansMAC, titans_mac),
    "titans_mag": (TitansMAG, titans_mag),
    "titans_mal": (TitansMAL, titans_mal),
    "moneta": (Moneta, moneta),
    "yaad": (Yaad, yaad),
    "memora": (Memora, memora),
    "atlas": (Atlas, atlas),
    "tnt": (TNTConfig, tnt),
    "hope": (Hope, hope),
    "hope_attention": (HopeAttention, hope_attention),
    "hope_gated": (HopeGated, hope_gated),
}
_PARTS = (
    GateRange,
    ChannelRange,
    FixedDecay,
    KeyDecayRange,
    RateRange,
    ImplicitRange,
    RateDecayRange,
    StepRange,
    Unit,
    Length,
    Scaled,
    Rotated,
)
_STARTS = (Polynomial, ShareRange, ThresholdRange, Learnt, Zeros, SelfRange, Samba, H3)
_HOPE = (InSequence, Nested, Independent, Gated, SelfForm, Exactly, UpTo, Within, Drawn, Tracking)


def recipes() -> list[str]:
    """The names that ``build`` knows.

    >>> recipes()[:3]
    ['transformer', 'retnet', 'gla']
    """
    return list(RECIPES)


def configure(recipe: str, size: str = "tiny", vocab_size: int = 256, **changes: Any) -> Config:
    """The configuration that ``build`` would build from. A change may be a value or its source, as in ``"MLP(depth=3)"``.

    >>> configure("transformer", dim=64).dim
    64
    """
    if recipe not in RECIPES:
        raise NestlingError(f"unknown recipe {recipe!r}: use one of {', '.join(RECIPES)}.")
    if size not in SIZES:
        raise NestlingError(f"unknown size {size!r}: use one of {', '.join(SIZES)}, and changes such as dim=96.")
    if vocab_size < 1:
        raise NestlingError(f"vocab_size must be at least 1, got {vocab_size}.")
    kind, _ = RECIPES[recipe]
    known = {field.name for field in fields(kind)}
    unknown = sorted(set(changes) - known)
    if unknown:
        offer = ", ".join(sorted(known - {"recipe", "size", "vocab_size"}))
        raise NestlingError(f"{recipe} has no field {unknown[0]!r}: use one of {offer}.")
    changes = {name: parse(value, _names()) if isinstance(value, str) else value for name, value in changes.items()}
    shape = {name: value for name, value in preset(recipe, size).items() if name in known}
    return kind(recipe=recipe, size=size, vocab_size=vocab_size, **{**shape, **changes})


def build(recipe: str, size: str = "tiny", vocab_size: int = 256, **changes: Any) -> LM:
    """Build a model: ``recipe`` (see ``recipes()``) at ``size``, with ``changes`` to the fields of its configuration.

    Parameters are drawn from torch's global random state.

    >>> model = build("hope", dim=32, layers=1, heads=2)
    >>> model.config.dim, sum(p.numel() for p in model.parameters()) > 0
    (32, True)
    """
    return from_config(configure(recipe, size, vocab_size, **changes))


def from_config(config: Config) -> LM:
    """The model of a configuration."""
    if not (isinstance(config, Config) and config.recipe in RECIPES and isinstance(config, RECIPES[config.recipe][0])):
        raise NestlingError(
            f"no recipe builds from {config!r}: make its configuration with configure(recipe, size, ...)."
        )
    try:
        return RECIPES[config.recipe][1](config)
    except ValueError as error:
        raise NestlingError(str(error)) from None


def from_spec(spec: dict[str, Any]) -> LM:
    """The model of ``LM.spec``, with fresh parameters.

    >>> model = build("titans_lmm", dim=32, layers=1, heads=2)
    >>> from_spec(model.spec).config == model.config
    True
    """
    return from_config(parse(spec["config"], _names()))


def _names() -> dict[str, Any]:
    """What the source of a configuration may name."""
    kinds = [kind for kind, _ in RECIPES.values()]
    return {**values(), **{kind.__name__: kind for kind in (*kinds, *_PARTS, *_STARTS, *_HOPE)}}
