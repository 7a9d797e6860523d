"""A rule of the core as a ``torch.optim.Optimizer``: each weight is a memory that is written once a step, with its gradient.

Wₜ = decay(Wₜ₋₁) + rule(∇L(Wₜ₋₁))                 core.Memory.write, along steps
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar, TypeAlias

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from nestling import tree
from nestling.core.gates import Gates
from nestling.core.rule import Rule
from nestling.errors import NestlingError
from nestling.optim.kernels import Column, Signals, Tensors, layout, step
from nestling.optim.sharding import sums, whole

Group: TypeAlias = dict[str, Any]
Params: TypeAlias = Iterable[Any]
"""Parameters, (name, parameter) pairs, or groups: what ``torch.optim`` takes."""

PORTION = 2**21
"""Entries of weights that are written together on a processor: with their state and gradients they are about what its cache holds."""


class Optimizer(torch.optim.Optimizer, ABC):
    """The base of all optimizers here: parameter groups, closures, schedulers and ``state_dict`` are those of torch.

    A subclass says which ``rule`` a group has. The state of a weight is what the rule remembers, in at least float32, and
    numbers that count steps stand on the CPU; gradients are not changed.

    Every group has one setting more, ``error_if_nonfinite`` (as in ``torch.nn.utils.clip_grad_norm_``): True, a gradient that is
    nan or infinite is refused before anything has changed, which reads all gradients once; False, where the caller has looked
    already (it clips, or a ``GradScaler`` skips such steps), they are taken as they are: ``[{"params": ..., "error_if_nonfinite":
    False}]``, or in ``optimizer.param_groups`` at any time.

    >>> class Plain(Optimizer):
    ...     def rule(self, group):
    ...         from nestling.core import Descend
    ...         return Descend()
    >>> weight = torch.nn.Parameter(torch.ones(1))
    >>> optimizer = Plain([weight], {"lr": 0.5})
    >>> weight.grad = torch.ones(1)
    >>> optimizer.step(); weight.data
    tensor([0.5000])
    """

    needs_matrices: ClassVar[str] = ""
    """Why parameters must be matrices; empty: any shape will do."""

    def __init__(self, params: Params, defaults: dict[str, Any]) -> None:
        super().__init__(params, {"error_if_nonfinite": True, **defaults})

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Groups that were saved before a setting came to be have its default."""
        super().__setstate__(state)
        for group in self.param_groups:
            group.setdefault("error_if_nonfinite", True)

    @abstractmethod
    def rule(self, group: Group) -> Rule:
        """What becomes of a gradient: of the group's settings, the same at every call while these are the same."""

    def gates(self, group: Group) -> Gates:
        """The coefficients that the rule is given: the rate."""
        return Gates(lr=float(group["lr"]))

    def retain(self, group: Group) -> float:
        """What a weight keeps of itself at a write: α of its retention ``core.Decay``."""
        return 1.0

    def signal(self, group: Group, weights: Tensors, gradients: Tensors) -> Signals:
        """What the rule is given: the gradients."""
        return Signals.of(gradients)

    def add_param_group(self, param_group: Group) -> None:
        """Add parameters with settings of their own. Raises NestlingError where a setting or a shape cannot be."""
        super().add_param_group(param_group)
        try:
            group = self.param_groups[-1]
            _check_settings(group)
            for index, parameter in enumerate(group["params"]):
                self._check_parameter(name_of(group, index), parameter)
        except NestlingError:
            self.param_groups.pop()
            raise

    @torch.compiler.disable  # its checks look at values; within a compiled training step it runs as it is
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One write of every weight that has a gradient; ``closure`` computes loss and gradients anew, and is given back.

        Raises:
            NestlingError: a gradient is sparse, complex, nan or infinite (see ``error_if_nonfinite``), or a setting is out of range.
                Nothing has changed then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            _check_settings(group)
            _check_gradients(group)
            if group["error_if_nonfinite"]:
                _check_finite(group)
            self._check_ready(group)
        for group in self.param_groups:
            self._write([p for p in group["params"] if p.grad is not None], group)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what ``state_dict()`` gave, in the types it was kept in.

        Raises:
            NestlingError: it is of other parameters or of another optimizer.
        """
        order = [(group, p) for group in self.param_groups for p in group["params"]]
        numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
        for (group, parameter), number in zip(order, numbers, strict=False):
            saved, fresh = state_dict["state"].get(number), self.start(parameter, group)
            if saved is not None and _shapes(saved) != _shapes(fresh):
                raise NestlingError(
                    f"the state is of another optimizer or model: for a parameter of shape {tuple(parameter.shape)} it has "
                    f"{_shapes(saved)}, this {type(self).__name__} has {_shapes(fresh)}. Load it into what saved it."
                )
        super().load_state_dict(state_dict)
        for (group, parameter), number in zip(order, numbers, strict=True):
            for name, ours in self.start(parameter, group).items() if number in state_dict["state"] else ():
                kept = state_dict["state"][number][name]  # torch has cast it to the type of the parameter
                self.state[parameter][name] = kept.detach().to(ours.device, ours.dtype, copy=True)

    def __getstate__(self) -> dict[str, Any]:
        """What a copy has: everything but the hooks, and the ``step`` that a scheduler may have wrapped."""
        own = {
            name: value for name, value in vars(self).items() if not name.startswith("_optimizer_") and name != "step"
        }
        return {**super().__getstate__(), **own}

    def start(self, parameter: Tensor, group: Group) -> dict[str, Tensor]:
        """The state of a weight before its first write, by name."""
        wide = torch.promote_types(parameter.dtype, torch.float32)
        fresh = self.rule(group).init(parameter.detach().to(wide))
        count = lambda leaf: leaf.dim() == 0 < parameter.dim()  # noqa: E731
        return {name: leaf.cpu() if count(leaf) else leaf.clone() for name, leaf in tree.items(fresh)}

    def _write(self, parameters: list[Tensor], group: Group) -> None:
        """decay, then add what the rule gives"""
        if not parameters:
            return
        rule, gates = self.rule(group), self.gates(group)
        names, shape = layout(rule)
        for some in portions(parameters) if names else (parameters,):  # nothing is made on the way to W − η g
            for parameter in some if names else ():
                if not self.state[parameter]:
                    self.state[parameter] = self.start(parameter, group)
            columns = [Column(self.state[parameter][name] for parameter in some) for name in names]
            self._step(some, group, (rule, gates, pytree.tree_unflatten(columns, shape)))

    def _step(self, parameters: list[Tensor], group: Group, by: tuple[Rule, Gates, Any]) -> None:
        """The same for some of them: ``by`` a rule, gates, and the state that the rule has of these."""
        rule, gates, state = by
        wide = [torch.promote_types(p.dtype, torch.float32) for p in parameters]
        gradients = [p.grad.to(dtype) for p, dtype in zip(parameters, wide, strict=True)]  # type: ignore[union-attr]
        weights = [p.detach().to(dtype) for p, dtype in zip(parameters, wide, strict=True)]
        signals = self.signal(group, weights, gradients)
        if (kept := self.retain(group)) != 1.0:
            torch._foreach_mul_(weights, kept)
        step(rule, weights, signals, state, gates)
        for parameter, weight in zip(parameters, weights, strict=True):
            if parameter.dtype != weight.dtype:  # it was widened; else it is the parameter itself
                parameter.copy_(weight)

    def _check_ready(self, group: Group) -> None:
        """Raise NestlingError where a write cannot be made; nothing has changed yet."""

    def _check_parameter(self, name: str, parameter: Tensor) -> None:
        if not parameter.is_floating_point():
            raise NestlingError(
                f"{name} is {parameter.dtype}: {type(self).__name__} updates real numbers; split it into real and imaginary part."
            )
        if self.needs_matrices and parameter.dim() != 2:
            raise NestlingError(
                f"{name} has shape {tuple(parameter.shape)}, and {type(self).__name__} needs matrices: {self.needs_matrices}. "
                "Give it to Adam or AdamW, as nestling.optim.split does."
            )


def _check_settings(group: Group) -> None:
    for name, value in group.items():
        match name:
            case "lr" | "weight_decay" | "eps" | "momentum" | "slow_weight":
                if not (float(value) >= 0 and math.isfinite(value)):
                    raise NestlingError(f"{name} must be a number ≥ 0, got {value}: use {name}=0.01.")
            case "betas" | "beta":
                if not all(0 <= beta < 1 for beta in (value if isinstance(value, tuple | list) else (value,))):
                    raise NestlingError(f"{name} must be from 0 to below 1, got {value}: use 0.9.")
            case "kind" if value not in ("heavy ball", "nesterov"):
                raise NestlingError(f"kind must be 'heavy ball' or 'nesterov', got {value!r}: use one of them.")
            case "period":
                if not (value >= 1 and (value == math.inf or value % 1 == 0)):
                    raise NestlingError(f"{name} must be a whole number of steps ≥ 1, got {value}: use period=16.")


def _check_gradients(group: Group) -> None:
    for index, parameter in enumerate(group["params"]):
        gradient = parameter.grad
        if gradient is None:
            continue
        if gradient.layout != torch.strided:
            raise NestlingError(
                f"the gradient of {name_of(group, index)} is sparse: only dense ones are taken; build the embedding with sparse=False."
            )
        if gradient.is_complex():
            raise NestlingError(f"the gradient of {name_of(group, index)} is complex: only real ones are taken.")


def _check_finite(group: Group) -> None:
    found: dict[torch.device, list[int]] = {}
    for index, parameter in enumerate(group["params"]):
        if parameter.grad is not None:
            found.setdefault(parameter.grad.device, []).append(index)
    for indices in found.values():
        # One number for each that no finite gradient makes nan or infinite, and the cheapest to reckon: its sum.
        finite = sums([group["params"][i].grad for i in indices]).isfinite()
        if not bool(finite.all()):
            # A sum may overflow where no entry does.
            for index in (i for i, good in zip(indices, finite.tolist(), strict=True) if not good):
                if not bool(whole(group["params"][index].grad).isfinite().all()):
                    raise NestlingError(
                        f"the gradient of {name_of(group, index)} is nan or infinite: skip this step, or lower the rate (lr={group['lr']})."
                    )


def portions(parameters: list[Tensor]) -> Iterator[list[Tensor]]:
    """The parameters in runs that are written together: on a processor of ``PORTION`` entries, elsewhere all at once.

    What a rule makes on the way stays in the processor's cache then, and its memory is used again instead of asked for anew.

    >>> [len(run) for run in portions([torch.zeros(PORTION // 2)] * 5)]
    [2, 2, 1]
    """
    run: list[Tensor] = []
    entries = 0
    for parameter in parameters:
        entries += parameter.numel()
        if run and entries > PORTION and parameter.device.type == "cpu":
            yield run
            run, entries = [], parameter.numel()
        run.append(parameter)
    if run:
        yield run


def name_of(group: Group, index: int) -> str:
    """What to call a parameter in a message: its name, where the optimizer was given names."""
    names = group.get("param_names")
    return repr(names[index]) if names else f"parameter {index}"


def _shapes(state: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(leaf.shape) for name, leaf in state.items()}
