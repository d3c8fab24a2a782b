"""The networks of the coordinate models as plain modules.

This file needs nothing but torch: copied beside a state_dict, it runs the network without pixfit. Constructors take
plain numbers, texts and tuples (and an encoding module); the forward passes use no complex numbers, no random numbers
and no shapes that depend on data, so they can be stacked with torch.func.vmap and exported.

Shapes: N samples, `in_features` coordinates each; leading dimensions other than N pass through.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "ComplexLinear",
    "CoordinateLinear",
    "ExpertsNetwork",
    "FinerNetwork",
    "FourierEncoding",
    "GaborEncoding",
    "GateNetwork",
    "GaussNetwork",
    "GridEncoding",
    "MlpNetwork",
    "Network",
    "PositionalEncoding",
    "RawEncoding",
    "RmsNorm",
    "SirenNetwork",
    "WireNetwork",
]


class Network(nn.Module):
    """A module that sets all its parameters and buffers from a generator."""

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Draw the initial values from the generator alone."""
        raise NotImplementedError


class CoordinateLinear(nn.Linear):
    """A linear map of coordinates, in full precision under autocast too: bfloat16 cannot tell 512 columns apart."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_autocast_enabled(x.device.type):
            with torch.autocast(x.device.type, enabled=False):
                return super().forward(x)
        return super().forward(x)


class RmsNorm(nn.RMSNorm):
    """Root-mean-square normalisation in the number format of its weight: full precision under autocast too."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(cast(Tensor, self.weight).dtype))


def _reset_linear(layer: nn.Module, generator: torch.Generator) -> None:
    """PyTorch's default: weight and bias U(±1/sqrt(fan_in))."""
    weight = layer.get_parameter("weight")
    bound = 1.0 / math.sqrt(weight.shape[1])
    nn.init.uniform_(weight, -bound, bound, generator=generator)
    nn.init.uniform_(layer.get_parameter("bias"), -bound, bound, generator=generator)


def _reset_sine(layers: nn.ModuleList, hidden_omega_0: float, generator: torch.Generator) -> None:
    """First weight U(±1/fan_in), later ones U(±sqrt(6/fan_in)/hidden_omega_0), biases U(±1/sqrt(fan_in))."""
    for number, layer in enumerate(layers):
        _reset_linear(layer, generator)
        weight = layer.get_parameter("weight")
        fan_in = weight.shape[1]
        bound = 1.0 / fan_in if number == 0 else math.sqrt(6.0 / fan_in) / hidden_omega_0
        nn.init.uniform_(weight, -bound, bound, generator=generator)


def _finish(x: Tensor, output: str) -> Tensor:
    return torch.sigmoid(x) if output == "sigmoid" else x


def _linear_maps(in_features: int, out_features: int, widths: tuple[int, ...], *, raw: bool = True) -> nn.ModuleList:
    """Maps in_features -> widths[0] -> ... -> widths[-1] -> out_features; `raw` says that the input is coordinates."""
    first = CoordinateLinear if raw else nn.Linear
    layers: list[nn.Module] = [first(in_features, widths[0])]
    layers += [nn.Linear(a, b) for a, b in pairwise(widths)]
    return nn.ModuleList([*layers, nn.Linear(widths[-1], out_features)])


class SirenNetwork(Network):
    """sin(omega_0 (W x + b)) layers and a linear output (Sitzmann et al., NeurIPS 2020)."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        widths: tuple[int, ...],
        first_omega_0: float = 30.0,
        hidden_omega_0: float = 30.0,
        output: str = "linear",
    ) -> None:
        super().__init__()
        self.layers = _linear_maps(in_features, out_features, widths)
        self.first_omega_0 = first_omega_0
        self.hidden_omega_0 = hidden_omega_0
        self.output = output

    def reset_parameters(self, generator: torch.Generator) -> None:
        """First weight U(±1/fan_in), later ones U(±sqrt(6/fan_in)/hidden_omega_0), biases U(±1/sqrt(fan_in))."""
        _reset_sine(self.layers, self.hidden_omega_0, generator)

    def forward(self, x: Tensor) -> Tensor:
        omega = self.first_omega_0
        for layer in self.layers[:-1]:
            x = torch.sin(omega * layer(x))
            omega = self.hidden_omega_0
        return _finish(self.layers[-1](x), self.output)


class FinerNetwork(Network):
    """sin(omega_0 (|z| + 1) z) layers with z = W x + b, and a linear output (Liu et al., CVPR 2024)."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        widths: tuple[int, ...],
        first_omega_0: float = 30.0,
        hidden_omega_0: float = 30.0,
        first_bias_scale: float | None = None,
        scale_gradient: bool = False,
        output: str = "linear",
    ) -> None:
        super().__init__()
        self.layers = _linear_maps(in_features, out_features, widths)
        self.first_omega_0 = first_omega_0
        self.hidden_omega_0 = hidden_omega_0
        self.first_bias_scale = first_bias_scale
        self.scale_gradient = scale_gradient
        self.output = output

    def reset_parameters(self, generator: torch.Generator) -> None:
        """As SIREN, but the first bias is U(±first_bias_scale) where that is given."""
        _reset_sine(self.layers, self.hidden_omega_0, generator)
        if self.first_bias_scale is not None:
            bound = self.first_bias_scale
            nn.init.uniform_(self.layers[0].get_parameter("bias"), -bound, bound, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        omega = self.first_omega_0
        for layer in self.layers[:-1]:
            z = layer(x)
            scale = z.abs() + 1.0
            if not self.scale_gradient:
                scale = scale.detach()
            x = torch.sin(omega * scale * z)
            omega = self.hidden_omega_0
        return _finish(self.layers[-1](x), self.output)


class GaussNetwork(Network):
    """exp(-(scale z)^2) layers with z = W x + b, and a linear output (Ramasinghe and Lucey, ECCV 2022)."""

    def __init__(
        self, in_features: int, out_features: int, widths: tuple[int, ...], scale: float = 30.0, output: str = "linear"
    ) -> None:
        super().__init__()
        self.layers = _linear_maps(in_features, out_features, widths)
        self.scale = scale
        self.output = output

    def reset_parameters(self, generator: torch.Generator) -> None:
        """PyTorch's defaults."""
        for layer in self.layers:
            _reset_linear(layer, generator)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = torch.exp(-((self.scale * layer(x)) ** 2))
        return _finish(self.layers[-1](x), self.output)


class ComplexLinear(Network):
    """A complex linear map of (..., 2 in_features) real numbers, real parts first, to (..., 2 out_features).

    `real_output` gives the real part alone, (..., out_features); the imaginary bias then has no effect and is left out.
    """

    def __init__(self, in_features: int, out_features: int, real_output: bool = False) -> None:
        super().__init__()
        self.in_features = in_features
        self.real_output = real_output
        self.weight_real = nn.Parameter(torch.empty(out_features, in_features))
        self.weight_imag = nn.Parameter(torch.empty(out_features, in_features))
        self.bias_real = nn.Parameter(torch.empty(out_features))
        if not real_output:
            self.bias_imag = nn.Parameter(torch.empty(out_features))

    def reset_parameters(self, generator: torch.Generator) -> None:
        """PyTorch's default for a complex linear layer: each part U(±1/sqrt(in_features))."""
        bound = 1.0 / math.sqrt(self.in_features)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        to_real = torch.cat([self.weight_real, -self.weight_imag], dim=1)
        if self.real_output:
            return F.linear(x, to_real, self.bias_real)
        to_imag = torch.cat([self.weight_imag, self.weight_real], dim=1)
        return F.linear(x, torch.cat([to_real, to_imag]), torch.cat([self.bias_real, self.bias_imag]))


class WireNetwork(Network):
    """Complex Gabor layers exp(j omega_0 z - |scale z|^2); the output is the real part (Saragadam et al., CVPR 2023).

    The first map is real; the others are complex. `widths` counts complex numbers.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        widths: tuple[int, ...],
        first_omega_0: float = 20.0,
        hidden_omega_0: float = 20.0,
        scale: float = 10.0,
        output: str = "linear",
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [CoordinateLinear(in_features, widths[0])]
        layers += [ComplexLinear(a, b) for a, b in pairwise(widths)]
        self.layers = nn.ModuleList([*layers, ComplexLinear(widths[-1], out_features, real_output=True)])
        self.first_omega_0 = first_omega_0
        self.hidden_omega_0 = hidden_omega_0
        self.scale = scale
        self.output = output

    def reset_parameters(self, generator: torch.Generator) -> None:
        """PyTorch's defaults for real and complex linear layers."""
        _reset_linear(self.layers[0], generator)
        for layer in self.layers[1:]:
            cast(Network, layer).reset_parameters(generator)

    def forward(self, x: Tensor) -> Tensor:
        z = self.layers[0](x)
        phase = self.first_omega_0 * z
        x = torch.exp(-((self.scale * z) ** 2))
        x = torch.cat([x * torch.cos(phase), x * torch.sin(phase)], dim=-1)
        for layer in self.layers[1:-1]:
            real, imag = layer(x).chunk(2, dim=-1)
            phase = self.hidden_omega_0 * real
            x = torch.exp(-self.hidden_omega_0 * imag - self.scale**2 * (real * real + imag * imag))
            x = torch.cat([x * torch.cos(phase), x * torch.sin(phase)], dim=-1)
        return _finish(self.layers[-1](x), self.output)


class RawEncoding(Network):
    """The coordinates themselves."""

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Nothing to set."""

    def forward(self, x: Tensor) -> Tensor:
        return x


class FourierEncoding(Network):
    """[cos 2 pi f.x, sin 2 pi f.x] of `features` / 2 frequencies f ~ N(0, freq_scale^2) (Tancik et al., NeurIPS 2020).

    The phase is a sum of products, not a matrix product, which autocast and TF32 would round to a few bits.
    """

    frequencies: Tensor

    def __init__(self, in_features: int, features: int, freq_scale: float, trainable: bool = False) -> None:
        super().__init__()
        self.freq_scale = freq_scale
        frequencies = torch.empty(in_features, features // 2)
        if trainable:
            self.frequencies = nn.Parameter(frequencies)
        else:
            self.register_buffer("frequencies", frequencies)

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Draw the frequencies."""
        nn.init.normal_(self.frequencies, 0.0, self.freq_scale, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        frequencies = (2.0 * math.pi) * self.frequencies
        phase = x[..., 0:1] * frequencies[0]
        for axis in range(1, frequencies.shape[0]):
            phase = phase + x[..., axis : axis + 1] * frequencies[axis]
        return torch.cat([torch.cos(phase), torch.sin(phase)], dim=-1)


class GaborEncoding(Network):
    """exp(-|d|^2 / (2 sigma^2)) [cos 2 pi f.d, sin 2 pi f.d] with d = x - c of `features` / 2 centres c.

    The centres are uniform on [low, high] per axis, the frequencies f ~ N(0, freq_scale^2).
    """

    centres: Tensor
    frequencies: Tensor

    def __init__(
        self,
        in_features: int,
        features: int,
        freq_scale: float,
        sigma: float,
        low: float = 0.0,
        high: float = 1.0,
        trainable: bool = False,
    ) -> None:
        super().__init__()
        self.freq_scale = freq_scale
        self.sigma = sigma
        self.low = low
        self.high = high
        for name in ("centres", "frequencies"):
            values = torch.empty(in_features, features // 2)
            if trainable:
                self.register_parameter(name, nn.Parameter(values))
            else:
                self.register_buffer(name, values)

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Draw the centres and the frequencies."""
        nn.init.uniform_(self.centres, self.low, self.high, generator=generator)
        nn.init.normal_(self.frequencies, 0.0, self.freq_scale, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        frequencies = (2.0 * math.pi) * self.frequencies
        offset = x[..., 0:1] - self.centres[0]
        phase, square = offset * frequencies[0], offset * offset
        for axis in range(1, frequencies.shape[0]):
            offset = x[..., axis : axis + 1] - self.centres[axis]
            phase, square = phase + offset * frequencies[axis], square + offset * offset
        envelope = torch.exp(square * (-0.5 / self.sigma**2))
        return torch.cat([envelope * torch.cos(phase), envelope * torch.sin(phase)], dim=-1)


class PositionalEncoding(Network):
    """[x, sin 2^k pi x, cos 2^k pi x] for k = 0 ... octaves - 1 on every axis (Mildenhall et al., ECCV 2020)."""

    def __init__(self, octaves: int, include_input: bool = True) -> None:
        super().__init__()
        self.octaves = octaves
        self.include_input = include_input

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Nothing to set."""

    def forward(self, x: Tensor) -> Tensor:
        bands = math.pi * torch.exp2(torch.arange(self.octaves, dtype=x.dtype, device=x.device))
        phase = (x.unsqueeze(-1) * bands).flatten(-2)
        waves = [torch.sin(phase), torch.cos(phase)]
        return torch.cat([x, *waves] if self.include_input else waves, dim=-1)


class GridEncoding(Network):
    """Features interpolated between the vertices of grids, a table a level (Mueller et al., SIGGRAPH 2022).

    `levels` are (rows, columns, features) and `entries` the largest table, which the vertices of larger levels share by
    a hash; `row_axis` says which of the two coordinates in [low, high] is the row's. The numbers keep their format
    under autocast.
    """

    def __init__(
        self,
        levels: tuple[tuple[int, ...], ...],
        entries: int | None = None,
        interpolation: str = "linear",
        alignment: str = "center",
        init: float = 1e-4,
        row_axis: int = 1,
        low: float = 0.0,
        high: float = 1.0,
    ) -> None:
        super().__init__()
        self.levels = levels
        self.entries = entries
        self.interpolation = interpolation
        self.alignment = alignment
        self.init = init
        self.row_axis = row_axis
        self.low = low
        self.high = high
        sizes = [(rows * columns, features) for rows, columns, features in levels]
        sizes = [(vertices if entries is None else min(vertices, entries), features) for vertices, features in sizes]
        self.tables = nn.ParameterList([nn.Parameter(torch.empty(size)) for size in sizes])

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Draw all numbers from U(±init)."""
        for table in self.tables:
            nn.init.uniform_(table, -self.init, self.init, generator=generator)

    def _taps(self, t: Tensor, vertices: int) -> tuple[Tensor, Tensor]:
        """Numbers and weights (K, N) of the K vertices along a side that samples at t (N,) in [0, 1] lie between."""
        position = t * vertices - 0.5 if self.alignment == "center" else t * (vertices - 1)
        first = position.floor()
        f = position - first
        if self.interpolation == "linear":
            weights = [1.0 - f, f]
        elif self.interpolation == "spline":  # uniform cubic B-spline
            g = 1.0 - f
            near, far = (0.5 * f - 1.0) * f * f + 2.0 / 3.0, (0.5 * g - 1.0) * g * g + 2.0 / 3.0
            weights = [g * g * g / 6.0, near, far, f * f * f / 6.0]
        else:  # Catmull-Rom
            before, after = ((1.0 - 0.5 * f) * f - 0.5) * f, (0.5 * f - 0.5) * f * f
            weights = [before, (1.5 * f - 2.5) * f * f + 1.0, ((2.0 - 1.5 * f) * f + 0.5) * f, after]
        start = 1 - len(weights) // 2
        index = torch.stack([first.long() + (start + number) for number in range(len(weights))])
        return index.clamp(0, vertices - 1), torch.stack(weights)

    def forward(self, x: Tensor) -> Tensor:
        t = ((x.reshape(-1, 2) - self.low) / (self.high - self.low)).clamp(0.0, 1.0)
        features = []
        for (rows, columns, size), table in zip(self.levels, self.tables, strict=True):
            row, row_weights = self._taps(t[:, self.row_axis], rows)
            column, column_weights = self._taps(t[:, 1 - self.row_axis], columns)
            if table.shape[0] == rows * columns:
                index = row[:, None] * columns + column
            else:
                index = (column ^ (row[:, None] * 2654435761 & 0xFFFFFFFF)) % table.shape[0]
            # Corners first, so that the sums over them add up long rows.
            values = table.index_select(0, index.reshape(-1)).reshape(*index.shape, size)
            weights = row_weights[:, None] * column_weights
            features.append((values * weights[..., None]).sum(dim=(0, 1)))
        return torch.cat(features, dim=-1).reshape(*x.shape[:-1], sum(level[-1] for level in self.levels))


class MlpNetwork(Network):
    """Linear maps with an activation and optional normalisation between them, after an encoding of the coordinates.

    `encoded_features` is the size of the encoding's output; without an encoding the input is taken as encoded already.
    `skip` adds a layer's input to its output, h <- (h_new + h_old) / sqrt(2), from the second hidden layer on.
    `raw` says that the encoding passes coordinates on, which the first map must then not round under autocast.
    """

    def __init__(
        self,
        encoded_features: int,
        out_features: int,
        widths: tuple[int, ...],
        activation: str = "relu",
        norm: str = "none",
        norm_position: str = "post",
        skip: bool = False,
        raw: bool = False,
        output: str = "linear",
        encoding: Network | None = None,
    ) -> None:
        super().__init__()
        self.encoding = RawEncoding() if encoding is None else encoding
        self.layers = _linear_maps(encoded_features, out_features, widths, raw=raw)
        norms = [nn.LayerNorm(width) if norm == "layer" else RmsNorm(width, eps=1e-5) for width in widths]
        self.norms = nn.ModuleList(norms if norm != "none" else [])
        self.activation = activation
        self.norm_position = norm_position
        self.skip = skip
        self.output = output

    def reset_parameters(self, generator: torch.Generator) -> None:
        """PyTorch's defaults: linear maps U(±1/sqrt(fan_in)), norms 1 and 0; the encoding as it says."""
        self.encoding.reset_parameters(generator)
        for layer in self.layers:
            _reset_linear(layer, generator)
        for norm in self.norms:
            cast(nn.LayerNorm, norm).reset_parameters()

    def _activate(self, x: Tensor) -> Tensor:
        if self.activation == "relu":
            return F.relu(x)
        return F.gelu(x) if self.activation == "gelu" else F.silu(x)

    def forward(self, x: Tensor) -> Tensor:
        x = self.encoding(x)
        for number, layer in enumerate(self.layers[:-1]):
            new = layer(x)
            if not self.norms:
                new = self._activate(new)
            elif self.norm_position == "post":
                new = self.norms[number](self._activate(new))
            else:
                new = self._activate(self.norms[number](new))
            x = (new + x) * math.sqrt(0.5) if self.skip and number > 0 else new
        return _finish(self.layers[-1](x), self.output)


class GateNetwork(Network):
    """Expert weights (..., count), softmax of [LayerNorm of the coordinates] -> linear -> GELU -> linear."""

    def __init__(self, in_features: int, count: int, features: int = 128, norm: str = "none") -> None:
        super().__init__()
        self.norm = nn.LayerNorm(in_features) if norm == "layer" else nn.Identity()
        self.layers = _linear_maps(in_features, count, (features,))

    def reset_parameters(self, generator: torch.Generator) -> None:
        """PyTorch's defaults."""
        if isinstance(self.norm, nn.LayerNorm):
            self.norm.reset_parameters()
        for layer in self.layers:
            _reset_linear(layer, generator)

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(self.layers[1](F.gelu(self.layers[0](self.norm(x)))), dim=-1)


class ExpertsNetwork(Network):
    """output(sum_k gate(x)_k expert_k(encoding(x))) of experts (..., encoded_features) -> (..., out_features)."""

    def __init__(self, encoding: Network, experts: tuple[Network, ...], gate: Network, output: str = "linear") -> None:
        super().__init__()
        self.encoding = encoding
        self.experts = nn.ModuleList(experts)
        self.gate = gate
        self.output = output

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Encoding, experts and gate in this order, each as it says."""
        for module in (self.encoding, *self.experts, self.gate):
            cast(Network, module).reset_parameters(generator)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.gate(x)
        encoded = self.encoding(x)
        total = weights[..., 0:1] * self.experts[0](encoded)
        for number, expert in enumerate(self.experts[1:], start=1):
            total = total + weights[..., number : number + 1] * expert(encoded)
        return _finish(total, self.output)
