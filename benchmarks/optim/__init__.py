"""The optimizers measured: a toy, forgetting of orthogonal tasks, a tuned comparison, and going on with another task."""
