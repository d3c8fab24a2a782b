"""Sine layers on frequencies that are drawn once and never trained."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from pixfit.kernels import Plan

from .base import Coordinates, TargetRange, check_kind, check_number
from .coordinate import CoordinateModel, Output
from .encodings import Fourier
from .networks import Network

__all__ = ["FrozenSiren", "FrozenSirenNetwork"]

_UNIT = Coordinates(range="unit")
_FOURIER = Fourier()


class FrozenSirenNetwork(Network):
    """sin(omega_0 (W x + b)) layers on an encoding of the coordinates, and a linear output."""

    def __init__(
        self,
        encoding: Network,
        encoded_features: int,
        out_features: int,
        widths: tuple[int, ...],
        omega_0: float = 30.0,
        output: str = "linear",
    ) -> None:
        super().__init__()
        self.encoding = encoding
        sizes = pairwise((encoded_features, *widths, out_features))
        self.layers = nn.ModuleList([nn.Linear(inputs, outputs) for inputs, outputs in sizes])
        self.omega_0, self.output = omega_0, output

    def reset_parameters(self, generator: torch.Generator) -> None:
        """The encoding as it says; weights U(±sqrt(6/fan_in)/omega_0), biases U(±1/sqrt(fan_in))."""
        self.encoding.reset_parameters(generator)
        for layer in self.layers:
            weight = layer.get_parameter("weight")
            fan_in = weight.shape[1]
            bound = math.sqrt(6.0 / fan_in) / self.omega_0
            nn.init.uniform_(weight, -bound, bound, generator=generator)
            bias = layer.get_parameter("bias")
            nn.init.uniform_(bias, -1.0 / math.sqrt(fan_in), 1.0 / math.sqrt(fan_in), generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        x = self.encoding(x)
        for layer in self.layers[:-1]:
            x = torch.sin(self.omega_0 * layer(x))
        x = self.layers[-1](x)
        return torch.sigmoid(x) if self.output == "sigmoid" else x


@dataclass(frozen=True)
class FrozenSiren(CoordinateModel):
    """SIREN whose first layer is a frozen frequency embedding (Novello et al., "Tuning the Frequencies", 2024).

    What the network can show is bounded by the frequencies, which training cannot move. They are normally distributed
    here; the publication draws whole numbers.

    encoding         the frequencies, as cosine and sine; they must not be trainable. Stored, not trained.
    hidden_layers    the network has hidden_layers + 1 sine layers after the embedding.
    hidden_omega_0   of all of them.
    """

    hidden_layers: int = 2
    hidden_features: int | tuple[int, ...] = 256
    encoding: Fourier = _FOURIER
    hidden_omega_0: float = 30.0
    output: Output = "linear"
    target_range: TargetRange = "signed"
    coordinates: Coordinates = _UNIT

    def __post_init__(self) -> None:
        super().__post_init__()
        check_kind(self, "encoding", Fourier)
        if self.encoding.trainable:
            raise ValueError("FrozenSiren.encoding: got trainable frequencies; set encoding.trainable to false")
        check_number(self, "hidden_omega_0", 0.0, 1e6, exclusive=True)

    def network(self, in_features: int = 2, out_features: int = 3) -> Network:
        encoding = self.encoding.network(in_features, self.coordinates)
        encoded = self.encoding.out_features(in_features)
        return FrozenSirenNetwork(encoding, encoded, out_features, self.widths, self.hidden_omega_0, self.output)

    def plan(self, in_features: int = 2, out_features: int = 3) -> Plan:
        lift = self.encoding.lift(in_features, self.coordinates)
        return self._plan(in_features, out_features, "sine", omegas=(self.hidden_omega_0,) * 2, lift=lift)
