"""Models: frozen settings that build plain networks.

`Siren(hidden_layers=4, hidden_features=256).build(generator=generator)` is a `torch.nn.Module` from coordinates
(N, 2) to colours (N, 3).
"""

from .base import Coordinates, Model
from .coordinate import MODELS, Experts, Finer, Gauss, Mlp, Siren, Wire
from .encodings import ENCODINGS, Encoding, Fourier, Gabor, Grid, Positional, Raw

__all__ = [
    "ENCODINGS",
    "MODELS",
    "Coordinates",
    "Encoding",
    "Experts",
    "Finer",
    "Fourier",
    "Gabor",
    "Gauss",
    "Grid",
    "Mlp",
    "Model",
    "Positional",
    "Raw",
    "Siren",
    "Wire",
]
