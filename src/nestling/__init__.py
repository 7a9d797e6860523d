"""Nestling: models that keep learning. Nested Learning (Hope), Titans and MIRAS in PyTorch, on one abstraction."""
