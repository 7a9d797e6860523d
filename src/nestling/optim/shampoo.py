"""Optimizers that remember outer products of gradients: Shampoo, which is AdaGrad of matrices, and SOAP (NL appendix B)."""

from __future__ import annotations

from nestling.core.rule import Chain, Descend, Momentum, Rule, Scale
from nestling.errors import NestlingError
from nestling.optim.base import Group, Params
from nestling.optim.decay import Decoupled
from nestling.optim.factors import Rotate, Sides, Whiten
from nestling.optim.rules import Normalise, Root, Square, unbiased

WIDE = (2048.0, 2048.0)


class Shampoo(Decoupled):
    """W ← W − η L^-¼ M R^-¼, with M, L and R the memories of g, g gᵀ and gᵀ g (Gupta et al. 2018; NL eqs 106-111).

    ``retain`` says what M and the other two keep: a number below 1 makes running means (0: the gradient itself), 1 sums of
    which nothing is forgotten. Sides of more than ``widest`` (rows, columns) entries are left out, and the other side then
    has the power −½: ``retain=(1, 1), widest=(inf, 0), rms=None`` is NL eq. 111, AdaGrad with outer products, W ← W − η H^-½ Σg;
    ``retain=(0, 1), rms=None`` the printed Shampoo, with L₀ = ε I. The roots are made anew once in ``period`` steps.
    With ``rms`` every update has that root mean square, so that rates of AdamW serve. Of matrices only.

    >>> import torch
    >>> weight = torch.nn.Parameter(torch.zeros(2, 2))
    >>> optimizer = Shampoo([weight], lr=1.0, rms=None)
    >>> weight.grad = torch.diag(torch.tensor([5.0, 0.2])); optimizer.step()
    >>> weight.data.round(decimals=2)
    tensor([[-1.,  0.],
            [ 0., -1.]])
    """

    needs_matrices = "both of their sides are whitened"

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        retain: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        period: int = 10,
        widest: tuple[float, float] = WIDE,
        rms: float | None = 0.2,
    ) -> None:
        if not (len(retain) == 2 and all(0 <= kept <= 1 for kept in retain)):
            raise NestlingError(f"retain must be two numbers from 0 to 1, got {retain}: use (0.9, 0.99).")
        _check_widest(widest)
        defaults = {"lr": lr, "retain": tuple(retain), "eps": eps, "weight_decay": weight_decay, "period": period}
        super().__init__(params, {**defaults, "widest": tuple(widest), "rms": rms})

    def rule(self, group: Group) -> Rule:
        """L^-¼ M R^-¼, its size, the rate"""
        first, second = group["retain"]
        memory: Rule = unbiased(first) if first < 1 else Momentum(1.0)
        memory = Scale(1.0) if first == 0 else memory
        white = Whiten(memory, Sides(second, group["period"], group["widest"]), group["eps"])
        size = () if group["rms"] is None else (Normalise(group["rms"]),)
        return Chain((white, *size, Descend()))


class SOAP(Decoupled):
    """Adam between the eigenvectors of Shampoo's L and R: W ← W − η Q_L (M′ / (√V′ + ε)) Q_Rᵀ (Vyas et al. 2024, algorithm 3).

    M is the running mean of g, M′ = Q_Lᵀ M Q_R; V′ that of (Q_Lᵀ g Q_R)². The eigenvectors are made anew once in ``period``
    steps; sides of more than ``widest`` (rows, columns) entries are not rotated. Without any side it is AdamW. The first
    gradient counts (the printed algorithm spends it on the eigenvectors). Of matrices only.

    >>> import torch
    >>> weight = torch.nn.Parameter(torch.zeros(2, 2))
    >>> optimizer = SOAP([weight], lr=1.0, eps=1e-3)
    >>> weight.grad = torch.tensor([[1.0, 2.0], [3.0, 4.0]]); optimizer.step()
    >>> torch.allclose(weight.data @ weight.data.mT, torch.eye(2), atol=0.02)  # of both singular values the sign remains
    True
    """

    needs_matrices = "both of their sides are rotated"

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.95, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        period: int = 10,
        widest: tuple[float, float] = WIDE,
    ) -> None:
        _check_widest(widest)
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "period": period}
        super().__init__(params, {**defaults, "widest": tuple(widest)})

    def rule(self, group: Group) -> Rule:
        """M′ / (√V′ + ε), rotated back, then the rate"""
        first, second = group["betas"]
        sides = Sides(second, group["period"], group["widest"])
        below = Chain((Square(), *unbiased(second).rules, Root(group["eps"])))
        return Chain((Rotate(unbiased(first), below, sides), Descend()))


def _check_widest(widest: tuple[float, float]) -> None:
    if not (len(widest) == 2 and all(most >= 0 for most in widest)):
        raise NestlingError(f"widest must be two numbers ≥ 0, of rows and of columns, got {widest}: use (2048, 2048).")
