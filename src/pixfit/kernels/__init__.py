"""The hot steps. For now one: which matrix multiplication torch uses on a CPU."""

from pixfit.kernels.matmul import fast_matmul, kernel_name

__all__ = ["fast_matmul", "kernel_name"]
