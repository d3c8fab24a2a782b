"""A network as a neutral list of layers: what models lower themselves to, and every fused kernel runs.

Tensors are named as in the network's ``state_dict``; where they lie in a row of P numbers is the kernel's business.
Shape legend: D coordinates of a sample, C outputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Activation", "Layer", "Level", "Lift", "Plan"]

Activation = Literal["none", "sine", "finer", "finer_exact", "relu", "gelu", "silu", "gauss"]


@dataclass(frozen=True)
class Layer:
    """A linear map and what follows it.

    With z = W x + b the activation is ``sine`` sin(ω z), ``finer`` sin(ω (|z| + 1) z) whose factor |z| + 1 passes no
    gradient (``finer_exact``: it does), ``gauss`` exp(−(ω z)²), ``relu``, ``gelu`` (with erf), ``silu`` or ``none``.

    Args:
        inputs, outputs: features.
        weight, bias: names of (outputs, inputs) and (outputs,); no bias: None.
        activation: see above.
        omega: see above; 1 for activations that have none.
        norm: over the features of a sample, with epsilon ``eps``.
        norm_first: the norm comes before the activation, not after it.
        gain, shift: names of the norm's trainable (outputs,); None: there is none.
        skip: h ← (h + x) / √2 at the end; needs inputs equal to outputs.
    """

    inputs: int
    outputs: int
    weight: str
    bias: str | None
    activation: Activation = "none"
    omega: float = 1.0
    norm: Literal["none", "layer", "rms"] = "none"
    norm_first: bool = False
    gain: str | None = None
    shift: str | None = None
    eps: float = 1e-5
    skip: bool = False


@dataclass(frozen=True)
class Level:
    """One level of a feature grid.

    Args:
        rows, columns: vertices along the picture's sides.
        features: numbers at a vertex.
        table: name of the trainable (entries, features).
        entries: rows · columns, row-major, or the size of a hash table that vertices share.
    """

    rows: int
    columns: int
    features: int
    table: str
    entries: int

    @property
    def hashed(self) -> bool:
        return self.entries < self.rows * self.columns


@dataclass(frozen=True)
class Lift:
    """What is done to the coordinates before the first layer; the settings are those of `pixfit.models` encodings.

    Args:
        kind: ``raw``, ``fourier``, ``gabor``, ``positional`` or ``grid``.
        features: that it gives.
        frequencies, centres: names of the fixed (D, features / 2); None where the kind has none.
        sigma: of the Gabor envelope.
        octaves, include_input: of ``positional``.
        levels, interpolation: of ``grid``.
        alignment: of ``grid``: vertex i of n lies at (i + 1/2) / n of the range (``center``) or at i / (n − 1)
            (``corner``).
        row_axis: of ``grid``: which coordinate says the row.
        low, high: of ``grid``: range of the coordinates.
    """

    kind: Literal["raw", "fourier", "gabor", "positional", "grid"]
    features: int
    frequencies: str | None = None
    centres: str | None = None
    sigma: float = 1.0
    octaves: int = 0
    include_input: bool = False
    levels: tuple[Level, ...] = ()
    interpolation: Literal["linear", "cubic", "spline"] = "linear"
    alignment: Literal["center", "corner"] = "center"
    row_axis: int = 1
    low: float = 0.0
    high: float = 1.0


@dataclass(frozen=True)
class Plan:
    """A whole network: lift, layers, output.

    Args:
        in_features: D.
        lift: of the coordinates.
        layers: in order; the last gives the C outputs.
        output: ``linear`` or ``sigmoid``.
    """

    in_features: int
    lift: Lift
    layers: tuple[Layer, ...]
    output: Literal["linear", "sigmoid"] = "linear"

    @property
    def out_features(self) -> int:
        return self.layers[-1].outputs

    @property
    def products(self) -> int:
        """Multiply-adds of one sample through the layers, forward."""
        return sum(layer.inputs * layer.outputs for layer in self.layers)
