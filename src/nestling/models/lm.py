"""A causal language model: embedding, blocks, head; state in, state out."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nestling.errors import NestlingError
from nestling.models.belongs import Form
from nestling.models.belongs import check as check_state
from nestling.models.config import Config
from nestling.nn import TNT, Block, LevelRow, Mamba2, MemoryLayer, Mixer, RMSNorm, SelfModifying, State
from nestling.ops import Chunk, Marks, Path, settled


class LM(nn.Module):
    """tokens (B, T) -> logits (B, T, V), and the state to go on from.

    The state is a tuple, one entry a block. Any split of a stream into calls gives the same logits and the same state.

    >>> import nestling
    >>> model = nestling.build("titans_lmm", dim=32, layers=1, heads=2)
    >>> logits, state = model(torch.tensor([[1, 2, 3]]))
    >>> logits, state = model(torch.tensor([[4]]), state)
    >>> logits.shape
    torch.Size([1, 1, 256])
    """

    def __init__(self, config: Config, blocks: Sequence[Block]) -> None:
        """``blocks`` as the recipe wires them."""
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.dim)
        self.blocks = nn.ModuleList(blocks)
        self.norm = RMSNorm(config.dim)
        self.head = None if config.tied else nn.Linear(config.dim, config.vocab_size, bias=False)
        self.apply(_initialise)
        for name, parameter in self.named_parameters():
            if name.endswith(("out.weight", "down.weight")):
                # Residual branches add up: 2 · layers of them keep unit variance.
                nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5 / (2 * config.layers) ** 0.5)

    def initial_state(self, batch: int) -> State:
        """The state before the first token; every leaf has ``batch`` as its first dimension."""
        return tuple(self._block(i).initial_state(batch) for i in range(len(self.blocks)))

    def forward(
        self, tokens: Tensor, state: State | None = None, valid: Tensor | None = None, starts: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Logits after each token.

        ``tokens`` (B, T) int64. ``valid`` (B, T) bool: False for padding, anywhere; it changes nothing (its logits are zero).
        ``starts`` (B, T) bool: True where a document begins; nothing from before reaches it.
        """
        if torch.is_grad_enabled() or tokens.shape[-1] > 1 or valid is not None or starts is not None:
            state = settled(state)
        self._check(tokens, state, valid, starts)
        if valid is not None and bool(valid.all()):
            valid = None
        order = None
        if valid is not None:
            # Padding to the right end, the order of the tokens kept: layers need to know only where a row ends.
            order = torch.sort(valid.logical_not().long(), dim=1, stable=True).indices
            tokens, valid, starts = _reorder(tokens, valid, starts, order)
        if starts is not None and state is None:
            starts = _inner(starts)
        x = self.embedding(tokens)
        after = []
        marks = Marks(valid, starts)
        for i in range(len(self.blocks)):
            x, new = self._block(i)(x, None if state is None else state[i], marks)
            after.append(new)
        x = self.norm(x)
        logits = F.linear(x, self.embedding.weight) if self.head is None else self.head(x)
        if order is not None and valid is not None:
            logits = torch.where(valid[..., None], logits, torch.zeros_like(logits))
            logits = torch.zeros_like(logits).scatter(1, order[..., None].expand_as(logits), logits)
        return logits, tuple(after)

    def frozen(self) -> LM:
        """The same model with its memories shut: it shares all parameters, and what it reads leaves no trace in a memory."""
        twin = self._twin()
        for module in twin.modules():
            if isinstance(module, TNT | Mamba2 | MemoryLayer | SelfModifying):
                module.frozen()
        return twin

    def using(self, path: Path) -> LM:
        """The same model whose memories compute by ``path``: it shares all parameters, and gives the same answers.

        ``Chunk(compiled=True)`` compiles the blocks of memories, which takes a while at the first call of each kind; ``Chunk(stride=...)``
        trades memory against time; ``Reference()`` is the readable loop.

        Raises:
            NestlingError: self-modifying memories have no such path; for other memories it is said when they are called.

        >>> import nestling
        >>> from nestling.ops import Reference
        >>> model = nestling.build("titans_lmm", dim=32, layers=1, heads=2)
        >>> tokens = torch.randint(0, 256, (1, 20))
        >>> torch.allclose(model(tokens)[0], model.using(Reference())(tokens)[0], atol=1e-5)
        True
        """
        twin = self._twin()
        for module in twin.modules():
            if isinstance(module, SelfModifying) and not isinstance(path, Chunk):
                raise NestlingError(f"self-modifying memories compute in blocks, got path={path!r}: use Chunk(...).")
            if isinstance(module, TNT | MemoryLayer | SelfModifying):
                module.path = path
        return twin

    def _twin(self) -> LM:
        """A copy with the same parameters"""
        return copy.deepcopy(self, {id(parameter): parameter for parameter in self.parameters()})

    def levels(self) -> list[LevelRow]:
        """What is updated while it reads, named after its place."""
        return [
            replace(row, name=f"blocks.{i}.{row.name}")
            for i in range(len(self.blocks))
            for row in self._block(i).levels()
        ]

    @property
    def spec(self) -> dict[str, Any]:
        """JSON values from which ``models.from_spec`` builds the same model: its configuration by source."""
        return {"recipe": self.config.recipe, "config": repr(self.config)}

    @property
    def fingerprint(self) -> str:
        """A hash of the configuration and of every parameter's name, shape and type: states belong to one fingerprint."""
        shapes = [(name, list(p.shape), str(p.dtype)) for name, p in self.named_parameters()]
        return hashlib.sha256(json.dumps([self.spec, shapes]).encode()).hexdigest()

    @cached_property
    def _state_form(self) -> Form:
        return Form.of(self.initial_state(1))

    def _block(self, index: int) -> Mixer:
        block = self.blocks[index]
        assert isinstance(block, Mixer)
        return block

    def _check(self, tokens: Tensor, state: State | None, valid: Tensor | None, starts: Tensor | None) -> None:
        if tokens.dim() != 2 or tokens.dtype not in (torch.int64, torch.int32) or tokens.numel() == 0:
            raise NestlingError(
                f"a model reads tokens (B, T) of type int64 with B, T ≥ 1, got {tuple(tokens.shape)} of {tokens.dtype}."
            )
        for name, marks in (("valid", valid), ("starts", starts)):
            if marks is not None and (marks.shape != tokens.shape or marks.dtype != torch.bool):
                raise NestlingError(
                    f"{name} must be bool of the shape of tokens {tuple(tokens.shape)}, got {tuple(marks.shape)} {marks.dtype}."
                )
        if torch.compiler.is_compiling():
            return
        if state is not None:
            check_state(state, self._state_form, tokens.shape[0])
        # On other devices the check would wait for the device at every call.
        if tokens.device.type == "cpu":
            low, high = int(tokens.min()), int(tokens.max())
            if low < 0 or high >= self.config.vocab_size:
                raise NestlingError(
                    f"token {high if high >= self.config.vocab_size else low} is outside the model's vocabulary of "
                    f"{self.config.vocab_size}. Use the tokenizer that the model was trained with."
                )


def _reorder(
    tokens: Tensor, valid: Tensor, starts: Tensor | None, order: Tensor
) -> tuple[Tensor, Tensor, Tensor | None]:
    if starts is None:
        return tokens.gather(1, order), valid.gather(1, order), None
    # A document that begins with padding begins at its first token: its number says so, not its mark. One that is padding to
    # the end of the row begins there: what follows in the next call belongs to it.
    number = starts.long().cumsum(1).gather(1, order).cummax(1).values
    moved = torch.cat((number[:, :1] > 0, number[:, 1:] > number[:, :-1]), 1)
    return tokens.gather(1, order), valid.gather(1, order), moved


def _inner(starts: Tensor) -> Tensor | None:
    """Documents that begin after the first token: where nothing came before, the first begins anyway."""
    inner = torch.cat((torch.zeros_like(starts[:, :1]), starts[:, 1:]), 1)
    return inner if bool(inner.any()) else None


def _initialise(module: nn.Module) -> None:
    match module:
        case nn.Linear(bias=None):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
        case nn.Embedding():
            nn.init.normal_(module.weight, std=0.02)
