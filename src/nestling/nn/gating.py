"""Gates of the linear family, each form a value: how a layer makes rates and retentions from its tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nestling.core import Gates
from nestling.errors import NestlingError
from nestling.nn.project import Shapes


@dataclass(frozen=True)
class FixedDecay:
    """α = 1 - 2^(-``first`` - h) for head h = 0, 1, …, whatever the token says; unit rate (RetNet, arXiv 2307.08621, eq. 8).

    >>> FixedDecay().module(32, 2, {"w1": (16, 16)}, 16)(torch.zeros(1, 1, 32)).retain.flatten()
    tensor([0.9688, 0.9844])
    """

    first: float = 5.0

    def module(self, dim: int, heads: int, shapes: Shapes, width: int) -> nn.Module:
        """No parameters."""
        return _Fixed(heads, self)


@dataclass(frozen=True)
class KeyDecayRange:
    """α = σ(W₂W₁x + b)^(1/``temperature``) for each key channel, W₁ of ``rank`` rows; unit rate (GLA, arXiv 2312.06635, eq. 5).

    >>> KeyDecayRange().module(32, 2, {"w1": (16, 16)}, 16)(torch.zeros(1, 5, 32)).retain.shape
    torch.Size([1, 2, 5, 16])
    """

    rank: int = 16
    temperature: float = 16.0

    def __post_init__(self) -> None:
        if self.rank < 1 or self.temperature <= 0:
            raise NestlingError(f"KeyDecayRange needs rank ≥ 1 and temperature > 0, got {self!r}.")

    def module(self, dim: int, heads: int, shapes: Shapes, width: int) -> nn.Module:
        """Two projections and a bias."""
        return _ByKey(dim, heads, self)


@dataclass(frozen=True)
class RateRange:
    """θ = ``lr`` σ(w·x) for each head; nothing is forgotten: β of DeltaNet with lr = 1, η of TTT (arXiv 2407.04620, §2.7).

    >>> RateRange(0.1).module(32, 2, {"w1": (16, 16)}, 16)(torch.zeros(1, 1, 32)).lr.flatten()
    tensor([0.0500, 0.0500], grad_fn=<ViewBackward0>)
    """

    lr: float = 1.0

    def module(self, dim: int, heads: int, shapes: Shapes, width: int) -> nn.Module:
        """One projection."""
        return _Rate(dim, heads, self)


@dataclass(frozen=True)
class ImplicitRange:
    """δ = η/(1 + η), η = ``lr`` σ(w·x) for each head; nothing is forgotten (Longhorn, arXiv 2407.14207).

    The delta rule at this rate is a whole proximal step for keys of unit length, argmin ‖S − Sₜ₋₁‖² + η‖S k − v‖²; its δ is
    η/(1 + η‖k‖²). However large η is, it never writes more than the error.

    >>> ImplicitRange(2.0).module(32, 2, {"w1": (16, 16)}, 16)(torch.zeros(1, 1, 32)).lr.flatten()
    tensor([0.5000, 0.5000], grad_fn=<ViewBackward0>)
    """

    lr: float = 1.0

    def module(self, dim: int, heads: int, shapes: Shapes, width: int) -> nn.Module:
        """One projection."""
        return _Implicit(dim, heads, self)


@dataclass(frozen=True)
class RateDecayRange:
    """β = σ(w·x), α = exp(-A softplus(u·x + b)) for each head (Gated DeltaNet, arXiv 2412.06464, §3.3; the α is Mamba2's).

    Before training A is uniform in (0, ``fastest``) and softplus(b) log-uniform in [``shortest``, ``longest``].
    """

    fastest: float = 16.0
    shortest: float = 1e-3
    longest: float = 0.1

    def module(self, dim: int, heads: int, shapes: Shapes, width: int) -> nn.Module:
        """Two projections, A and b."""
        return _RateDecay(dim, heads, self)


@dataclass(frozen=True)
class StepRange:
    """θ = Δ = softplus(u·x + b), α = exp(-AΔ) for each head (Mamba-2, arXiv 2405.21060): who writes more forgets more.

    Before training A is uniform in [``slowest``, ``fastest``] and Δ log-uniform in [``shortest``, ``longest``].

    >>> gates = StepRange().module(32, 2, {"w1": (16, 16)}, 16)(torch.zeros(1, 1, 32))
    >>> bool((gates.retain < 1).all()), bool((gates.lr <= 0.1).all())
    (True, True)
    """

    slowest: float = 1.0
    fastest: float = 16.0
    shortest: float = 1e-3
    longest: float = 0.1

    def __post_init__(self) -> None:
        if not (0 < self.slowest <= self.fastest and 0 < self.shortest <= self.longest):
            raise NestlingError(f"StepRange needs 0 < slowest ≤ fastest and 0 < shortest ≤ longest, got {self!r}.")

    def module(self, dim: int, heads: int, shapes: Shapes, width: int) -> nn.Module:
        """One projection, A and b."""
        return _Step(dim, heads, self)


class _Fixed(nn.Module):
    def __init__(self, heads: int, form: FixedDecay) -> None:
        super().__init__()
        self.heads, self.form = heads, form

    def forward(self, x: Tensor) -> Gates:
        exponent = self.form.first + torch.arange(self.heads, device=x.device, dtype=torch.float64)
        return Gates(retain=(1 - 2.0**-exponent)[:, None].to(torch.promote_types(x.dtype, torch.float32)))


class _ByKey(nn.Module):
    def __init__(self, dim: int, heads: int, form: KeyDecayRange) -> None:
        super().__init__()
        self.heads, self.form = heads, form
        self.down_to = nn.Linear(dim, form.rank, bias=False)
        self.up_from = nn.Linear(form.rank, dim)

    def forward(self, x: Tensor) -> Gates:
        with torch.autocast(x.device.type, enabled=False):
            raw = self.up_from(self.down_to(x.to(self.up_from.weight.dtype)))
            raw = raw.to(torch.promote_types(raw.dtype, torch.float32)).unflatten(-1, (self.heads, -1))
            return Gates(retain=torch.exp(F.logsigmoid(raw) / self.form.temperature).transpose(1, 2))


class _Rate(nn.Module):
    def __init__(self, dim: int, heads: int, form: RateRange | ImplicitRange) -> None:
        super().__init__()
        self.form = form
        self.linear = nn.Linear(dim, heads, bias=False)

    def forward(self, x: Tensor) -> Gates:
        with torch.autocast(x.device.type, enabled=False):
            raw = self.linear(x.to(self.linear.weight.dtype)).mT
            return Gates(lr=self.form.lr * torch.sigmoid(raw))


class _Implicit(_Rate):
    def forward(self, x: Tensor) -> Gates:
        rate = super().forward(x).lr
        return Gates(lr=rate / (1 + rate))


class _RateDecay(nn.Module):
    def __init__(self, dim: int, heads: int, form: RateDecayRange) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, 2 * heads, bias=False)
        low, high = math.log(form.shortest), math.log(form.longest)
        step = torch.exp(low + (high - low) * torch.rand(heads))
        # b = softplus⁻¹(step)
        self.bias = nn.Parameter(step + torch.log(-torch.expm1(-step)))
        self.speed = nn.Parameter(torch.log(form.fastest * torch.rand(heads).clamp_min(1e-3)))

    def forward(self, x: Tensor) -> Gates:
        with torch.autocast(x.device.type, enabled=False):
            raw = self.linear(x.to(self.linear.weight.dtype))
            raw = raw.to(torch.promote_types(raw.dtype, torch.float32))
            rate, decay = raw.chunk(2, -1)
            # α = exp(-A softplus(u·x + b)), A = exp(speed)
            retain = torch.exp(-self.speed.exp() * F.softplus(decay + self.bias))
            return Gates(lr=torch.sigmoid(rate).mT, retain=retain.mT)


class _Step(nn.Module):
    def __init__(self, dim: int, heads: int, form: StepRange) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, heads, bias=False)
        low, high = math.log(form.shortest), math.log(form.longest)
        step = torch.exp(low + (high - low) * torch.rand(heads))
        # b = softplus⁻¹(step)
        self.bias = nn.Parameter(step + torch.log(-torch.expm1(-step)))
        self.speed = nn.Parameter(torch.log(form.slowest + (form.fastest - form.slowest) * torch.rand(heads)))

    def forward(self, x: Tensor) -> Gates:
        with torch.autocast(x.device.type, enabled=False):
            raw = self.linear(x.to(self.linear.weight.dtype))
            step = F.softplus(raw.to(torch.promote_types(raw.dtype, torch.float32)) + self.bias)
            # Δ = softplus(u·x + b), α = exp(-AΔ), A = exp(speed)
            return Gates(lr=step.mT, retain=torch.exp(-self.speed.exp() * step).mT)
