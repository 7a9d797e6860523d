"""Delta gradient descent and its generalisation: the weights of a linear layer as a memory of its inputs (NL §4.5)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from nestling.core.architecture import Matrix
from nestling.core.gates import Gates
from nestling.core.memory import Memory, surprise
from nestling.core.mirror import ElasticNet, Lq
from nestling.core.objective import L2, Objective
from nestling.core.retention import Decay, Delta, Retention
from nestling.core.rule import Descend
from nestling.errors import NestlingError
from nestling.optim.base import Group, Params
from nestling.optim.layers import LayerOptimizer, Rows
from nestling.optim.sharding import whole


class DGD(LayerOptimizer):
    """W ← W (I − η′ x xᵀ) − η′ δ xᵀ, with δ = ∂ℓ/∂(W x) and η′ = η/(1 + η‖x‖²) (NL eqs 56-57).

    The exact minimum of ½‖W x − u‖² + ‖W − Wₜ‖²/2η with u = −δ: the layer is taught −δ for x, and what it said for x is
    erased. (The paper's η′ = η/(1 + η) is that of unit inputs.) Of several inputs there are two readings:

    ``reading="averaged"`` W (I − η′ mean(x xᵀ)) − η′ G, with G the gradient and η′ that of the mean of ‖x‖². G may be
    clipped, scaled, or averaged over processes.
    ``reading="sequential"`` one input after the other, each with its own η′, δ as at the start of the step. The loss is the
    mean over the inputs: each is taught its own loss. It is n steps long, and a loop.

    ``watch`` is the model whose inputs are seen; ``LayerOptimizer`` says how. For weights of ``nn.Linear`` (biases and gains
    take a plain step).

    >>> import torch
    >>> layer = nn.Linear(2, 1, bias=False)
    >>> _ = layer.weight.data.fill_(1.0)
    >>> optimizer = DGD(layer.parameters(), lr=1.0, watch=layer)
    >>> layer(torch.tensor([[1.0, 0.0]])).sum().backward()
    >>> optimizer.step(); layer.weight.data  # 1 − ½ · 1 − ½ · 1 for the input that was seen
    tensor([[0., 1.]])
    """

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        watch: nn.Module | None = None,
        reading: Literal["averaged", "sequential"] = "averaged",
    ) -> None:
        if reading not in ("averaged", "sequential"):
            raise NestlingError(f"reading must be 'averaged' or 'sequential', got {reading!r}: use one of them.")
        super().__init__(params, {"lr": lr, "reading": reading}, watch)

    def asks(self, group: Group) -> bool:
        """Where inputs come one after the other"""
        return group["reading"] == "sequential"

    def write(self, group: Group, parameter: Tensor, weight: Tensor, rows: Rows) -> Tensor:
        """Delta retention and one step of descent"""
        inputs, rate = rows.inputs, float(group["lr"])
        lengths = inputs.square().sum(-1)
        if group["reading"] == "averaged":
            shared = rate / (1 + rate * lengths.mean())
            # W (I − η′ mean(x xᵀ)) − η′ G: the mean of core.Delta over the inputs
            erased = (weight @ inputs.mT) @ inputs / len(inputs)
            return weight - shared * erased + Descend().update(rows.gradient, (), Gates(lr=shared))[0]
        rates = rate / (1 + rate * lengths)
        for x, delta, own in zip(inputs, len(inputs) * rows.cotangents, rates, strict=True):
            gates = Gates(lr=own)
            # W ← W (I − η′ x xᵀ) − η′ δ xᵀ   NL eq. 57
            weight = Delta().decay(weight, gates, x) + Descend().update(torch.outer(delta, x), (), gates)[0]
        return weight


class GGD(LayerOptimizer):
    """W ← argmin ℓ̃(W; x, u) + Ret(W, {Wᵢ}), u = −δ: generalised gradient descent (NL definition 5, eqs 59-60).

    One step of ``core.Memory(Matrix(), objective, retention)`` on the inputs of the layer, with its own outputs' −δ as
    values: A ← mean of the last ``window`` A − η mean ∇ℓ̃(W; x, −δ), W = primal(A). The argmin is linearised at W, as in
    NL eq. 2. With ``DotProduct()`` it is gradient descent, with ``L2()`` delta gradient descent with η in place of η′; with
    ``ElasticNet`` and ``Lq`` the weights are read through a mirror map. The loss is the mean over the inputs.

    >>> import torch
    >>> from nestling.core import DotProduct
    >>> layer = nn.Linear(2, 1, bias=False)
    >>> _ = layer.weight.data.fill_(1.0)
    >>> optimizer = GGD(layer.parameters(), lr=0.1, watch=layer, objective=DotProduct())
    >>> layer(torch.tensor([[1.0, 0.0]])).sum().backward()
    >>> optimizer.step(); layer.weight.data
    tensor([[0.9000, 1.0000]])
    """

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        watch: nn.Module | None = None,
        objective: Objective = L2(),
        retention: Retention = Decay(),
        window: int = 1,
    ) -> None:
        if not isinstance(retention, Decay | ElasticNet | Lq):
            raise NestlingError(
                f"{retention} does not fit the weights of a layer: use Decay(), ElasticNet() or Lq(), and DGD for Delta()."
            )
        if window < 1:
            raise NestlingError(f"window must be a number of steps ≥ 1, got {window}: use 1.")
        self.memory = Memory(Matrix(), objective, retention)
        super().__init__(params, {"lr": lr, "window": window}, watch)

    def asks(self, group: Group) -> bool:
        """Always: −δ is the value"""
        return True

    def start(self, parameter: Tensor, group: Group) -> dict[str, Tensor]:
        """A, now and in the steps before, where they are not the weight itself"""
        if parameter.dim() != 2:
            return super().start(parameter, group)
        wide = whole(parameter.detach()).to(torch.promote_types(parameter.dtype, torch.float32))
        dual = self.memory.retention.dual(wide)
        return {"dual": dual.clone(), "before": dual.expand(group["window"] - 1, *dual.shape).clone()}

    def write(self, group: Group, parameter: Tensor, weight: Tensor, rows: Rows) -> Tensor:
        """One write of the memory"""
        state = self.state[parameter]
        state.update({} if state else self.start(parameter, group))
        rate, retention = float(group["lr"]), self.memory.retention
        inputs, values = rows.inputs, -len(rows.inputs) * rows.cotangents
        found = surprise(self.memory.architecture, self.memory.objective, {"w1": weight}, inputs, values, torch.inf)
        slope = found.cotangents["w1"].mT @ inputs / len(inputs)
        known = torch.cat([state["dual"][None], state["before"]])
        # A ← mean Aᵢ − η mean ∇ℓ̃
        dual = known.mean(0) + Descend().update(slope, (), Gates(lr=rate))[0]
        state["before"], state["dual"] = known[:-1].clone(), dual
        return retention.primal(dual)
