"""Generalised momentum: a memory along steps of what a linear layer has seen, not of its gradient alone (NL §4.1)."""

from __future__ import annotations

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from nestling import tree
from nestling.core.architecture import Matrix
from nestling.core.gates import Gates
from nestling.core.memory import Memory
from nestling.core.objective import L2
from nestling.optim.base import Group, Params
from nestling.optim.gradient_memory import GradientMemory
from nestling.optim.kernels import layout
from nestling.optim.layers import LayerOptimizer, Rows
from nestling.optim.sharding import whole
from nestling.optim.streams import Cotangent, Identity, Input, Seen, Stream


class GM(LayerOptimizer):
    """W ← W + m, with m a memory from the layer's inputs x to −δ, δ = ∂ℓ/∂(W x) (NL eqs 35-37, generalised momentum).

    m ← α m − η mean ∇L̃(m; x, −δ). With ``Memory(Matrix(), DotProduct())`` it is momentum (eqs 33-34). The default,
    ``Memory(Matrix(), L2())``, is m ← α m − η (mean m x xᵀ + G): what m says for an input already is not said again.
    It is stable while η times the largest eigenvalue of mean x xᵀ is below 1 + α.

    ``key``, ``value`` and ``query`` may be other streams; the loss is the mean over the inputs. ``watch`` is the model whose
    inputs are seen; ``LayerOptimizer`` says how. Biases and gains take a plain step.

    >>> layer = nn.Linear(2, 1, bias=False)
    >>> _ = layer.weight.data.zero_()
    >>> optimizer = GM(layer.parameters(), lr=0.5, momentum=1.0, watch=layer)
    >>> for _ in range(2):
    ...     optimizer.zero_grad()
    ...     layer(torch.tensor([[1.0, 0.0]])).sum().backward()
    ...     optimizer.step()
    >>> layer.weight.data  # m = −0.5, then −0.5 − 0.5 (−0.5 + 1)
    tensor([[-1.2500,  0.0000]])
    """

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        momentum: float = 0.9,
        watch: nn.Module | None = None,
        memory: Memory = Memory(Matrix(), L2()),
        key: Stream = Input(),
        value: Stream = Cotangent(),
        query: Stream = Identity(),
    ) -> None:
        self.memory = GradientMemory(memory, key, value, query)
        super().__init__(params, {"lr": lr, "momentum": momentum}, watch)

    def asks(self, group: Group) -> bool:
        """Where δ is a key or a value"""
        return Cotangent() in (self.memory.key, self.memory.value)

    def start(self, parameter: Tensor, group: Group) -> dict[str, Tensor]:
        """The memory, for a weight of a layer"""
        if parameter.dim() != 2:
            return super().start(parameter, group)
        wide = whole(parameter.detach()).to(torch.promote_types(parameter.dtype, torch.float32))
        return {name: leaf.clone() for name, leaf in tree.items(self.memory.init(wide))}

    def write(self, group: Group, parameter: Tensor, weight: Tensor, rows: Rows) -> Tensor:
        """One write of the memory with all inputs, and what it says"""
        kept = self.state[parameter]
        kept.update({} if kept else self.start(parameter, group))
        names, shape = layout(self.memory)
        state = pytree.tree_unflatten([kept[name] for name in names], shape)
        count = len(rows.inputs)
        seen = Seen(rows.gradient, rows.inputs, count * rows.cotangents)
        gates = Gates(lr=float(group["lr"]) / count, retain=float(group["momentum"]))
        update, state = self.memory.step(seen, state, gates)
        kept.update(zip(names, tree.leaves(state), strict=True))
        return weight + update
