"""Softmax attention within a window: the non-parametric memory, and the baseline."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nestling.errors import NestlingError
from nestling.nn.mixer import UNMARKED, LevelRow, Mixer
from nestling.nn.rope import rotate
from nestling.ops import Marks
from nestling.tree import state


@state
class Window:
    """The keys and values that the next token may still attend to, newest last; keys are not yet rotated."""

    key: Tensor
    """(B, H, window, d)"""
    value: Tensor
    """(B, H, window, d)"""
    filled: Tensor
    """(B,) int64: how many of them are there"""


class Attention(Mixer):
    """Causal attention over the last ``window`` tokens of a document, the token itself included, with rotary positions.

    ``persistent`` learnt tokens stand before every document, visible from everywhere and at no position (Titans eq. 19 and
    SW-Attn* of eq. 27). For T ≤ window it is full attention. The state is a window of keys and values, so that memory stays constant in a stream.

    >>> attention = Attention(32, heads=4, window=16)
    >>> y, state = attention(torch.randn(2, 40, 32))
    >>> y.shape, state.key.shape
    (torch.Size([2, 40, 32]), torch.Size([2, 4, 16, 8]))
    """

    def __init__(self, dim: int, heads: int, window: int, persistent: int = 0) -> None:
        """``dim``: channels, ``heads`` of width dim / heads each; ``window``: tokens; ``persistent``: tokens before them."""
        super().__init__()
        if dim % (2 * heads):
            raise NestlingError(f"attention needs dim divisible by 2 · heads, got dim={dim}, heads={heads}.")
        if window < 1:
            raise NestlingError(f"attention sees at least the token itself: window ≥ 1, got {window}.")
        if persistent < 0:
            raise NestlingError(f"attention has persistent ≥ 0 learnt tokens, got {persistent}.")
        self.heads, self.window = heads, window
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        self.persistent = nn.Parameter(torch.randn(persistent, dim)) if persistent else None

    def initial_state(self, batch: int) -> Window:
        """An empty window."""
        width = self.out.in_features // self.heads
        empty = self.out.weight.new_zeros(batch, self.heads, self.window, width)
        return Window(empty, empty.clone(), torch.zeros(batch, dtype=torch.int64, device=empty.device))

    def forward(self, x: Tensor, state: Window | None = None, marks: Marks = UNMARKED) -> tuple[Tensor, Window]:
        """(B, T, dim) -> (B, T, dim)"""
        rows, length, dim = x.shape
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        before = self.initial_state(rows) if state is None else state
        keys = torch.cat((before.key.to(k.dtype), k), 2)
        values = torch.cat((before.value.to(v.dtype), v), 2)
        document = None if marks.starts is None else marks.starts.long().cumsum(1)
        if state is None and document is None and length <= self.window and self.persistent is None:
            y = F.scaled_dot_product_attention(rotate(q, 0), rotate(k, 0), v, is_causal=True)
        else:
            y = self._windowed(q, keys, values, before.filled, document)
        return self.out(y.transpose(1, 2).reshape(rows, length, dim)), self._last(keys, values, before, document, marks)

    def _windowed(self, q: Tensor, keys: Tensor, values: Tensor, filled: Tensor, document: Tensor | None) -> Tensor:
        """Blocks of ``window`` queries, each against the 2 · window keys that it can reach: O(T · window)."""
        window, pieces = self.window, []
        for low in range(0, q.shape[2], window):
            high = min(low + window, q.shape[2])
            near = slice(low, high + window)
            mask = self._mask(low, high, filled, document)
            turned = rotate(q[:, :, low:high], window), rotate(keys[:, :, near], 0)
            if self.persistent is None:
                attended = F.scaled_dot_product_attention(*turned, values[:, :, near], attn_mask=mask)
            else:
                attended = self._after_prefix(self.persistent, q[:, :, low:high], *turned, values[:, :, near], mask)
            pieces.append(attended)
        return torch.cat(pieces, 2)

    def _after_prefix(
        self, persistent: Tensor, q: Tensor, turned: Tensor, keys: Tensor, values: Tensor, mask: Tensor
    ) -> Tensor:
        """Scores ⟨R q, R k⟩ with tokens and ⟨q, k⟩ with the prefix, as one product of (R q, q) with (R k, 0) or (0, k)."""
        tokens = F.linear(persistent, self.qkv.weight[self.out.in_features :]).to(q.dtype)
        k, v = (part.unflatten(-1, (self.heads, -1)).transpose(0, 1) for part in tokens.chunk(2, -1))
        k, v = k.expand(q.shape[0], -1, -1, -1), v.expand(q.shape[0], -1, -1, -1)
        width = q.shape[-1]
        both = torch.cat((F.pad(k, (width, 0)), F.pad(keys, (0, width))), 2)
        return F.scaled_dot_product_attention(
            torch.cat((turned, q), -1),
            both,
            torch.cat((v, values), 2),
            attn_mask=F.pad(mask, (k.shape[2], 0), value=True),
            scale=width**-0.5,
        )

    def _mask(self, low: int, high: int, filled: Tensor, document: Tensor | None) -> Tensor:
        """(B, 1, queries, keys): within the window, already there, of the same document. Key j is token j - window."""
        query = torch.arange(low, high, device=filled.device)[:, None] + self.window
        key = torch.arange(low, high + self.window, device=filled.device)[None, :]
        mask = (key <= query) & (key > query - self.window)
        allowed = mask & (key >= self.window - filled[:, None, None])
        if document is not None:
            of_key = F.pad(document, (self.window, 0))[:, low : high + self.window]
            allowed = allowed & (document[:, low:high, None] == of_key[:, None, :])
        return allowed[:, None]

    def _last(self, keys: Tensor, values: Tensor, before: Window, document: Tensor | None, marks: Marks) -> Window:
        length = keys.shape[2] - self.window
        if marks.valid is None:
            count = torch.full_like(before.filled, length)
            key, value = keys[:, :, length:], values[:, :, length:]
            if length > 1 or torch.compiler.is_compiling():
                # Views would keep all that was read in this call alive, and a program wants a state to lie as the one before.
                key, value = key.clone(), value.clone()
        else:
            count = marks.valid.sum(1)
            index = (count[:, None] + torch.arange(self.window, device=keys.device))[:, None, :, None]
            index = index.expand(-1, self.heads, -1, keys.shape[3])
            key, value = keys.gather(2, index), values.gather(2, index)
        filled = before.filled + count
        if document is not None:
            # Only what the last document holds is still seen.
            own = document == document[:, -1:]
            own = own if marks.valid is None else own & marks.valid
            filled = torch.where(document[:, -1] > 0, own.sum(1), filled)
        dtype = self.out.weight.dtype
        return Window(key.to(dtype), value.to(dtype), filled.clamp_max(self.window))

    def levels(self) -> list[LevelRow]:
        """One: keys and values are stored, not learnt, at every token (NL eq. 62)."""
        size = 2 * self.window * self.out.in_features
        return [
            LevelRow(
                name="window",
                period=1,
                unit="token",
                context="keys and values of tokens",
                objective="Nadaraya-Watson (softmax)",
                rule="store",
                parameters=size,
                state_bytes=size * self.out.weight.element_size(),
                transfer="direct, non-parametric",
            )
        ]
