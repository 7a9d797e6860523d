"""What an optimizer of linear layers sees beside gradients: the inputs of each layer, and the cotangents of its outputs."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from nestling.core.rule import Descend, Rule
from nestling.errors import NestlingError
from nestling.optim.base import Group, Optimizer, Params, name_of
from nestling.optim.sharding import companions, gathered, part, whole


@dataclass(frozen=True, eq=False)
class Rows:
    """What a layer has seen since the last step."""

    gradient: Tensor
    """∂L/∂W, as it is now."""
    inputs: Tensor
    """x, (n, in)."""
    cotangents: Tensor
    """δ = ∂L/∂(W x), (n, out); (n, 0) where the optimizer does not ask for them."""


class LayerOptimizer(Optimizer):
    """The base of optimizers that write a layer's weight W as a memory from its inputs x to −δ = −∂L/∂(W x).

    ``watch`` puts hooks on the ``nn.Linear`` modules of a model. An input counts once its output has had a gradient: forward
    passes without a backward pass leave nothing. Inputs are kept until ``step`` or ``zero_grad``. Parameters that are not
    matrices (biases, gains) take a plain step of gradient descent.

    On many processes ``watch`` takes the model that DDP wraps or FSDP2 has sharded: each process sees its own inputs, and all
    of them are gathered at the step, so that every process writes the same.
    """

    def __init__(self, params: Params, defaults: dict[str, Any], watch: nn.Module | None) -> None:
        self._seen: dict[Tensor, list[tuple[Tensor, Tensor]]] = {}
        self._ready: dict[Tensor, Rows] = {}
        self._groups: dict[Tensor, Any] = {}
        self._handles: list[Any] = []
        super().__init__(params, defaults)
        if watch is not None:
            self.watch(watch)

    def watch(self, model: nn.Module) -> None:
        """See the inputs of the linear layers of ``model`` from now on. Raises NestlingError where it has none of ours."""
        own = {p for group in self.param_groups for p in group["params"]}
        layers = [module for module in model.modules() if isinstance(module, nn.Linear) and module.weight in own]
        if not layers:
            raise NestlingError(
                f"{type(model).__name__} has no nn.Linear whose weight this {type(self).__name__} updates: "
                "watch the model whose parameters it was given."
            )
        self.close()
        self._groups = {layer.weight: companions(model, layer.weight) for layer in layers}
        # Under FSDP2 a layer has another tensor as its weight while it computes.
        self._handles = [layer.register_forward_hook(partial(self._hook, layer.weight)) for layer in layers]

    def close(self) -> None:
        """Take the hooks off again."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget gradients, and the inputs that they came from."""
        super().zero_grad(set_to_none)
        self._seen.clear()

    def rule(self, group: Group) -> Rule:
        """Of what is no weight of a layer"""
        return Descend()

    @abstractmethod
    def asks(self, group: Group) -> bool:
        """Does ``write`` look at the cotangents of single inputs, or at the gradient alone?"""

    @abstractmethod
    def write(self, group: Group, parameter: Tensor, weight: Tensor, rows: Rows) -> Tensor:
        """The new weight (out, in); ``weight`` is the parameter in at least float32."""

    def _rows(self, parameter: Tensor, group: Group) -> Rows:
        """Inputs, with cotangents scaled as the gradient has been since the backward pass (clipping, loss scaling)."""
        group_of = self._groups.get(parameter)
        seen = gathered(torch.cat([x for x, _ in self._seen[parameter]]), group_of)
        inputs = _wide(seen).to(_wide(parameter.detach()).dtype)
        gradient = _wide(whole(parameter.grad))  # type: ignore[arg-type]
        if not self.asks(group):
            return Rows(gradient, inputs, inputs.new_zeros(len(inputs), 0))
        found = gathered(torch.cat([delta for _, delta in self._seen[parameter]]), group_of).to(inputs)
        outer = found.mT @ inputs
        scale = (gradient * outer).sum() / outer.square().sum().clamp_min(torch.finfo(outer.dtype).tiny)
        if not (gradient - scale * outer).norm() <= 1e-2 * gradient.norm():
            raise NestlingError(
                f"the gradient of a weight of shape {tuple(parameter.shape)} is not that of its layer's inputs: it was changed, averaged over "
                'processes that watch() does not know of, or the weight is used elsewhere. Use DGD with reading="averaged".'
            )
        return Rows(gradient, inputs, scale * found)

    def _check_ready(self, group: Group) -> None:
        for index, parameter in enumerate(group["params"]):
            if parameter.grad is None or parameter.dim() != 2:
                continue
            if not self._seen.get(parameter):
                raise NestlingError(
                    f"{type(self).__name__} has seen no inputs of {name_of(group, index)}, of shape {tuple(parameter.shape)}: call "
                    "optimizer.watch(model) before the forward pass, and give matrices that are no weight of an nn.Linear to another optimizer."
                )
            self._ready[parameter] = self._rows(parameter, group)

    @torch.no_grad()
    def _write(self, parameters: list[Tensor], group: Group) -> None:
        super()._write([p for p in parameters if p.dim() != 2], group)
        for parameter in (p for p in parameters if p.dim() == 2):
            rows = self._ready.pop(parameter)
            after = self.write(group, parameter, _wide(whole(parameter.detach())), rows)
            parameter.copy_(part(after.to(parameter.dtype), parameter))
            del self._seen[parameter]

    def _hook(self, weight: Tensor, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        x = inputs[0].detach().reshape(-1, inputs[0].shape[-1])
        if output.requires_grad:
            rows = lambda delta: delta.detach().reshape(-1, delta.shape[-1])  # noqa: E731
            output.register_hook(lambda delta: self._seen.setdefault(weight, []).append((x, rows(delta))))

    def __getstate__(self) -> dict[str, Any]:
        """A copy watches nothing yet."""
        return {**super().__getstate__(), "_seen": {}, "_ready": {}, "_groups": {}, "_handles": []}


def _wide(tensor: Any) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
