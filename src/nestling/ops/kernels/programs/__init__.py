"""The kernels in Triton, an optional package: imported where they are launched, and nowhere else."""
