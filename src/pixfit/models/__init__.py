"""Models: frozen settings that build plain networks.

`Siren(hidden_layers=4, hidden_features=256).build(generator=generator)` is a `torch.nn.Module` from coordinates
(N, 2) to colours (N, 3). `Hourglass().sized(height, width).build(generator=generator)` is one that knows no coordinates
and makes all pixels (H·W, 3) of one picture.
"""

from .base import Coordinates, Model
from .codes import CODES, AxisCode, BinaryCode, Code, LearnedCode, RingCode
from .conv import PRIORS, ConvDecoder, DeepDecoder, Descent, Hourglass, Perturbation, PicturePrior
from .coordinate import MODELS, Experts, Finer, Gauss, Mlp, Siren, Wire
from .cosines import Cosines
from .dip_variants import (
    VARIANTS,
    AutoencodingSequential,
    DoublyOverparameterised,
    PriorVariant,
    SelfGuided,
    TotalVariation,
)
from .encodings import ENCODINGS, Encoding, Fourier, Gabor, Grid, Positional, Raw
from .frozen import FrozenSiren
from .hyper import ENCODERS, ConvEncoder, Encoder, Hyper, SetEncoder
from .low_rank import LowRank
from .memory import Memory, MemoryCoordinates
from .meta import META_MODELS, Maml, MetaModel, Reptile, TiledCoordinates
from .tiles import Tiles

__all__ = [
    "CODES",
    "ENCODERS",
    "ENCODINGS",
    "META_MODELS",
    "MODELS",
    "PRIORS",
    "VARIANTS",
    "AutoencodingSequential",
    "AxisCode",
    "BinaryCode",
    "Code",
    "ConvDecoder",
    "ConvEncoder",
    "Coordinates",
    "Cosines",
    "DeepDecoder",
    "Descent",
    "DoublyOverparameterised",
    "Encoder",
    "Encoding",
    "Experts",
    "Finer",
    "Fourier",
    "FrozenSiren",
    "Gabor",
    "Gauss",
    "Grid",
    "Hourglass",
    "Hyper",
    "LearnedCode",
    "LowRank",
    "Maml",
    "Memory",
    "MemoryCoordinates",
    "MetaModel",
    "Mlp",
    "Model",
    "Perturbation",
    "PicturePrior",
    "Positional",
    "PriorVariant",
    "Raw",
    "Reptile",
    "RingCode",
    "SelfGuided",
    "SetEncoder",
    "Siren",
    "TiledCoordinates",
    "Tiles",
    "TotalVariation",
    "Wire",
]
