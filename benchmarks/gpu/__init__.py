"""Speed on a GPU: parity of the kernels, then training of whole models and of memories alone, in one run (``make gpu-bench``)."""
