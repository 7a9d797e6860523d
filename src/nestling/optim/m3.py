"""M3, multi-scale momentum Muon: a fast and a slow memory of gradients, both made orthogonal (NL §7.2, algorithm 1)."""

from __future__ import annotations

from typing import Literal

from nestling.core.rule import Chain, Descend, Hold, Momentum, NewtonSchulz, Rule, Scale, Sum
from nestling.errors import NestlingError
from nestling.optim.base import Group, Params
from nestling.optim.decay import Decoupled
from nestling.optim.rules import Normalise, Quotient, Root, Square, mean, unbiased


class M3(Decoupled):
    """W ← W − η (O⁽¹⁾ + α O⁽²⁾) / (√V + ε), with O⁽ⁱ⁾ = NewtonSchulz(M⁽ⁱ⁾) (NL algorithm 1 and eq. 75). Of matrices only.

    M⁽¹⁾ is written at every step. M⁽²⁾ is written once in ``period`` steps with the sum of their gradients, and O⁽²⁾ is
    held until the next write: ``core.Hold``. V is written with g². ``betas`` are β₁, β₂, β₃ and ``slow_weight`` is α.

    ``form="paper"`` is the algorithm as it is printed, M ← M + β g and V ← V + β₂ g²: sums, so that the step shrinks as
    1/√t and depends on the scale of the gradient. (Its slow sum over (k−1)f … kf has f + 1 terms; the f of the period are
    taken.) ``form="mean"`` has running means, M ← β M + (1 − β) g, V̂ unbiased, and gives every update the root mean
    square 0.2, that of AdamW's: rates of AdamW serve. The paper prints no decay; ``weight_decay`` is decoupled.

    >>> import torch
    >>> weight = torch.nn.Parameter(torch.zeros(4, 2))
    >>> optimizer = M3([weight], lr=0.1, period=4)
    >>> weight.grad = torch.randn(4, 2); optimizer.step()
    >>> round(float(weight.detach().square().mean().sqrt()), 4)
    0.02
    """

    needs_matrices = "its two momenta are made orthogonal"

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        betas: tuple[float, float, float] = (0.95, 0.999, 0.9),
        slow_weight: float = 0.5,
        period: int = 16,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        form: Literal["mean", "paper"] = "mean",
    ) -> None:
        if form not in ("mean", "paper"):
            raise NestlingError(f"form must be 'mean' or 'paper', got {form!r}: use one of them.")
        if len(betas) != 3:
            raise NestlingError(f"betas of M3 are three, of the fast, squared and slow memory, got {betas}.")
        defaults = {"lr": lr, "betas": betas, "slow_weight": slow_weight, "period": period, "eps": eps}
        super().__init__(params, {**defaults, "weight_decay": weight_decay, "form": form})

    def rule(self, group: Group) -> Rule:
        """(O⁽¹⁾ + α O⁽²⁾) / (√V + ε), then the rate"""
        first, second, third = group["betas"]
        if group["form"] == "paper":
            fast, squared, slow = (Chain((Scale(beta), Momentum(1.0))) for beta in group["betas"])
        else:
            # A mean over periods of the mean in each: Every gives sums.
            slow = Chain((Scale((1 - third) / group["period"]), Momentum(third)))
            fast, squared = mean(first), unbiased(second)
        held = Hold(group["period"], Chain((slow, NewtonSchulz())))
        both = Sum((Chain((fast, NewtonSchulz())), Chain((held, Scale(group["slow_weight"])))))
        divided = Quotient(both, Chain((Square(), *squared.rules, Root(group["eps"]))))
        return Chain((divided, Descend()) if group["form"] == "paper" else (divided, Normalise(0.2), Descend()))
