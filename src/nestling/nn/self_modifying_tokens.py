"""Linear self-modifying Titans that commit after every token: what makes the next key was just written, so nothing goes at once.

A token is then some twenty operations on all heads' weights, side by side in one matrix; blocks of one token take ten times as
long and give the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nestling.core import L2, Architecture, Beside, Delta, Descend, Matrix, Memory, MemoryState, Residual, Returning
from nestling.nn.norm import unit
from nestling.nn.self_modifying_form import SelfForm, SelfRange


@dataclass(frozen=True)
class Within:
    """v = u k + o with c - 2/η ≤ u ≤ c and ‖o‖ ≤ ``length``, where v was u k + o: what a write can do to a memory, bounded.

    A write that erases ``erased`` = c times (delta gradient descent with L2: twice) multiplies what the memory holds along the key
    by α - η (c - u). The bounds keep that between α - 2 and α: nothing grows, and both ends can be held exactly, where counting
    (α = 1: M ← M + η M o kᵀ adds up) and telling odd from even (a reflection) take place.

    >>> k, v = torch.tensor([1.0, 0.0]), torch.tensor([5.0, 3.0])
    >>> Within()(v, k, torch.tensor(0.5)), Within()(-v, k, torch.tensor(1.0))
    (tensor([2., 1.]), tensor([ 0., -1.]))
    """

    length: float = 1.0
    erased: float = 2.0

    def __call__(self, v: Tensor, k: Tensor, lr: Tensor) -> Tensor:
        """U k + o, for keys of unit length and rates that broadcast against them"""
        along = (v * k).sum(-1, keepdim=True)
        across = v - along * k
        short = (self.length * torch.rsqrt(across.square().sum(-1, keepdim=True) + 1e-12)).clamp(max=1)
        lowest = self.erased - 2 / lr.clamp(min=1e-6)
        return torch.maximum(along, lowest).clamp(max=self.erased) * k + short * across


def tokenwise(main: Memory, makers: Memory) -> bool:
    """Are all parts linear, written by the delta rule of the paper, and committed after every token?"""
    made = makers.architecture
    assert isinstance(made, Beside)
    return (
        main.period == makers.period == 1
        and main.read_at == "current"
        and all(_linear(part) for part in (main.architecture, *(inner for _, inner, _ in made.parts)))
        and all(each.objective == L2() and each.rule == Descend() for each in (main, makers))
        and main.retention == makers.retention
        and main.retention in (Delta(), Returning(Delta()))
    )


def by_token(
    memories: tuple[Memory, Memory],
    states: tuple[MemoryState, MemoryState],
    form: SelfForm,
    ranges: SelfRange,
    x: Tensor,
    static: dict[str, Tensor],
    value: Within | None = None,
) -> tuple[Tensor, tuple[MemoryState, MemoryState]]:
    """NL eqs 83-88 token by token, of all memories □ side by side: x (B, H, T, d) and what stands still of each part::

        A_□ ← A_□ (α I - η k kᵀ) - η (M_□ k - M_□ v) kᵀ,   M_□ = F_□ + A_□

    ``value`` takes the place of the form's. ``F`` is what is never written: the start of a memory that returns to it, and the skip of a residual one.

    >>> from nestling.nn import SelfModifying
    >>> layer = SelfModifying(8, heads=2, period=1)
    >>> states = layer.initial_state(1)
    >>> x, static = torch.randn(1, 2, 5, 4), layer._static(torch.randn(1, 5, 8))
    >>> memories, state = (layer.memory, layer.projections), (states.memory, states.projections)
    >>> by_token(memories, state, layer.form, layer.ranges, x, static)[0].shape
    torch.Size([1, 2, 5, 4])
    """
    width = x.shape[-1]
    fixed = torch.cat([_fixed(memory, state, width) for memory, state in zip(memories, states, strict=True)], -1)
    written = torch.cat([state.dual["w1"].mT for state in states], -1)
    # The memories that make k, v, η and α are written at a part of the rates.
    scale = torch.ones(fixed.shape[-1], dtype=x.dtype, device=x.device)
    scale[width:] = ranges.projections
    parts = memories[1].architecture
    assert isinstance(parts, Beside)
    names, widths = [name for name, *_ in parts.parts], [wide for *_, wide in parts.parts]
    given = {name: each[..., None, :].unbind(2) for name, each in static.items()}
    retained = "α" in names or "α" in given
    seen, before = [], written
    for t, token in enumerate(x[..., None, :].unbind(2)):
        before, memory = written, fixed + written
        found = dict(zip(names, (token @ memory[..., width:]).split(widths, -1), strict=True))
        made = {name: each + given[name][t] if name in given else each for name, each in found.items()}
        made |= {name: each[t] for name, each in given.items() if name not in made}
        # η = lr σ(M_η x + b), α = σ(M_α x + b)
        k, lr = unit(made["k"]), ranges.lr * torch.sigmoid(made["η"])
        v = form.value(made["v"]) if value is None else value(made["v"], k, lr)
        kept = written
        if retained:
            kept = written * (1 - torch.sigmoid(-made["α"]) * scale)
        # kᵀA + (k - v)ᵀM
        wrong = torch.matmul(k, written) + torch.matmul(k - v, memory)
        written = kept - k.mT * (lr * scale * wrong)
        seen.append((unit(made["q"]), written[..., :width]))
    q, each = (torch.stack(column, 2) for column in zip(*seen, strict=True))
    # y_t = M_t q_t
    y = (q @ (each + fixed[..., None, :, :width])).squeeze(-2)
    sizes = [width, sum(widths)]
    return y, _after(memories, states, (before, written), fixed, sizes)


def _after(
    memories: tuple[Memory, Memory],
    states: tuple[MemoryState, MemoryState],
    written: tuple[Tensor, Tensor],
    fixed: Tensor,
    sizes: list[int],
) -> tuple[MemoryState, MemoryState]:
    """The states behind the last token: what was committed is what stood before it was written."""
    before, now = (each.split(sizes, -1) for each in written)
    after = []
    for memory, state, committed, dual, still in zip(
        memories, states, before, now, fixed.split(sizes, -1), strict=True
    ):
        anchor = committed + still - _skip(memory.architecture, still) if state.origin else committed
        after.append(
            MemoryState({"w1": dual.mT}, {"w1": anchor.mT}, state.rule, torch.ones_like(state.phase), state.origin)
        )
    return after[0], after[1]


def _fixed(memory: Memory, state: MemoryState, width: int) -> Tensor:
    """F, (B, H, in, out)"""
    start = state.origin["w1"].mT if state.origin else torch.zeros_like(state.dual["w1"].mT)
    return start + _skip(memory.architecture, start)


def _skip(architecture: Architecture, like: Tensor) -> Tensor:
    """The identity under every residual part, zeros elsewhere: (in, out)."""
    eye = torch.eye(like.shape[-2], dtype=like.dtype, device=like.device)
    match architecture:
        case Residual():
            return eye
        case Beside(parts):
            return torch.cat([_skip(inner, like[..., :wide]) for _, inner, wide in parts], -1)
        case _:
            return torch.zeros_like(like[0, 0])


def _linear(architecture: Architecture) -> bool:
    return architecture in (Matrix(), Residual(Matrix()))
