"""``nestling describe``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nestling.cli.options import DescribeOptions
from nestling.cli.parser import Parser

if TYPE_CHECKING:
    from nestling.models import LM


def run(arguments: Sequence[str]) -> int:
    """Print the table of levels; see ``nestling describe --help``."""
    parser = Parser(
        "describe", "RECIPE|RUN [options]", "The levels of a model: what is updated, how often, and by what."
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--plot", help="draw it to this file, .svg or .png, and print nothing but its name")
    parser.add_class_arguments(DescribeOptions, as_positional=True)
    values = parser.read(arguments)
    options = parser.build(DescribeOptions, values)

    import torch

    from nestling.models import describe

    # Shapes are all that a description needs: 1.3 billion parameters cost neither memory nor time.
    with torch.device("meta"):
        system = describe(_model(options))
    if values.plot:
        print(system.plot(values.plot))
    else:
        print(system.json() if values.json else system)
    return 0


def _model(options: DescribeOptions) -> LM:
    from nestling.recipes import build, from_spec, recipes
    from nestling.train import Manifest, find

    if options.target not in recipes() and Path(options.target).is_dir():
        return from_spec(Manifest.read(find(options.target)).model)
    return build(options.target, options.size, options.vocab_size, **options.changes)
