"""Data that is made, not read: every example from a seed."""
