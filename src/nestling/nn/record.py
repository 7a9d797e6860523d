"""What memories were surprised by, on request: nothing is computed unless somebody listens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

import nestling.tree as tree
from nestling.core import Gates
from nestling.errors import NestlingError
from nestling.ops import Marks
from nestling.tree import state


@state
class Told:
    """What a memory tells of some tokens."""

    surprise: Tensor
    """ℓ(M(k), v) at the weights of the last commit, (B, H, T)"""
    written: Tensor
    """1 where the token was written, 0 where its surprise was too small (``core.Above``), (B, H, T)"""
    gates: Gates
    """η, α, θ and the others, as the layer made them"""


@dataclass
class Heard:
    """All that one memory told while it was recorded, in the order of the calls."""

    parts: list[Told] = field(default_factory=list)

    @property
    def surprise(self) -> Tensor:
        """(B, H, T), calls one after another; NaN at padding where rows differ in length."""
        return torch.cat([part.surprise for part in self.parts], -1)

    @property
    def written(self) -> Tensor:
        """(B, H, T), 1 where the token was written."""
        return torch.cat([part.written for part in self.parts], -1)

    @property
    def saved(self) -> float:
        """The share of the tokens that were not written."""
        return 1 - float(self.written.nanmean())

    @property
    def gates(self) -> Gates:
        """Every gate (B, H, T), or a mapping of them by weight."""
        return tree.map(lambda *each: torch.cat(each, 2), *[part.gates for part in self.parts])


class Record(Mapping[str, Heard]):
    """Memories by the name of their module, such as ``blocks.0.mixer``; those that read nothing are not in it."""

    def __init__(self, names: Mapping[int, str]) -> None:
        """``names`` of modules by their ``id``."""
        self._names = names
        self._heard: dict[str, Heard] = {}

    def __getitem__(self, name: str) -> Heard:
        """Raises NestlingError where no memory of that name was read."""
        if name not in self._heard:
            raise NestlingError(f"no memory {name!r} was recorded: use one of {', '.join(self._heard) or 'none yet'}.")
        return self._heard[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._heard)

    def __len__(self) -> int:
        return len(self._heard)

    def hear(self, layer: nn.Module, tell: Callable[[], Told], part: str) -> None:
        """Ask ``layer`` what it has to tell, if it is one of those that are recorded."""
        if id(layer) in self._names:
            name = ".".join(filter(None, (self._names[id(layer)], part)))
            self._heard.setdefault(name, Heard()).parts.append(tell())


_OPEN: ContextVar[tuple[Record, ...]] = ContextVar("_OPEN", default=())


@contextmanager
def recording(model: nn.Module) -> Iterator[Record]:
    """Record what the memories of ``model`` are surprised by, for each token that it reads within.

    For logs and plots: no gradient flows through a record. While one is open memories are scanned twice; otherwise it costs
    nothing. Works for any split of a stream into calls, so in sessions too.

    >>> from nestling.core import Matrix, Memory
    >>> from nestling.nn import MemoryLayer
    >>> layer = MemoryLayer(32, heads=2, memory=Memory(Matrix(), period=4))
    >>> with recording(layer) as record:
    ...     _, state = layer(torch.randn(3, 20, 32))
    ...     _, state = layer(torch.randn(3, 1, 32), state)
    >>> record[""].surprise.shape, record[""].gates.of("w1").lr.shape, record[""].saved
    (torch.Size([3, 2, 21]), torch.Size([3, 2, 21]), 0.0)
    """
    record = Record({id(module): name for name, module in model.named_modules()})
    token = _OPEN.set((*_OPEN.get(), record))
    try:
        yield record
    finally:
        _OPEN.reset(token)


def tell(layer: nn.Module, make: Callable[[], tuple[Tensor, Tensor, Gates]], marks: Marks, part: str = "") -> None:
    """What a layer calls in its forward pass: ``make`` gives surprise, written (B, H, T) and gates, when somebody listens.

    ``part`` names one of several memories in a layer.
    """
    if torch.compiler.is_compiling():
        return
    for record in _OPEN.get():
        record.hear(layer, lambda: _told(*make(), marks), part)


def _told(surprise: Tensor, written: Tensor, gates: Gates, marks: Marks) -> Told:
    """On its own, without what it was computed from; without padding."""
    shape = surprise.shape

    def spread(gate: Tensor | float) -> Tensor:
        tensor = torch.as_tensor(gate, device=surprise.device).detach()
        return tensor.expand(shape if tensor.dim() < 4 else (*shape, tensor.shape[-1])).clone()

    one = Told(surprise.detach(), written.detach(), Gates(*(_each(gate, spread) for gate in vars(gates).values())))
    if marks.valid is None:
        return one
    if bool((marks.valid == marks.valid[:1]).all()):
        index = marks.valid[0].nonzero()[:, 0]
        return tree.map(lambda x: x.index_select(2, index), one)
    live = marks.valid[:, None]
    nothing = torch.full((), torch.nan, dtype=surprise.dtype, device=surprise.device)
    return Told(torch.where(live, one.surprise, nothing), torch.where(live, one.written, nothing), one.gates)


def _each(gate: object, spread: Callable[[Tensor | float], Tensor]) -> object:
    if isinstance(gate, Mapping):
        return {name: spread(value) for name, value in gate.items()}
    assert isinstance(gate, Tensor | float | int)
    return spread(gate)
