"""How a picture becomes a measurement: linear operators with exact adjoints.

An operator is a frozen value. ``forward`` takes pictures ``(..., C, H, W)`` in [0, 1] to measurements, ``adjoint``
takes measurements back; ``⟨forward(x), y⟩ = ⟨x, adjoint(y)⟩`` for all x and y, which one test checks for every member
of `OPERATORS`. To add one, write a frozen dataclass with these methods and put it into the table. Objects of other
libraries with ``A`` and ``A_adjoint`` are taken as they are (`External`).
"""

from . import masks
from .base import Operator, Shape
from .blur import Blur, Boundary, gaussian_kernel, read_kernel
from .external import External, Physics
from .pointwise import Identity, Inpaint
from .radon import Radon
from .sampling import BoxDownsample, LanczosDownsample
from .sensing import GaussianSensing

__all__ = [
    "OPERATORS", "Blur", "Boundary", "BoxDownsample", "External", "GaussianSensing", "Identity", "Inpaint",
    "LanczosDownsample", "Operator", "Physics", "Radon", "Shape", "gaussian_kernel", "masks", "read_kernel",
]  # fmt: skip

OPERATORS: dict[str, type[Operator]] = {
    "Identity": Identity, "Inpaint": Inpaint, "BoxDownsample": BoxDownsample, "LanczosDownsample": LanczosDownsample,
    "Blur": Blur, "GaussianSensing": GaussianSensing, "Radon": Radon, "External": External,
}  # fmt: skip
