"""Compile the kernels for a GPU that need not be there: ``python -m tests.ops.kernels.ahead walk:16:64 …``.

An argument is kernel:chunk:width of a head. What is printed is the compiler's own count for sm_90a, as JSON: bytes of registers that a
thread spills, its registers, bytes of shared memory. The interpreter must be off (TRITON_INTERPRET=0) before Triton is imported.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

import nestling.ops.kernels.programs.decays as decays
import nestling.ops.kernels.programs.delta_backward as delta_back
import nestling.ops.kernels.programs.delta_forward as delta
import nestling.ops.kernels.programs.mlp_backward as mlp_back
import nestling.ops.kernels.programs.mlp_forward as mlp
from nestling.ops.kernels import delta_op, mlp_op
from nestling.ops.kernels.delta import Cut
from nestling.ops.kernels.mlp import Two

P, F, N = "*bf16", "*fp32", "i32"


Kernel = tuple[Any, dict[str, Any], dict[str, Any], dict[str, int]]
"""(program, types, constants, options), as they are launched at width 64 or so of a head"""


def linear(chunk: int, width: int) -> dict[str, Kernel]:
    """Kernels of a linear memory"""
    launch = delta_op._Launch(128, 4096, width, width, Cut(chunk, "current", True))
    given, sizes = delta.Given(P, P, P, F, F, F), delta.Sizes(*[N] * 6)
    solved, passed = delta.Solved(P, P, P), delta.Passed(P, P, F, F)
    kept = delta_back.Kept(delta_back.Made(P, P, P, P), delta_back.Back(P, P, P))
    tiles = dict(zip(("C", "BK", "BV"), launch.tiles, strict=True))
    read, one = {**tiles, "READ": 0}, {"given": given, "sizes": sizes}
    ends = delta_back.Ends(F, F, F)
    return {
        "prepare": (delta.prepare, {**one, "solved": solved}, {**tiles, "KEEP": True}, launch.warps),
        "advance": (delta.advance, {**one, "solved": solved, "passed": passed, "start": F}, tiles, launch.warps),
        "look": (delta.look, {**one, "passed": passed, "y": P}, read, launch.warps),
        "told": (delta_back.told, {**one, "back": kept.back}, read, launch.warps),
        "retreat": (delta_back.retreat, {**one, "kept": kept, "ends": ends}, read, launch.warps),
        "derive": (delta_back.derive, {**one, "kept": kept, "by": given}, read, launch.warps),
    }


def layered(chunk: int, width: int) -> dict[str, Kernel]:
    """Kernels of a memory of two layers, four times as wide inside"""
    plan = mlp_op._Plan(128, 4096, (width, 4 * width, width), 4096 // chunk, chunk, Two(True, 1e-5, True, True))
    tables, held = mlp.Both(*[mlp.Coefficients(*[F] * 5)] * 2), mlp.Held(*[F] * 4)
    both = {"given": mlp.Given(P, P, P), "tables": tables, "some": mlp.Some(*[N] * 5), "sizes": mlp.Sizes(*[N] * 6)}
    forth, back = {**both, "held": held, "marks": held, "y": P}, mlp_back.Weights(held, held)
    by, logs = mlp_back.By(P, P, P, P, *tables), decays.Logs(F, F, F)
    warps = {"num_warps": 4 if chunk == 16 else 8}
    gates = {"logs": logs, "sizes": decays.Sizes(N, N, N)}
    return {
        "tables": (decays.tables, {**gates, "made": tables.first}, {"C": chunk}, warps),
        "tables_back": (decays.tables_back, {**gates, "back": tables.first, "by": logs}, {"C": chunk}, warps),
        "walk": (mlp.walk, forth, {"FORM": plan.form(looks=True)}, plan.warps),
        "retrace": (mlp_back.retrace, {**both, "weights": back, "by": by}, {"FORM": plan.back()}, plan.warps),
    }


def compiled(name: str, chunk: int, width: int) -> dict[str, Any]:
    """What the compiler says of one kernel"""
    program, types, constants, options = {**linear(chunk, width), **layered(chunk, width)}[name]
    signature = {each: types.get(each, "constexpr") for each in program.arg_names}
    fixed = {(program.arg_names.index(each),): value for each, value in constants.items()}
    source = ASTSource(fn=program, signature=signature, constexprs=fixed)
    built = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    assembler = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas-blackwell"
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(built.asm["ptx"])
        file.flush()
        command = [str(assembler), "-v", "--gpu-name=sm_90a", file.name, "-o", "/dev/null"]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stderr

    def count(pattern: str) -> int:
        found = re.search(pattern, told)
        return int(found.group(1)) if found else -1

    counts = {"spilt": count(r"(\d+) bytes spill stores"), "registers": count(r"Used (\d+) registers")}
    return {"kernel": name, "chunk": chunk, "width": width, **options, **counts, "shared": built.metadata.shared}


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        kernel, *numbers = argument.split(":")
        print(json.dumps(compiled(kernel, *map(int, numbers))), flush=True)
