"""Measurements of Hope."""
