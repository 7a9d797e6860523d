"""Measurements of whole recipes: every one trained alike, and what came out as one table."""
