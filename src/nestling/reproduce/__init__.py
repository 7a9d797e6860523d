"""Tables of the papers, made anew by one command each: every model with the same budget, every figure with its spread."""
