"""Measurements: ratios side by side in one run, printed only after parity passed. Not part of the package."""
