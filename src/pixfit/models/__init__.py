"""Models: frozen settings that build plain networks.

`Siren(hidden_layers=4, hidden_features=256).build(generator=generator)` is a `torch.nn.Module` from coordinates
(N, 2) to colours (N, 3). `Hourglass().sized(height, width).build(generator=generator)` is one that knows no coordinates
and makes all pixels (H·W, 3) of one picture.
"""

from .base import Coordinates, Model
from .conv import PRIORS, ConvDecoder, DeepDecoder, Hourglass, Perturbation, PicturePrior
from .coordinate import MODELS, Experts, Finer, Gauss, Mlp, Siren, Wire
from .encodings import ENCODINGS, Encoding, Fourier, Gabor, Grid, Positional, Raw
from .meta import META_MODELS, Maml, MetaModel, Reptile, TiledCoordinates

__all__ = [
    "ENCODINGS",
    "META_MODELS",
    "MODELS",
    "PRIORS",
    "ConvDecoder",
    "Coordinates",
    "DeepDecoder",
    "Encoding",
    "Experts",
    "Finer",
    "Fourier",
    "Gabor",
    "Gauss",
    "Grid",
    "Hourglass",
    "Maml",
    "MetaModel",
    "Mlp",
    "Model",
    "Perturbation",
    "PicturePrior",
    "Positional",
    "Raw",
    "Reptile",
    "Siren",
    "TiledCoordinates",
    "Wire",
]
