"""Layers: ``(x, state) -> (y, state)``."""

from nestling.nn.attention import Attention
from nestling.nn.block import Block
from nestling.nn.channels import ChannelRange
from nestling.nn.cms import CMS, Gated, Independent, InSequence, Nested, Wiring
from nestling.nn.context import MemoryAsContext, Segment
from nestling.nn.conv import ShortConv
from nestling.nn.features import Features, Length, Polynomial, Rotated, Scaled, Unit
from nestling.nn.fused import Fused
from nestling.nn.gating import FixedDecay, ImplicitRange, KeyDecayRange, RateDecayRange, RateRange, StepRange
from nestling.nn.hybrid import Identity, MemoryAsGate, MemoryAsLayer
from nestling.nn.mamba import Mamba2
from nestling.nn.memory import Gating, Learnt, MemoryLayer, Zeros, buffered
from nestling.nn.mixer import LevelRow, Mixer, State
from nestling.nn.mlp import SwiGLU
from nestling.nn.norm import RMSNorm, unit
from nestling.nn.project import GateProjection, GateRange
from nestling.nn.record import Heard, Record, recording
from nestling.nn.rope import rotate
from nestling.nn.self_modifying import SelfModifying
from nestling.nn.self_modifying_form import Exactly, SelfForm, SelfRange, UpTo, Within
from nestling.nn.self_modifying_start import Drawn, Tracking
from nestling.nn.share import ShareRange, ThresholdRange
from nestling.nn.tnt import TNT
from nestling.ops import settled

__all__ = [
    "MemoryAsContext",
    "Segment",
    "Identity",
    "MemoryAsGate",
    "MemoryAsLayer",
    "Features",
    "Length",
    "Polynomial",
    "Rotated",
    "Scaled",
    "Unit",
    "FixedDecay",
    "KeyDecayRange",
    "RateDecayRange",
    "RateRange",
    "ImplicitRange",
    "StepRange",
    "Mamba2",
    "Gating",
    "Learnt",
    "Zeros",
    "CMS",
    "Fused",
    "Gated",
    "Independent",
    "InSequence",
    "Nested",
    "Wiring",
    "ChannelRange",
    "Attention",
    "Block",
    "GateProjection",
    "GateRange",
    "LevelRow",
    "MemoryLayer",
    "Mixer",
    "RMSNorm",
    "Heard",
    "TNT",
    "ShareRange",
    "ThresholdRange",
    "Record",
    "recording",
    "SelfModifying",
    "Drawn",
    "Exactly",
    "SelfForm",
    "SelfRange",
    "Tracking",
    "UpTo",
    "Within",
    "ShortConv",
    "State",
    "SwiGLU",
    "buffered",
    "settled",
    "rotate",
    "unit",
]
