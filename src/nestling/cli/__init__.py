"""The command line: ``nestling <command>``. Nothing heavy is imported before a command runs."""

from nestling.cli.dispatch import COMMANDS, main

__all__ = ["COMMANDS", "main"]
