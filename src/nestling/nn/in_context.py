"""A continuum memory system in context: levels that are written with the next-token loss while a stream is read (NL eq. 71)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from math import inf
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from nestling import tree
from nestling.core import Every, Gates, Level, Rule
from nestling.errors import NestlingError
from nestling.nn.deltas import applied, linears
from nestling.nn.mixer import State
from nestling.nn.pieces import Piece, cut

Read: TypeAlias = Callable[[Tensor, State, Tensor], tuple[Tensor, State]]
"""(tokens (B, T), state, valid (B, T)) -> (logits (B, T, V), state)"""


@tree.state
class Written:
    """What one level has learnt of each sequence; weights by name, with the batch as their first dimension."""

    delta: dict[str, Tensor]
    """Δ: what is added to the weights that all sequences share"""
    rule: dict[str, Any]
    """What the rule remembers, gradients of a period that is not over among it"""
    initial: dict[str, Tensor]
    """Where Δ begins anew; empty without ``reset``"""


@tree.state
class Context:
    """Where the rows of a batch stand: the model's state, the chunk that is being read, and the levels."""

    model: State
    origin: State
    """The model's state at the beginning of the chunk"""
    tokens: Tensor
    """(B, C): the chunk so far"""
    filled: Tensor
    """(B,): tokens in it"""
    chunks: Tensor
    """(B,): whole chunks before it"""
    levels: tuple[Written, ...]


class Writer:
    """Reads by ``read`` and writes the levels::

        Δ_ℓ ← Δ_ℓ + rule_ℓ( (1/C_ℓ) Σ_{t in C_ℓ tokens} ∇ -log p(x_{t+1} | …; W + Δ) )      once in C_ℓ tokens

    with the gradient at the weights of the chunk's beginning. A chunk is the period of the fastest level; slower periods are
    multiples, whose gradients are gathered over chunks. A gradient reaches back to the beginning of its chunk and no further. The
    last token of a chunk is learnt when the next token is there, so nothing is learnt from a token before it was predicted.

    ``states(batch)`` makes fresh states for ``read``; ``modules`` are those that ``read`` goes through. Where gradients are
    enabled they flow from chunk to chunk as each level's ``bptt`` says; else nothing is kept.
    """

    def __init__(
        self, model: nn.Module, read: Read, states: Callable[[int], State], levels: Sequence[Level], lr: float
    ) -> None:
        self.read, self.states, self.lr = read, states, lr
        self.levels = tuple(level for level in levels if level.period != inf)
        _check(self.levels, lr)
        self.chunk = int(min(level.period for level in self.levels))
        self.owned = tuple(_owned(model, self.levels))
        self.modules = {name: module for found in self.owned for name, module in found.items()}

    def initial_state(self, batch: int) -> Context:
        """Before the first token: Δ = 0"""
        some = next(iter(self.modules.values())).weight
        count = torch.zeros(batch, dtype=torch.int64, device=some.device)
        levels = tuple(self._fresh(level, owned, batch) for level, owned in zip(self.levels, self.owned, strict=True))
        tokens = count[:, None].expand(-1, self.chunk).clone()
        return Context(self.states(batch), self.states(batch), tokens, count, count.clone(), levels)

    def __call__(
        self, tokens: Tensor, state: Context | None, valid: Tensor | None, starts: Tensor | None
    ) -> tuple[Tensor, Context]:
        """As ``LM.forward``"""
        state = self.initial_state(tokens.shape[0]) if state is None else state
        live = torch.ones_like(tokens, dtype=torch.bool) if valid is None else valid
        parts = cut(state.filled, live, starts, self.chunk)
        chunk: _Chunk | None = None
        pieces = []
        for piece, following in zip(parts.pieces, (*parts.pieces[1:], None), strict=True):
            given = tokens.long().gather(1, piece.source)
            if bool(piece.commits.any()):
                state = self._write(state, given[:, 0], piece.commits, chunk)
            if bool(piece.begins.any()):
                state = tree.where(piece.begins, self.initial_state(tokens.shape[0]), state)
            logits, state, chunk = self._read(given, piece, state, following)
            pieces.append(logits)
        if bool(parts.ends.any()):
            state = tree.where(parts.ends, self.initial_state(tokens.shape[0]), state)
        if not pieces:
            logits, _ = self.read(tokens, state.model, live)
            return logits, state
        slot = parts.slot[..., None].expand(-1, -1, pieces[0].shape[-1])
        logits = torch.cat(pieces, 1).gather(1, slot)
        return torch.where(live[..., None], logits, torch.zeros_like(logits)), state

    def _read(
        self, given: Tensor, piece: Piece, state: Context, following: Piece | None
    ) -> tuple[Tensor, Context, _Chunk | None]:
        """Go on with a piece, and keep what computed it where the next write can use it."""
        count = piece.live.sum(1)
        whole = (state.filled == 0) & (count == self.chunk)
        useful = following is not None and bool(following.commits.any()) and bool((whole | ~following.commits).all())
        origin = tree.where((state.filled == 0) & (count > 0), state.model, state.origin)
        outer = torch.is_grad_enabled()
        with torch.set_grad_enabled(outer or useful), self._twice():
            deltas = self._deltas(state.levels)
            with applied(self.modules, deltas):
                logits, model = self.read(given, state.model, piece.live)
        place = torch.where(piece.live, state.filled[:, None] + torch.arange(given.shape[1]), self.chunk)
        buffer = torch.cat((state.tokens, state.tokens[:, :1]), 1).scatter(1, place, given)[:, :-1]
        chunk = _Chunk(deltas, logits) if useful else None
        if not outer:
            logits, model = logits.detach(), tree.detach(model)
        after = replace(state, model=model, origin=origin, tokens=buffer, filled=state.filled + count)
        return logits, after, chunk

    def _write(self, state: Context, following: Tensor, due: Tensor, chunk: _Chunk | None) -> Context:
        """One update of the rows that are due; a chunk that was read in several calls is read once more for its gradient."""
        outer = torch.is_grad_enabled()
        with torch.enable_grad(), self._twice():
            if chunk is None:
                deltas = self._deltas(state.levels)
                with applied(self.modules, deltas):
                    logits, _ = self.read(state.tokens, state.origin, due[:, None].expand(-1, self.chunk))
                chunk = _Chunk(deltas, logits)
            targets = torch.cat((state.tokens[:, 1:], following[:, None]), 1)
            # Σ_t −log p(x_{t+1}), of the rows that are due; rows share no Δ, so its gradient is that of each row
            wide = chunk.logits.to(torch.promote_types(chunk.logits.dtype, torch.float32))
            nats = wide.logsumexp(-1) - wide.gather(-1, targets[..., None])[..., 0]
            loss = torch.where(due[:, None], nats, torch.zeros_like(nats)).sum()
            names = list(chunk.deltas)
            gradients = torch.autograd.grad(
                loss,
                [chunk.deltas[name] for name in names],
                retain_graph=outer,
                create_graph=outer and self._second_order,
                allow_unused=True,
                materialize_grads=True,
            )
        count = state.chunks + 1
        by_name = dict(zip(names, gradients, strict=True))
        levels = tuple(
            tree.where(due, self._update(level, written, by_name, count), written)
            for level, written in zip(self.levels, state.levels, strict=True)
        )
        return replace(
            state,
            filled=torch.where(due, 0, state.filled),
            chunks=torch.where(due, count, state.chunks),
            levels=levels,
        )

    def _update(self, level: Level, written: Written, gradients: Mapping[str, Tensor], count: Tensor) -> Written:
        """The level after a chunk; ``count`` (B,) chunks are over."""
        rule, gates = self._rule(level), Gates(lr=self.lr * level.rate)
        delta, rules = {}, {}
        for name, before in written.delta.items():
            signal = gradients[name] / level.period
            signal = signal.detach() if level.bptt == 1 else signal
            # Δ ← Δ + rule(g), row by row
            update, rules[name] = torch.vmap(partial(rule.update, gates=gates))(signal, written.rule[name])
            delta[name] = before + update
        after = Written(delta, rules, written.initial)
        if level.reset is not None:
            # Δ₀ ← Δ₀ + carry (Δ - Δ₀); Δ ← Δ₀
            anew = count % (level.reset // self.chunk) == 0
            initial = {name: torch.lerp(old, delta[name], level.carry) for name, old in written.initial.items()}
            fresh = tree.map(lambda leaf, like: leaf.expand_as(like), self._fresh(level, delta, 1), after)
            after = tree.where(anew, Written(initial, fresh.rule, initial), after)
        if level.bptt != inf:
            after = tree.where(count % int(level.period * level.bptt // self.chunk) == 0, tree.detach(after), after)
        return after

    def _rule(self, level: Level) -> Rule:
        chunks = int(level.period // self.chunk)
        return level.rule if chunks == 1 else Every(chunks, level.rule)

    def _fresh(self, level: Level, owned: Mapping[str, nn.Linear | Tensor], batch: int) -> Written:
        zeros = {}
        for name, module in owned.items():
            weight = module.weight if isinstance(module, nn.Linear) else module[0]
            zeros[name] = torch.zeros_like(weight, dtype=torch.promote_types(weight.dtype, torch.float32)).detach()
        rule = self._rule(level)
        one = Written(zeros, {name: rule.init(weight) for name, weight in zeros.items()}, {})
        if level.reset is not None:
            one = replace(one, initial=zeros)
        return tree.map(lambda leaf: leaf.expand(batch, *leaf.shape).clone(), one)

    def _deltas(self, levels: tuple[Written, ...]) -> dict[str, Tensor]:
        """All Δ by name, each an input of this chunk alone: its gradient comes from this chunk and no other."""
        flat = {name: delta for written in levels for name, delta in written.delta.items()}
        if not torch.is_grad_enabled():
            return flat
        return {
            name: delta.view_as(delta) if delta.requires_grad else delta.detach().requires_grad_()
            for name, delta in flat.items()
        }

    @property
    def _second_order(self) -> bool:
        return any(level.bptt > 1 for level in self.levels)

    def _twice(self) -> AbstractContextManager[Any]:
        """Fused attention has no second derivative."""
        return sdpa_kernel(SDPBackend.MATH) if self._second_order else nullcontext()


def _owned(model: nn.Module, levels: Sequence[Level]) -> Iterator[dict[str, nn.Linear]]:
    """The maps that each level writes: those that it owns and no level before it does."""
    for index, level in enumerate(levels):

        def owner(name: str, level: Level = level, before: Sequence[Level] = levels[:index]) -> bool:
            return level.owner(name) and not any(other.owner(name) for other in before)

        yield linears(model, owner)


class _Chunk:
    """A whole chunk as it was read: the Δ that it was read with, and its predictions."""

    def __init__(self, deltas: dict[str, Tensor], logits: Tensor) -> None:
        self.deltas, self.logits = deltas, logits


def _check(levels: tuple[Level, ...], lr: float) -> None:
    if not levels:
        raise NestlingError("nothing is written in context: give at least one level with a finite period.")
    if not 0 <= lr < inf:
        raise NestlingError(f"lr must be a number ≥ 0, got {lr}: use 0.1.")
    fastest = min(level.period for level in levels)
    for level in levels:
        if level.period % 1 or level.period % fastest:
            raise NestlingError(
                f"level {level.name!r}: in context a period is a whole number of tokens and a multiple of the fastest one, got "
                f"{level.period:g} with {fastest:g}: use {2 * fastest:.0f}."
            )
