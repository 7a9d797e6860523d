"""Linear self-modifying Titans that commit after every token: what makes the next key was just written, so nothing goes at once.

A token is then some twenty operations on all heads' weights, side by side in one matrix; blocks of one token take five times as
long and give the same.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

import nestling.tree as tree
from nestling.core import L2, Architecture, Beside, Delta, Descend, Matrix, Memory, MemoryState, Residual, Returning
from nestling.nn.norm import unit
from nestling.nn.self_modifying_form import SelfForm, SelfRange, joined
from nestling.ops import Chunk
from nestling.ops.compiled import compiled
from nestling.ops.loop import Step, loop

UNROLLED = 8
"""Tokens in one compiled program: more run little faster and take longer to compile."""

Parts = tuple[tuple[str, Architecture, int], ...]


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
    inputs: tuple[Tensor, dict[str, Tensor]],
    path: Chunk = Chunk(),
) -> tuple[Tensor, tuple[MemoryState, MemoryState]]:
    """NL eqs 83-88 token by token, of all memories □ side by side: x (B, H, T, d) and what stands still of each part::

        A_□ ← A_□ (α I - η k kᵀ) - η (M_□ k - M_□ v) kᵀ,   M_□ = F_□ + A_□

    ``F`` is what is never written: the start of a memory that returns to it, and the skip of a residual one.

    >>> from nestling.nn import SelfModifying
    >>> layer = SelfModifying(8, heads=2, period=1)
    >>> states = layer.initial_state(1)
    >>> x, static = torch.randn(1, 2, 5, 4), layer._static(torch.randn(1, 5, 8))
    >>> memories, state = (layer.memory, layer.projections), (states.memory, states.projections)
    >>> by_token(memories, state, layer.form, layer.ranges, (x, static))[0].shape
    torch.Size([1, 2, 5, 4])
    """
    x, made = inputs[0], memories[1].architecture
    assert isinstance(made, Beside)
    width, length = x.shape[-1], x.shape[2]
    fixed = torch.cat([_fixed(memory, state, width) for memory, state in zip(memories, states, strict=True)], -1)
    written = torch.cat([state.dual["w1"].mT for state in states], -1)
    # The memories that make k, v, η and α are written at a part of the rates.
    scale = torch.full_like(fixed[:1, :1, :1], ranges.projections)
    scale[..., :width] = 1
    carry, read = (written, written), list[Tensor]()
    whole = length - length % UNROLLED if path.compiled else 0
    for make, size, begins, ends in ((_compiled, UNROLLED, 0, whole), (_work, 1, whole, length)):
        if begins < ends:
            given = tree.map(
                lambda leaf, cut=slice(begins, ends), n=size: leaf[:, :, cut].unflatten(2, (-1, n)), inputs
            )
            work = make(form, ranges, made.parts)
            y, carry = loop(work, carry, given, (fixed, scale), (ends - begins) // size, path.stride)
            read.append(y.flatten(2, 3))
    return torch.cat(read, 2), _after(memories, states, carry, fixed, width)


def _work(form: SelfForm, ranges: SelfRange, parts: Parts) -> Step:
    block = _block(form, ranges, parts)
    return lambda index, carry, given, shared: block(carry, given, shared)


@lru_cache(maxsize=64)
def _compiled(form: SelfForm, ranges: SelfRange, parts: Parts) -> Step:
    # A program that knew the number of its block would be another one for each.
    block = compiled(_block(form, ranges, parts))
    return lambda index, carry, given, shared: block(carry, given, shared)


def _block(form: SelfForm, ranges: SelfRange, parts: Parts) -> Any:
    """A few tokens: what is read at them, and (A, A before the last of them)."""
    names, widths = [name for name, *_ in parts], [wide for *_, wide in parts]

    def block(carry: tuple[Tensor, Tensor], given: Any, shared: tuple[Tensor, Tensor]) -> Any:
        (written, before), (x, static), (fixed, scale) = carry, given, shared
        width, read = x.shape[-1], []
        for t in range(x.shape[2]):
            before, memory = written, fixed + written
            found = (x[:, :, t, None] @ memory[..., width:]).split(widths, -1)
            made = joined(
                dict(zip(names, found, strict=True)), {name: each[:, :, t, None] for name, each in static.items()}
            )
            # η = lr σ(M_η x + b), α = σ(M_α x + b)
            k, lr = unit(made["k"]), ranges.lr * torch.sigmoid(made["η"])
            v = form.value(made["v"], k, lr)
            kept = written * (1 - torch.sigmoid(-made["α"]) * scale) if "α" in made else written
            # kᵀA + (k - v)ᵀM
            wrong = k @ written + (k - v) @ memory
            written = kept - k.mT * (lr * scale * wrong)
            # y_t = M_t q_t
            read.append(unit(made["q"]) @ (fixed[..., :width] + written[..., :width]))
        return torch.cat(read, 2), (written, before)

    return block


def _after(
    memories: tuple[Memory, Memory],
    states: tuple[MemoryState, MemoryState],
    carry: tuple[Tensor, Tensor],
    fixed: Tensor,
    width: int,
) -> tuple[MemoryState, MemoryState]:
    """The states behind the last token: what was committed is what stood before it was written."""
    sizes = [width, fixed.shape[-1] - width]
    now, before, still = (each.split(sizes, -1) for each in (*carry, fixed))
    after = []
    for memory, state, dual, committed, standing in zip(memories, states, now, before, still, strict=True):
        anchor = committed + standing - _skip(memory.architecture, standing) if state.origin else committed
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
