"""How the hot steps run: which matrix products, how threads share a step, and networks as lists of layers."""

from pixfit.kernels.crew import Crew, crew_size
from pixfit.kernels.grid import neighbours
from pixfit.kernels.hourglass import HourglassShape, fast_maps, hourglass_pixels, maps_library, maps_name
from pixfit.kernels.matmul import fast_bfloat16, fast_matmul, kernel_name
from pixfit.kernels.numbers import without_subnormals
from pixfit.kernels.plan import Activation, Layer, Level, Lift, Plan

__all__ = [
    "Activation",
    "Crew",
    "HourglassShape",
    "Layer",
    "Level",
    "Lift",
    "Plan",
    "crew_size",
    "fast_bfloat16",
    "fast_maps",
    "fast_matmul",
    "hourglass_pixels",
    "kernel_name",
    "maps_library",
    "maps_name",
    "neighbours",
    "without_subnormals",
]
