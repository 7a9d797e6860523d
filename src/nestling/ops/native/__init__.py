"""Whole periods by a program in C, for processors: a thread for each memory, which goes through all its periods alone.

``periods.c`` is the program: ``products.h`` multiplies few rows with weights, ``chain.h`` is one period of one memory. ``library`` compiles
it at its first use; ``plan`` hands it tensors. ``ops.periods`` is the same mathematics in torch, and what it is tested against.
"""
