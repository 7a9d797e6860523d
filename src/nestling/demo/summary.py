"""The end of a demonstration, for the terminal."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from nestling.demo import words
from nestling.demo.results import Results


def show(results: Results, page: Path, console: Console | None = None) -> None:
    """Print what came out, in a table and in sentences; the same sentences as on the page."""
    console = console or Console(highlight=False)
    table = Table(title=f"{results.stream.package}, unseen, read once", title_justify="left", box=None, pad_edge=False)
    table.add_column("reader")
    for name in ("bits per byte", "first quarter", "last quarter"):
        table.add_column(name, justify="right")
    for reader in (results.stream.on, results.stream.off, results.stream.baseline):
        quarter = max(len(reader.windows) // 4, 1)
        ends = (reader.windows[:quarter], reader.windows[-quarter:])
        table.add_row(reader.name, f"{reader.bits_per_byte:.3f}", *(f"{sum(part) / quarter:.3f}" for part in ends))
    console.print()
    console.print(table)
    console.print()
    findings = Table.grid(padding=(0, 1))
    for sentence in words.findings(results):
        findings.add_row("•", Text(sentence))
    console.print(findings)
    console.print()
    console.print(Text(words.caveat(results), style="dim"))
    console.print()
    console.print(Text(f"{results.seconds:.0f} seconds. Report: {page}"), soft_wrap=True)
