"""Settings of the coordinate networks: colours as a function of position.

In all of them `hidden_layers` counts only the width -> width maps: the network has hidden_layers + 1 activations and
hidden_layers + 2 linear maps. `hidden_features` is the width, or a tuple of hidden_layers + 1 widths.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal, Self

import torch
from torch import Tensor

from pixfit.kernels import Activation, Layer, Lift, Plan

from .base import Coordinates, Model, TargetRange, check_choice, check_integer, check_kind, check_number, check_whole
from .encodings import Encoding, Fourier, Grid
from .networks import (
    ExpertsNetwork,
    FinerNetwork,
    GateNetwork,
    GaussNetwork,
    MlpNetwork,
    Network,
    SirenNetwork,
    WireNetwork,
)

__all__ = ["MODELS", "CoordinateModel", "Experts", "Finer", "Gauss", "Mlp", "Output", "Siren", "Wire"]

Output = Literal["linear", "sigmoid"]

_SIGNED = Coordinates()
_UNIT = Coordinates(range="unit")
_FOURIER = Fourier()
_DARKEST = 1 / 512  # of a picture's values, half a step of 8 bits, where the inverse of a sigmoid must not be infinite
_LIFTED = 1.5  # what a hidden unit adds to a stored plane in [-1, 1], so that it stays positive


class CoordinateModel(Model):
    """What the coordinate networks share; not a model by itself.

    hidden_layers    how many width -> width maps.
    hidden_features  the width, or hidden_layers + 1 widths.
    output           "linear", or "sigmoid" for values in [0, 1] whatever the weights.
    """

    hidden_layers: int
    hidden_features: int | tuple[int, ...]
    output: Output

    def __post_init__(self) -> None:
        check_integer(self, "hidden_layers", 0, 256)
        if isinstance(self.hidden_features, tuple):
            if len(self.hidden_features) != self.hidden_layers + 1:
                raise ValueError(
                    f"{type(self).__name__}.hidden_features: got {len(self.hidden_features)} widths, allowed one width "
                    f"or hidden_layers + 1 = {self.hidden_layers + 1} of them"
                )
            for width in self.hidden_features:
                check_whole(f"{type(self).__name__}.hidden_features", width, 1, 65536)
        else:
            check_integer(self, "hidden_features", 1, 65536)
        check_choice(self, "output", ("linear", "sigmoid"))
        check_choice(self, "target_range", ("signed", "unit"))
        check_kind(self, "coordinates", Coordinates)
        if self.output == "sigmoid" and self.target_range == "signed":
            raise ValueError(
                f"{type(self).__name__}.output: got 'sigmoid' (values in [0, 1]) with target_range 'signed'; "
                "use target_range 'unit' or output 'linear'"
            )

    @property
    def widths(self) -> tuple[int, ...]:
        """The hidden_layers + 1 widths."""
        if isinstance(self.hidden_features, tuple):
            return self.hidden_features
        return (self.hidden_features,) * (self.hidden_layers + 1)

    def _plan(
        self,
        in_features: int,
        out_features: int,
        activation: Activation,
        *,
        omegas: tuple[float, float] = (1.0, 1.0),
        lift: Lift | None = None,
        norm: Literal["none", "layer", "rms"] = "none",
        norm_first: bool = False,
        skip: bool = False,
        prefix: str = "",
    ) -> Plan:
        """Hidden layers, alike but for the first omega and the skip from the second on, and the output's map.

        `prefix` is of the names in the `state_dict`; without a lift the first layer takes the coordinates.
        """
        _check_sizes(in_features, out_features)
        lift = Lift("raw", in_features) if lift is None else lift
        layers = []
        for number, (inputs, outputs) in enumerate(pairwise((lift.features, *self.widths, out_features))):
            layer = Layer(inputs, outputs, f"{prefix}layers.{number}.weight", f"{prefix}layers.{number}.bias")
            if number <= self.hidden_layers:
                layer = replace(
                    layer,
                    activation=activation,
                    omega=omegas[min(number, 1)],
                    norm=norm,
                    norm_first=norm_first,
                    gain=None if norm == "none" else f"{prefix}norms.{number}.weight",
                    shift=f"{prefix}norms.{number}.bias" if norm == "layer" else None,
                    skip=skip and number > 0,
                )
            layers.append(layer)
        return Plan(in_features, lift, tuple(layers), self.output)


def _check_sizes(in_features: int, out_features: int) -> None:
    check_whole("in_features", in_features, 1, 65536)
    check_whole("out_features", out_features, 1, 65536)


@dataclass(frozen=True)
class Siren(CoordinateModel):
    """Sine layers sin(omega_0 (W x + b)) (Sitzmann et al., NeurIPS 2020).

    Initial weights: the first U(±1/fan_in), later ones, the output's included, U(±sqrt(6/fan_in)/hidden_omega_0),
    all biases U(±1/sqrt(fan_in)).
    """

    hidden_layers: int = 4
    hidden_features: int | tuple[int, ...] = 256
    first_omega_0: float = 30.0
    hidden_omega_0: float = 30.0
    output: Output = "linear"
    target_range: TargetRange = "signed"
    coordinates: Coordinates = _SIGNED

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self, "first_omega_0", 0.0, 1e6, exclusive=True)
        check_number(self, "hidden_omega_0", 0.0, 1e6, exclusive=True)

    @classmethod
    def bottleneck(cls, features: int = 480, ratio: int = 10, **settings: Any) -> Self:
        """Five sine layers of which the middle one is narrow, features // ratio: what passes it is an embedding."""
        check_whole("features", features, 1, 65536)
        check_whole("ratio", ratio, 1, features)
        widths = (features, features, features // ratio, features, features)
        return cls(hidden_layers=4, hidden_features=widths, **settings)

    def network(self, in_features: int = 2, out_features: int = 3) -> Network:
        _check_sizes(in_features, out_features)
        return SirenNetwork(
            in_features, out_features, self.widths, self.first_omega_0, self.hidden_omega_0, self.output
        )

    def plan(self, in_features: int = 2, out_features: int = 3) -> Plan:
        return self._plan(in_features, out_features, "sine", omegas=(self.first_omega_0, self.hidden_omega_0))


@dataclass(frozen=True)
class Finer(CoordinateModel):
    """Variable-periodic layers sin(omega_0 (|z| + 1) z) with z = W x + b (FINER, Liu et al., CVPR 2024).

    first_bias_scale  the first bias is U(±first_bias_scale), which chooses the frequencies of the first layer; None
                      keeps the default U(±1/sqrt(fan_in)), as the authors' program does unless told otherwise. All
                      else starts as in `Siren`.
    scale_gradient    whether gradients pass through the factor |z| + 1. The authors' program treats it as a constant
                      unless told otherwise, which is the default here; True is the derivative of the formula.
    """

    hidden_layers: int = 4
    hidden_features: int | tuple[int, ...] = 256
    first_omega_0: float = 30.0
    hidden_omega_0: float = 30.0
    first_bias_scale: float | None = 5.0
    scale_gradient: bool = False
    output: Output = "linear"
    target_range: TargetRange = "signed"
    coordinates: Coordinates = _SIGNED

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self, "first_omega_0", 0.0, 1e6, exclusive=True)
        check_number(self, "hidden_omega_0", 0.0, 1e6, exclusive=True)
        if self.first_bias_scale is not None:
            check_number(self, "first_bias_scale", 0.0, 1e6)
        check_kind(self, "scale_gradient", bool)

    def network(self, in_features: int = 2, out_features: int = 3) -> Network:
        _check_sizes(in_features, out_features)
        return FinerNetwork(
            in_features,
            out_features,
            self.widths,
            self.first_omega_0,
            self.hidden_omega_0,
            self.first_bias_scale,
            self.scale_gradient,
            self.output,
        )

    def plan(self, in_features: int = 2, out_features: int = 3) -> Plan:
        activation: Activation = "finer_exact" if self.scale_gradient else "finer"
        return self._plan(in_features, out_features, activation, omegas=(self.first_omega_0, self.hidden_omega_0))


@dataclass(frozen=True)
class Wire(CoordinateModel):
    """Complex Gabor wavelets exp(j omega_0 z - |scale z|^2) (WIRE, Saragadam et al., CVPR 2023).

    hidden_features counts complex numbers and is used as given; the authors' program divides what it is given by
    sqrt(2) first, so that its 256 is 181 here. The first map is real, the output is the real part. Counts of
    parameters are of real numbers; the output's imaginary bias, which has no effect, does not exist.
    All maps start with PyTorch's defaults.
    """

    hidden_layers: int = 4
    hidden_features: int | tuple[int, ...] = 181
    first_omega_0: float = 20.0
    hidden_omega_0: float = 20.0
    scale: float = 10.0
    output: Output = "linear"
    target_range: TargetRange = "signed"
    coordinates: Coordinates = _SIGNED

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self, "first_omega_0", 0.0, 1e6)
        check_number(self, "hidden_omega_0", 0.0, 1e6)
        check_number(self, "scale", 0.0, 1e6)

    def network(self, in_features: int = 2, out_features: int = 3) -> Network:
        _check_sizes(in_features, out_features)
        return WireNetwork(
            in_features, out_features, self.widths, self.first_omega_0, self.hidden_omega_0, self.scale, self.output
        )


@dataclass(frozen=True)
class Gauss(CoordinateModel):
    """Gaussian layers exp(-(scale z)^2) with z = W x + b (Ramasinghe and Lucey, ECCV 2022).

    All maps start with PyTorch's defaults.
    """

    hidden_layers: int = 4
    hidden_features: int | tuple[int, ...] = 256
    scale: float = 30.0
    output: Output = "linear"
    target_range: TargetRange = "signed"
    coordinates: Coordinates = _SIGNED

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self, "scale", 0.0, 1e6, exclusive=True)

    def network(self, in_features: int = 2, out_features: int = 3) -> Network:
        _check_sizes(in_features, out_features)
        return GaussNetwork(in_features, out_features, self.widths, self.scale, self.output)

    def plan(self, in_features: int = 2, out_features: int = 3) -> Plan:
        return self._plan(in_features, out_features, "gauss", omegas=(self.scale, self.scale))


@dataclass(frozen=True)
class Experts:
    """Several perceptrons mixed by a softmax gate over the raw coordinates; with one expert the gate has no effect.

    count          how many experts share the encoding.
    gate_norm      "layer" normalises the coordinate vector first. Of two coordinates that leaves only sign(x - y), so
                   such a gate can tell above the diagonal from below it and no more; kept to reproduce the published
                   recipe.
    gate_features  width of the gate's hidden layer (GELU).
    """

    count: int = 2
    gate_norm: Literal["none", "layer"] = "none"
    gate_features: int = 128

    def __post_init__(self) -> None:
        check_integer(self, "count", 1, 256)
        check_choice(self, "gate_norm", ("none", "layer"))
        check_integer(self, "gate_features", 1, 65536)


@dataclass(frozen=True)
class Mlp(CoordinateModel):
    """A multilayer perceptron over encoded coordinates, optionally a mixture of several.

    encoding       see `pixfit.models.encodings`.
    activation     "relu", "gelu" (the exact, erf form) or "silu".
    norm           "layer" or "rms" after every hidden map (epsilon 1e-5, trainable scale).
    norm_position  "post": after the activation; "pre": before it.
    skip           h <- (h_new + h_old) / sqrt(2) from the second hidden layer on, after the norm; needs equal widths.
    experts        None for one network without a gate.

    All maps start with PyTorch's defaults.
    """

    hidden_layers: int = 3
    hidden_features: int | tuple[int, ...] = 256
    encoding: Encoding = _FOURIER
    activation: Literal["relu", "gelu", "silu"] = "relu"
    norm: Literal["none", "layer", "rms"] = "none"
    norm_position: Literal["post", "pre"] = "post"
    skip: bool = False
    experts: Experts | None = None
    output: Output = "sigmoid"
    target_range: TargetRange = "unit"
    coordinates: Coordinates = _UNIT

    def __post_init__(self) -> None:
        super().__post_init__()
        check_kind(self, "encoding", Encoding)
        check_choice(self, "activation", ("relu", "gelu", "silu"))
        check_choice(self, "norm", ("none", "layer", "rms"))
        check_choice(self, "norm_position", ("post", "pre"))
        check_kind(self, "skip", bool)
        check_kind(self, "experts", Experts, type(None))
        if self.skip and len(set(self.widths)) > 1:
            raise ValueError(f"Mlp.skip: got hidden_features {self.widths}; a skip needs equal widths")

    def network(self, in_features: int = 2, out_features: int = 3) -> Network:
        _check_sizes(in_features, out_features)
        encoding = self.encoding.network(in_features, self.coordinates)
        encoded = self.encoding.out_features(in_features)
        layers = (self.widths, self.activation, self.norm, self.norm_position, self.skip, self.encoding.raw)
        if self.experts is None:
            return MlpNetwork(encoded, out_features, *layers, self.output, encoding)
        count = self.experts.count
        experts = tuple(MlpNetwork(encoded, out_features, *layers) for _ in range(count))
        gate = GateNetwork(in_features, count, self.experts.gate_features, self.experts.gate_norm)
        return ExpertsNetwork(encoding, experts, gate, self.output)

    def plan(self, in_features: int = 2, out_features: int = 3) -> Plan | None:
        lift = self.encoding.lift(in_features, self.coordinates)
        if lift is None or (self.experts is not None and self.experts.count > 1):
            return None
        return self._plan(
            in_features,
            out_features,
            self.activation,
            lift=lift,
            norm=self.norm,
            norm_first=self.norm != "none" and self.norm_position == "pre",
            skip=self.skip,
            prefix="" if self.experts is None else "experts.0.",  # a single expert's gate is 1
        )

    def from_picture(self, picture: Tensor, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The grid's finest features hold the picture's principal colour planes, and one hidden unit a plane passes it
        on, kept where a ReLU is linear. Colours come at the resolution of their feature: with two features at the
        picture's own and the next ones at half of it, the third plane is stored at half of it.
        """
        grid, plain = self.encoding, self.norm == "none" and not self.skip and self.experts is None
        if not (isinstance(grid, Grid) and plain and self.activation == "relu" and grid.stores):
            return super().from_picture(picture, weights)
        wanted = self.to_target(picture.double())
        if self.output == "sigmoid":
            wanted = torch.logit(wanted, eps=_DARKEST)
        mean = wanted.mean(dim=(1, 2))
        centred = wanted - mean[:, None, None]
        _, basis = torch.linalg.eigh(centred.flatten(1) @ centred.flatten(1).T)
        basis = basis.flip(1)  # (C, K), most variance first
        found = {name: value.clone() for name, value in weights.items()}
        names = [f"layers.{number}" for number in range(self.hidden_layers + 2)]
        starts = [sum(level[-1] for level in grid.levels[:number]) for number in range(len(grid.levels))]
        found[f"{names[-1]}.weight"].zero_()
        found[f"{names[-1]}.bias"].copy_(mean)
        for unit, (level, feature) in enumerate(grid.stores[: min(len(basis), *self.widths)]):
            plane = torch.einsum("c,chw->hw", basis[:, unit], centred)
            size = max(float(plane.abs().max()), _DARKEST)
            table = found[f"encoding.tables.{level}"]
            table[:, feature] = grid.nearest(level, plane / size, self.coordinates).flatten()
            for number, name in enumerate(names[:-1]):
                found[f"{name}.weight"][unit] = 0.0
                found[f"{name}.weight"][unit, unit if number else starts[level] + feature] = 1.0
                found[f"{name}.bias"][unit] = 0.0 if number else _LIFTED
            found[f"{names[-1]}.weight"][:, unit] = size * basis[:, unit]
            found[f"{names[-1]}.bias"] -= _LIFTED * size * basis[:, unit]
        return found


MODELS: dict[str, type[Model]] = {"Siren": Siren, "Finer": Finer, "Wire": Wire, "Gauss": Gauss, "Mlp": Mlp}
