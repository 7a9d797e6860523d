"""Evaluation: how well a model predicts text, and how that changes while it reads."""

from nestling.eval.perplexity import Carried, Fresh, Policy, score
from nestling.eval.score import Bucket, Score, even_edges, log_edges

__all__ = ["score", "Fresh", "Carried", "Policy", "Score", "Bucket", "even_edges", "log_edges"]
