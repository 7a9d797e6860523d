"""Self-modifying Titans: a memory whose keys, values, rates and targets come from memories that are written too (NL §8.1)."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nestling.core import Architecture, Beside, Gates, Matrix, Memory, MemoryState, Weights
from nestling.errors import NestlingError
from nestling.nn.conv import ShortConv
from nestling.nn.mixer import UNMARKED, LevelRow, Mixer
from nestling.nn.norm import BoundedNorm, RMSNorm, unit, widened
from nestling.nn.record import tell
from nestling.nn.self_modifying_form import GATES, VECTORS, SelfForm, SelfRange, joined
from nestling.nn.self_modifying_start import Starts, Tracking
from nestling.nn.self_modifying_tokens import by_token, tokenwise
from nestling.ops import Chunk, Marks, begin
from nestling.ops.chunk import BlockState, Tokens, after, block, writes
from nestling.ops.compiled import compiled
from nestling.ops.drive import drive
from nestling.ops.surprise import own, reading
from nestling.ops.watch import told
from nestling.tree import map as tree_map
from nestling.tree import state


@state
class SelfModifyingState:
    """The inputs that the convolution still sees, and the two groups of memories of each head."""

    conv: Tensor
    memory: MemoryState
    projections: MemoryState


class SelfModifying(Mixer):
    """y = M_t(q_t), where everything that writes M comes from memories that are written too (NL eqs 83-93)::

        k, v, η, α = M_k(x), M_v(x), M_η(x), M_α(x)      at the last commit c(t)
        v̂_□        = M_□,c(t)(v)                         each memory makes its own target
        M_□,t      = M_□,t-1 (α I - η k kᵀ) - η ∇ℓ(M_□,c(t); k, v̂_□)

    ``x`` is the short convolution of the input, by head; q and k have unit length, v as the form says. Which parts are
    memories, what they are and how they are written is the ``form``. Two differences from the print by default: what is
    forgotten goes back to the initial memory instead of zero (``Returning``), and y is read from the running memory.

    >>> y, state = SelfModifying(32, heads=2, period=4)(torch.randn(3, 10, 32))
    >>> y.shape, state.memory.dual["w1"].shape, state.projections.dual["w1"].shape
    (torch.Size([3, 10, 32]), torch.Size([3, 2, 16, 16]), torch.Size([3, 2, 34, 16]))
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        period: float = 16,
        *,
        form: SelfForm = SelfForm(),
        conv: int = 4,
        ranges: SelfRange = SelfRange(),
        path: Chunk = Chunk(),
    ) -> None:
        """``heads`` memories of width dim / heads; ``period``: tokens between commits of the memory that is read."""
        super().__init__()
        if dim % heads:
            raise NestlingError(f"self-modifying Titans need dim divisible by heads, got dim={dim}, heads={heads}.")
        self.heads, self.form, self.ranges, self.path = heads, form, ranges, path
        width = dim // heads
        self.memory, self.projections = form.memories(width, period)
        self.conv = ShortConv(dim, conv)
        self.static = nn.ParameterDict({name: _linear(dim, dim if name in VECTORS else heads) for name in form.static})
        self.initial = _start(form.memory, width, width, heads)
        if form.memory == Matrix():
            # The update of a linear memory is linear in it: a start that mixes keys has nothing to say for it.
            self.initial["w1"] = nn.Parameter(torch.eye(width).expand(heads, -1, -1).clone())
        self.initial_projections = nn.ModuleDict(
            {name: _start(inner, width, values, heads) for name, inner, values in form.made(width).parts}
        )
        shares = [head / max(heads - 1, 1) for head in range(heads)]
        starts = {
            "η": torch.tensor([ranges.start(period, share, form.rest(ranges)) for share in shares]),
            "α": torch.full((heads,), ranges.retain),
            "β": torch.full((heads,), ranges.momentum),
        }
        used = (*form.adaptive, *form.static)
        self.bias = nn.ParameterDict({name: nn.Parameter(starts[name]) for name in GATES if name in used})
        self.norm: RMSNorm | BoundedNorm = RMSNorm(width)
        if isinstance(form.start, Tracking):
            form.start(self._starts())
            self.norm = BoundedNorm(width, form.start.bound)
        self.gate = nn.Linear(dim, dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)

    def weights(self) -> tuple[Weights, Weights]:
        """The weights at which the memories start, (H, out, in)."""
        made = self.projections.architecture
        assert isinstance(made, Beside)
        each = {name: _widened(part) for name, part in self.initial_projections.items()}
        return _widened(self.initial), made.joined(each)

    def _starts(self) -> Starts:
        """The parameters that a start writes into; the form has seen to it that they are matrices."""
        makers = {name: part["w1"] for name, part in self.initial_projections.items()}  # type: ignore[index]
        queries = self.static["q"].unflatten(0, (self.heads, -1)) if "q" in self.static else makers["q"]
        return Starts(self.initial["w1"], makers, queries, dict(self.bias.items()))

    def initial_state(self, batch: int) -> SelfModifyingState:
        """Empty convolution, initial memories."""
        started = (tree_map(lambda leaf: leaf.clone(), each) for each in self._started(batch))
        return SelfModifyingState(self.conv.initial_state(batch), *started)

    def _started(self, batch: int) -> tuple[MemoryState, MemoryState]:
        main, makers = self.weights()
        return begin(self.memory, main, batch), begin(self.projections, makers, batch)

    def forward(
        self, x: Tensor, state: SelfModifyingState | None = None, marks: Marks = UNMARKED
    ) -> tuple[Tensor, SelfModifyingState]:
        """(B, T, dim) -> (B, T, dim)"""
        seen, conv = self.conv(x, None if state is None else state.conv, marks)
        with torch.autocast(x.device.type, enabled=False):
            wide = widened(seen)
            run = _compiled if self.path.compiled else _work
            made = self.memory, self.projections, self.form, self.ranges
            begun = None if state is None else (state.memory, state.projections)
            inputs = self._by_head(wide), self._static(wide)
            given = (self.memory, self.projections), begun, self.weights(), inputs
            tell(self, lambda: _told(drive(*given, marks, Chunk(), _work(*made, told))[0]), marks)
            if marks == UNMARKED and x.shape[1] and tokenwise(self.memory, self.projections):
                states = self._started(x.shape[0]) if begun is None else begun
                y, (memory, projections) = by_token(given[0], states, self.form, self.ranges, inputs, self.path)
            else:
                y, (memory, projections) = drive(*given, marks, self.path, run(*made))
        y = self.norm(y.to(x.dtype)).transpose(1, 2).flatten(-2)
        return self.out(y * F.silu(self.gate(x))), SelfModifyingState(conv, memory, projections)

    def _by_head(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def _static(self, x: Tensor) -> dict[str, Tensor]:
        """What stands still of each part, (B, H, T, ·): all of a static one, the bias of a gate."""
        made = {name: self._by_head(F.linear(x, widened(weight))) for name, weight in self.static.items()}
        for name, bias in self.bias.items():
            given = widened(bias)[:, None, None]
            made[name] = made[name] + given if name in made else given.expand(x.shape[0], -1, x.shape[1], 1)
        return made

    def frozen(self) -> None:
        """From now on nothing that is written takes effect: a static network with the initial memories (η = 0, α = 1)."""
        self.memory = replace(self.memory, period=float("inf"), read_at="commit")
        self.projections = replace(self.projections, period=float("inf"))

    def levels(self) -> list[LevelRow]:
        """Two groups: the memory that is read, and those that make its keys, values and gates."""
        with torch.device("meta"):
            started = self.initial_state(1)
        groups = (
            ("memory", self.memory, started.memory),
            (" ".join(self.form.adaptive), self.projections, started.projections),
        )
        context = "keys and self-made values of tokens"
        transfer = "generation and initialisation (meta-learnt through the writes)"
        return [LevelRow.of_memory(name, memory, held, context, transfer) for name, memory, held in groups]


def _linear(inputs: int, outputs: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(outputs, inputs) * inputs**-0.5)


def _widened(weights: nn.Module) -> Weights:
    assert isinstance(weights, nn.ParameterDict)
    return {name: widened(weight) for name, weight in weights.items()}


def _start(architecture: Architecture, keys: int, values: int, heads: int) -> nn.ParameterDict:
    """Entries of variance 1/in."""
    shapes = architecture.shapes(keys, values)
    return nn.ParameterDict(
        {name: nn.Parameter(torch.randn(heads, *shape) * shape[1] ** -0.5) for name, shape in shapes.items()}
    )


def _told(seen: Tensor) -> tuple[Tensor, Tensor, Gates]:
    """Surprise, what was written, η, α and β of each token, from the columns that ``_work`` makes for a record."""
    surprise, written, lr, retain, momentum = seen.unbind(-1)
    return surprise, written, Gates(lr, retain, momentum)


def _work(memory: Memory, projections: Memory, form: SelfForm, ranges: SelfRange, look: Any = None) -> Any:
    def work(before: tuple[BlockState, ...], inputs: Any, filled: Tensor | None) -> Any:
        main, makers = before
        x, made = inputs
        made = _made(projections.architecture, makers, x, made)
        # η = lr σ(M_η x + b), α = σ(M_α x + b)
        q, k, lr = unit(made["q"]), unit(made["k"]), ranges.lr * torch.sigmoid(made["η"][..., 0])
        v = form.value(made["v"], k, lr[..., None])
        retain = torch.sigmoid(made["α"][..., 0]) if "α" in made else torch.ones_like(lr)
        momentum = torch.sigmoid(made["β"][..., 0]) if "β" in made else torch.zeros_like(lr)
        softer = Gates(ranges.projections * lr, 1 - ranges.projections * (1 - retain), momentum)
        # ∇ℓ(M_□,c(t); k, v̂_□) with v̂_□ = M_□,c(t)(v)
        seen = own(memory, main.anchor, k, v)
        y, *wrote = block(memory, main, Tokens(q, k, v, Gates(lr, retain, momentum), filled, None, seen))
        seen = own(projections, makers.anchor, k, v)
        made_anew = after(makers, writes(projections, makers, Tokens(k, k, v, softer, filled, None, seen)))
        if look is not None:
            # v̂ = M_c(t)(v)
            gates, target = Gates(lr, retain, momentum), memory.architecture(reading(main.anchor), v)
            y = torch.cat((look(memory, main, k, target, gates), torch.stack((lr, retain, momentum), -1)), -1)
        return y, (tuple(wrote), made_anew)

    return work


def _made(architecture: Architecture, makers: BlockState, x: Tensor, static: dict[str, Tensor]) -> dict[str, Tensor]:
    """k, v, η, α, …: what the memories make of x at their last commit, and what stands still."""
    assert isinstance(architecture, Beside)
    parts = architecture.parts
    whole = architecture(reading(makers.anchor), x).split([width for *_, width in parts], -1)
    made = {name: each for (name, *_), each in zip(parts, whole, strict=True)}
    return joined(made, static)


@lru_cache(maxsize=64)
def _compiled(memory: Memory, projections: Memory, form: SelfForm, ranges: SelfRange) -> Any:
    return compiled(_work(memory, projections, form, ranges))
