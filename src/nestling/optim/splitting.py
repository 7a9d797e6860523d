"""One optimizer made of two: for the matrices of a model, and for everything else."""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any, TypeAlias

from torch import Tensor, nn

from nestling.core.rule import Rule
from nestling.errors import NestlingError
from nestling.optim.base import Group, Optimizer
from nestling.optim.m3 import M3
from nestling.optim.named import AdamW

Maker: TypeAlias = Callable[[list[tuple[str, Tensor]]], Optimizer]
"""An optimizer of (name, parameter) pairs: a class, or ``functools.partial`` of one."""

KEPT = ("*embed*", "*lm_head*", "head.*", "*.head.*", "*norm*", "*conv*", "*gain*", "*bias*")
"""Names of matrices that act on no hidden state: rows are looked up, or channels are treated one by one."""


class Split(Optimizer):
    """Two optimizers that step as one: one ``state_dict``, one scheduler, one ``zero_grad``.

    The groups of both stand one after the other, with ``group["part"]`` 0 or 1.

    >>> import torch
    >>> from nestling.optim import SGD
    >>> a, b = (torch.nn.Parameter(torch.ones(1)) for _ in range(2))
    >>> optimizer = Split(SGD([("a", a)], lr=0.1), SGD([("b", b)], lr=0.5))
    >>> a.grad = b.grad = torch.ones(1)
    >>> optimizer.step(); a.item(), b.item()
    (0.8999999761581421, 0.5)
    """

    def __init__(self, *parts: Optimizer) -> None:
        self.parts = parts
        groups = []
        for number, part in enumerate(parts):
            for group in part.param_groups:
                settings = {name: value for name, value in group.items() if name != "param_names"}
                pairs = zip(group["param_names"], group["params"], strict=True) if "param_names" in group else None
                groups.append({**settings, "params": list(pairs or group["params"]), "part": number})
        super().__init__(groups, {})

    def rule(self, group: Group) -> Rule:
        """That of the group's own optimizer"""
        return self._part(group).rule(group)

    def start(self, parameter: Tensor, group: Group) -> dict[str, Tensor]:
        """That of the group's own optimizer"""
        return self._part(group).start(parameter, group)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget gradients, and what the parts have seen beside them"""
        for part in self.parts:
            part.zero_grad(set_to_none)

    def _part(self, group: Group) -> Optimizer:
        part = self.parts[group["part"]]
        part.state = self.state  # which load_state_dict replaces
        return part

    def _check_ready(self, group: Group) -> None:
        self._part(group)._check_ready(group)

    def _write(self, parameters: list[Tensor], group: Group) -> None:
        self._part(group)._write(parameters, group)


def split(model: nn.Module, matrices: Maker = M3, others: Maker = AdamW, keep: tuple[str, ...] = KEPT) -> Split:
    """``matrices`` for the hidden matrices of a model; ``others`` for embeddings, heads, norms, scalars, stacks of matrices.

    A parameter goes to ``others`` where it has not two dimensions, where it is that of an ``nn.Embedding``, or where its
    name fits one of the globs ``keep``. Frozen parameters are left out.

    Raises:
        NestlingError: nothing is left for ``matrices``.

    >>> model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4), nn.LayerNorm(4))
    >>> [(g["part"], g["param_names"]) for g in split(model).param_groups]
    [(0, ['1.weight']), (1, ['0.weight', '1.bias', '2.weight', '2.bias'])]
    """
    looked_up = {module.weight for module in model.modules() if isinstance(module, nn.Embedding)}
    hidden: list[tuple[str, Tensor]] = []
    rest: list[tuple[str, Tensor]] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            kept = parameter.dim() != 2 or parameter in looked_up or any(fnmatchcase(name, glob) for glob in keep)
            (rest if kept else hidden).append((name, parameter))
    if not hidden:
        raise NestlingError(f"{type(model).__name__} has no hidden matrices: use AdamW, or fewer globs in keep.")
    makers: list[tuple[Any, list[tuple[str, Tensor]]]] = [(matrices, hidden), (others, rest)]
    return Split(*(make(pairs) for make, pairs in makers if pairs))
