"""Does reading help reading? Bits per byte by position in long documents, with the writes and without.

    python -m benchmarks.hope.positions systems      Hope, a long-term memory and transformers of equal size
    python -m benchmarks.hope.positions ablations    the rows of NL table 6 and of the press summary: hours, with --compile half of them

All models see the same bytes in the same order, half of them novels, half the source of Python's standard library. Then each reads
held-out documents, novels of other authors and other modules, as one stream from its beginning; ``off`` is the same weights with
every write shut. What was measured already is not measured again (``benchmarks/results/hope-positions.jsonl``).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

import nestling as nl
from benchmarks.hope.training import Model, as_bytes, fit, read
from benchmarks.novels import text
from benchmarks.shared import SEEDS, Pieces, machine, spread, table, write
from nestling.data import corpus
from nestling.ops import Chunk
from nestling.recipes.hope import ABLATIONS

RATE, PIECE = 3e-3, 512
LEARNT = ("Doyle_Lost_1912", "Stevenson_Treasure_1883", "Haggard_Mines_1885", "Chesterton_Thursday_1908")
HELD_OUT = (
    "Burnett_Garden_1911",
    "Conrad_Almayer_1895",
    "Woolf_Night_1919",
    "Hardy_Jude_1895",
    "Eliot_Adam_1859",
    "Dickens_Oliver_1839",
)
EVERY_STEP = ABLATIONS["only fast levels"]["levels"]
"""Of training: what is compared with anything but levels has them all trained at every step, as other models are"""
LEVELS = (nl.Level("fast", 64, owns="*.chain.0.*"), nl.Level("slow", 256, owns="*.chain.1.*"))
"""A continuum memory system, when it is written in context too: periods in tokens"""
# The closest to it without one: the same two periods, each for half of the weights of the channel mixers. Hope has both levels in
# every block; a block of a transformer has one channel mixer, so a block is a level, the first the fast one.
BLOCKS = (nl.Level("fast", 64, owns="blocks.0.channel.*"), nl.Level("slow", 256, owns="blocks.1.channel.*"))
ALL = (nl.Level("fast", 64, owns="*.channel.*"),)
"""More than that: all channel mixers, as often as the fast level"""


@dataclass(frozen=True)
class Member:
    """One system: a recipe, its changes, and the ways in which its levels are written in context too, by name."""

    recipe: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    levels: Mapping[str, tuple[nl.Level, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Group:
    """Systems that are trained and read alike."""

    members: Mapping[str, Member]
    steps: int
    rows: int
    """Of a batch: half of them prose, half code"""
    length: int
    edges: tuple[int, ...]
    """Between the parts of a document that are told apart; it is read up to the last"""
    shape: Mapping[str, int]


GROUPS = {
    "systems": Group(
        {
            "hope": Member("hope", {"levels": EVERY_STEP}, {"levels too": LEVELS}),
            "titans_lmm": Member("titans_lmm", {"expand": 2.25}),
            "transformer": Member(
                "transformer", {"window": 256, "expand": 3.95}, {"levels too": BLOCKS, "all at 64": ALL}
            ),
        },
        steps=400,
        rows=2,
        length=1024,
        edges=(0, 256, 1024, 4096, 8192),
        shape={"dim": 128, "layers": 2, "heads": 4},
    ),
    "ablations": Group(
        {
            name: Member("hope", changes if name == "Hope" else {"levels": EVERY_STEP, **changes})
            for name, changes in ABLATIONS.items()
        },
        steps=250,
        rows=4,
        length=512,
        edges=(0, 256, 1024, 4096),
        shape={"dim": 128, "layers": 2, "heads": 4},
    ),
}


@cache
def learnt() -> tuple[Tensor, Tensor]:
    """Prose and code to train on"""
    code = "\n".join(document.text for document in corpus.stdlib("train"))
    return as_bytes(b"".join(map(text, LEARNT))), as_bytes(code.encode())


@cache
def held_out(length: int) -> dict[str, Tensor]:
    """Six streams of each kind: from inside of novels, and from the beginning of modules, (6, length + 1)"""
    modules = {}
    for document in (*corpus.stdlib("valid"), *corpus.stdlib("unseen")):
        data = document.text.encode()
        if len(data) > 8192:  # the same modules, whatever is read of them
            modules.setdefault(document.name.split("/")[-1], as_bytes(data[: length + 1]))
    prose = [as_bytes(text(name))[20_000 : 20_000 + length + 1] for name in HELD_OUT]
    return {"prose": torch.stack(prose), "code": torch.stack(list(modules.values())[:6])}


def trained(
    recipe: str, changes: Mapping[str, Any], seed: int, group: Group, compiled: bool = False
) -> tuple[nl.LM, dict[str, float]]:
    """A model after the steps of its group, by compiled blocks or not: the same but for rounding."""
    torch.manual_seed(seed)
    model = nl.build(recipe, vocab_size=256, **{**group.shape, **changes})
    generator, begun = torch.Generator().manual_seed(seed), time.process_time()

    def draw() -> Tensor:
        return torch.stack([_row(learnt()[number % 2], group.length, generator) for number in range(group.rows)])

    losses = fit(model.using(Chunk(compiled=compiled)), draw, group.steps, RATE, floor=0.1)
    about = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "training": statistics.fmean(losses[-20:]),
        "seconds": time.process_time() - begun,
    }
    return model.eval(), about


def _row(part: Tensor, length: int, generator: torch.Generator) -> Tensor:
    start = int(torch.randint(len(part) - length - 1, (), generator=generator))
    return part[start : start + length + 1]


def measured(member: Member, seed: int, group: Group, compiled: bool = False) -> dict[str, Any]:
    """Train, read with the writes and without, and with levels that are written in context."""
    model, about = trained(member.recipe, member.changes, seed, group, compiled)
    written = {name: nl.InContext(model, levels, lr=0.1) for name, levels in member.levels.items()}
    ways: dict[str, Model] = {"on": model, "off": model.frozen(), **written}
    documents = held_out(group.edges[-1])
    found = {
        name: {kind: read(way, of, group.edges, PIECE) for kind, of in documents.items()} for name, way in ways.items()
    }
    ends = {
        name: round(statistics.fmean(row[-1] for part in kinds.values() for row in part), 3)
        for name, kinds in found.items()
    }
    return {
        **about,
        "found": found,
        "summary": f"training {about['training']:.3f}, at the end {ends}, {about['seconds']:.0f} s",
    }


def report(name: str, found: dict[str, list[dict[str, Any]]]) -> str:
    """Means over documents, then mean ± standard deviation over seeds."""
    group = GROUPS[name]
    parts = [f"{low:,} to {high:,}" for low, high in pairwise(group.edges)]
    rows = []
    for system, seeds in found.items():
        for way in seeds[0]["found"]:
            for kind in seeds[0]["found"][way]:
                means = [[statistics.fmean(x) for x in zip(*one["found"][way][kind], strict=True)] for one in seeds]
                cells = [spread(column) for column in zip(*means, strict=True)]
                fall = spread([mean[0] - mean[-1] for mean in means])
                rows.append((system, f"{seeds[0]['parameters']:,}", len(seeds), way, kind, *cells, fall))
    head = f"## {name}: {group.steps} steps of {group.rows} rows of {group.length:,} bytes\n\n"
    return head + table(("system", "parameters", "seeds", "writes", "documents", *parts, "fall"), rows)


def main() -> None:
    """Measure what is missing, write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("groups", nargs="*", choices=[*GROUPS, []], help="which; none: all")
    parser.add_argument("--compile", action="store_true", help="train by compiled blocks: the same but for rounding")
    given = parser.parse_args()
    torch.set_num_threads(1)
    pieces = Pieces("hope-positions")
    for name in given.groups or GROUPS:
        for seed in SEEDS:
            for system, member in GROUPS[name].members.items():
                pieces.get((name, system, seed), partial(measured, member, seed, GROUPS[name], given.compile))
    text = [
        f"# Bits per byte by position\n\n`python -m benchmarks.hope.positions` on a {machine()}, float32, seeds "
        f"{', '.join(map(str, SEEDS))}: mean ± standard deviation; where a row has fewer, "
        "the first ones. Six documents of each kind, one stream each; fall: the first part less the last.\n"
    ]
    for name, group in GROUPS.items():
        done = {
            each: [pieces.done[name, each, seed] for seed in SEEDS if (name, each, seed) in pieces.done]
            for each in group.members
        }
        text.append(report(name, {each: seeds for each, seeds in done.items() if seeds}) + "\n")
    write("hope-positions", "\n".join(text))


if __name__ == "__main__":
    main()
