"""Powers of what is remembered of g gᵀ: symmetric matrices that may be singular."""

from __future__ import annotations

import torch
from torch import Tensor


def power(matrix: Tensor, exponent: float, floor: float = 1e-12) -> Tensor:
    """Hᵖ for H symmetric and positive semidefinite, (..., n, n), by its eigenvalues.

    Eigenvalues count as ``floor`` times the largest at least, and not less than the rounding of the type: what H has never seen
    keeps a finite weight under a negative power. 0 to a negative power is 0: nothing at all was seen.

    >>> power(torch.diag(torch.tensor([4.0, 9.0])), -0.5)
    tensor([[0.5000, 0.0000],
            [0.0000, 0.3333]])
    """
    values, vectors = torch.linalg.eigh(matrix)
    largest = values[..., -1:].clamp_min(0)
    rounding = torch.finfo(matrix.dtype).eps * matrix.shape[-1]
    raised = values.clamp_min(max(floor, rounding) * largest).clamp_min(torch.finfo(matrix.dtype).tiny) ** exponent
    return (vectors * torch.where(largest > 0, raised, torch.zeros_like(raised))[..., None, :]) @ vectors.mT
