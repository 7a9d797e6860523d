"""The project's own files, as the house tests read them."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeAlias

ROOT = Path(__file__).resolve().parents[2]

Function: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef
Documented: TypeAlias = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Source:
    """One Python file: its path inside the repository, its text and its syntax tree."""

    path: str
    text: str

    @property
    def tree(self) -> ast.Module:
        return _parse(self.text)

    @property
    def module(self) -> str:
        """The dotted name, for files under src."""
        return ".".join(Path(self.path).with_suffix("").parts[1:]).removesuffix(".__init__")

    def functions(self) -> list[Function]:
        return [node for node in ast.walk(self.tree) if isinstance(node, Function)]

    def documented(self) -> Iterator[tuple[str, Documented]]:
        """The module, and every class and function that is not inside a function, with their names."""
        yield self.module, self.tree
        yield from _inside(self.module, self.tree)

    def at(self, node: ast.expr | ast.stmt) -> str:
        return f"{self.path}:{node.lineno}"


@cache
def _parse(text: str) -> ast.Module:
    return ast.parse(text)


def _inside(name: str, node: ast.Module | ast.ClassDef) -> Iterator[tuple[str, Documented]]:
    for child in node.body:
        match child:
            case ast.ClassDef():
                yield f"{name}.{child.name}", child
                yield from _inside(f"{name}.{child.name}", child)
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                yield f"{name}.{child.name}", child


@cache
def sources() -> tuple[Source, ...]:
    """Every Python file of the package."""
    paths = sorted((ROOT / "src").rglob("*.py"))
    return tuple(Source(path.relative_to(ROOT).as_posix(), path.read_text("utf-8")) for path in paths)


@cache
def files() -> tuple[Path, ...]:
    """Every text file that belongs to the repository: what git tracks or would add."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode == 0:
        paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    else:  # an unpacked archive
        paths = [path for folder in ("src", "tests", "docs") for path in (ROOT / folder).rglob("*")]
    return tuple(sorted(path for path in paths if path.is_file() and b"\0" not in path.read_bytes()[:8192]))
