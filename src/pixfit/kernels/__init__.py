"""How the hot steps run: which matrix products, and how threads share a step."""

from pixfit.kernels.crew import Crew, crew_size
from pixfit.kernels.matmul import fast_bfloat16, fast_matmul, kernel_name

__all__ = ["Crew", "crew_size", "fast_bfloat16", "fast_matmul", "kernel_name"]
