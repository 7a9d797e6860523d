"""No words: a long-term memory reads a series of numbers and forecasts it.

Simba's blocks with Titans' memory where Simba has Mamba: memory along time, then a channel mixer. The memory layer is a Mixer,
(B, T, D) -> (B, T, D) with a state, so there is no vocabulary. The series is the weekly CO2 of Mauna Loa (statsmodels): 2,284
numbers are little to learn from, and what the calendar says is hard to beat.
"""

from __future__ import annotations

import copy
import time

import torch
from statsmodels.datasets import co2
from torch import Tensor, nn

from nestling.nn import Block, MemoryLayer, RMSNorm, SwiGLU
from nestling.recipes.titans import LONG_TERM_MEMORY

# Weeks in a patch; channels; updates; rows and patches of a batch.
PATCH, WIDTH, STEPS, ROWS, LENGTH = 4, 32, 40, 8, 64
YEAR = 52


class Forecaster(nn.Module):
    """Patches (B, T, PATCH) -> the change from each patch to the next (B, T, PATCH), and the state of the stream."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(PATCH, WIDTH), nn.Linear(WIDTH, PATCH)
        self.norm = RMSNorm(WIDTH)
        self.blocks = nn.ModuleList(
            Block(WIDTH, MemoryLayer(WIDTH, 2, LONG_TERM_MEMORY), SwiGLU(WIDTH, 2)) for _ in range(2)
        )

    def forward(self, x: Tensor, state: tuple | None = None) -> tuple[Tensor, tuple]:
        x, after = self.enter(x), []
        for index, block in enumerate(self.blocks):
            x, new = block(x, None if state is None else state[index])
            after.append(new)
        return self.leave(self.norm(x)), tuple(after)


def series() -> Tensor:
    """Weekly values, gaps filled by straight lines."""
    return torch.tensor(co2.load_pandas().data["co2"].interpolate().to_numpy(copy=True), dtype=torch.float32)


def stream(model: Forecaster, patches: Tensor, border: int) -> Tensor:
    """What is said of each patch from ``border`` on, read as one stream from the beginning."""
    with torch.no_grad():
        _, state = model(patches[None, : border - 1])
        said, _ = model(patches[None, border - 1 : -1], state)
    return said[0]


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    values = series()
    changes = values.diff()
    patches = changes[: len(changes) // PATCH * PATCH].view(-1, PATCH)
    valid, border = int(0.65 * len(patches)), int(0.8 * len(patches))
    spread = patches[:valid].std()
    known = patches / spread
    model = Forecaster()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.1)
    print(f"{len(values):,} weeks of CO2; {sum(p.numel() for p in model.parameters()):,} parameters")
    begun, best, kept = time.perf_counter(), float("inf"), {}
    for step in range(1, STEPS + 1):
        starts = torch.randint(valid - LENGTH - 1, (ROWS,)).tolist()
        batch = torch.stack([known[start : start + LENGTH + 1] for start in starts])
        said, _ = model(batch[:, :-1])
        loss = (said - batch[:, 1:]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 5 == 0:
            # So few numbers are soon learnt by heart: what forecasts the years before the test best is kept.
            error = (stream(model, known[:border], valid) - known[valid:border]).square().mean().item()
            seconds = time.perf_counter() - begun
            print(f"step {step}: squared error {loss.item():.3f}, on the years after {error:.3f}, {seconds:.0f} s")
            if error < best:
                best, kept = error, copy.deepcopy(model.state_dict())
    model.load_state_dict(kept)

    # The last fifth: every forecast of four weeks is made from all that was read before it.
    truth, cut = patches[border:], border * PATCH
    ahead = truth.cumsum(1)
    mean_year = torch.stack([changes[t:cut:YEAR].nanmean() for t in range(YEAR)])
    weeks = torch.arange(cut, len(patches) * PATCH)
    rivals = {
        "as the last week": torch.zeros_like(truth),
        "as a year before": changes[weeks - YEAR].view(-1, PATCH),
        "as that week in the mean year": mean_year[weeks % YEAR].view(-1, PATCH),
        "memory": stream(model, known, border) * spread,
    }
    print(f"{len(truth)} forecasts of the next {PATCH} weeks, in ppm:")
    for name, changed in rivals.items():
        error = changed.cumsum(1) - ahead
        print(f"  {name:<30} mean squared error {error.square().mean():.3f}, mean error {error.abs().mean():.3f}")


if __name__ == "__main__":
    main()
