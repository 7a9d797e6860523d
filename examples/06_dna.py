"""DNA: four letters, read base by base, against what the last few bases alone can tell.

No genome is shipped: this one is made. Its background is random with a taste for some neighbours, and genes of a family,
the same 60 bases with a few mutations each, are strewn over it. How many bits does the next base cost? Two is knowing nothing.
"""

from __future__ import annotations

import math
import random
import time
from collections import Counter

import torch
import torch.nn.functional as F

import nestling as nl
from nestling import tree

BASES = "ACGT"
FAMILIES, GENE, MUTATED = 3, 60, 0.05
STEPS, ROWS, LENGTH = 32, 16, 128


def genome(length: int, rng: random.Random, families: list[str]) -> str:
    """Background in which a base is followed by itself or its pair more often than by the others, and genes of the families."""
    made: list[str] = ["A"]
    while len(made) < length:
        if rng.random() < 1 / 60:
            made += [rng.choice(BASES) if rng.random() < MUTATED else base for base in rng.choice(families)]
        else:
            last = BASES.index(made[-1])
            made.append(BASES[rng.choices([last, 3 - last, (last + 1) % 4, (last + 2) % 4], [5, 3, 1, 1])[0]])
    return "".join(made[:length])


def markov(train: str, test: str, order: int) -> float:
    """Bits per base of the best guess from the last ``order`` bases, counted on ``train`` (each count plus a half)."""
    seen: Counter[str] = Counter(train[i : i + order + 1] for i in range(len(train) - order))
    bits = 0.0
    for i in range(order, len(test)):
        before = test[i - order : i]
        counts = {base: seen[before + base] + 0.5 for base in BASES}
        bits -= math.log2(counts[test[i]] / sum(counts.values()))
    return bits / (len(test) - order)


def codes(text: str) -> torch.Tensor:
    return torch.tensor([BASES.index(base) for base in text])


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    rng = random.Random(0)
    families = ["".join(rng.choices(BASES, k=GENE)) for _ in range(FAMILIES)]
    train, test = genome(STEPS * ROWS * LENGTH, rng, families), genome(4_000, rng, families)
    model = nl.build("titans_lmm", vocab_size=len(BASES), dim=48, layers=2, heads=2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.1)
    print(
        f"{len(train):,} bases to train on, each read once; {sum(p.numel() for p in model.parameters()):,} parameters"
    )
    rows, state = codes(train).view(ROWS, STEPS, LENGTH).transpose(0, 1), None
    begun = time.perf_counter()
    for step, batch in enumerate(rows):
        # Each row goes on where it stopped, so that the memory knows long streams; gradients end at the row's beginning.
        logits, state = model(batch, state)
        state = tree.detach(state)
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 20 == 19:
            print(
                f"step {step + 1}: {loss.item() / math.log(2):.3f} bits per base, {time.perf_counter() - begun:.0f} s"
            )
    print(f"another {len(test):,} bases with genes of the same families, bits per base:")
    for order in (0, 1, 2, 4, 6, 8):
        print(f"  the last {order} bases            {markov(train, test, order):.3f}")
    tokens = codes(test)[None]
    with torch.no_grad():
        for name, reader in (("memory, as one stream", model), ("memory shut", model.frozen())):
            logits, _ = reader.eval()(tokens[:, :-1])
            bits = F.cross_entropy(logits[0], tokens[0, 1:]).item() / math.log(2)
            print(f"  {name:<26} {bits:.3f}")


if __name__ == "__main__":
    main()
