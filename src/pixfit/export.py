"""A fitted network for other programs: an ONNX file, or a script that needs nothing but torch."""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from string import Template
from textwrap import indent
from typing import Any

import torch
from torch import Tensor, nn

import pixfit
from pixfit import canonical, files, modelfile
from pixfit.modelfile import Network
from pixfit.models import Coordinates, PicturePrior, networks
from pixfit.result import Result

__all__ = ["write"]

_OPSET = 18
_LONGEST_CALL = 88


def write(source: Network | Result | str | Path, path: str | Path) -> tuple[Path, ...]:
    """Writes a network, a finished fit or a model file as the suffix of ``path`` says; a file of that name is replaced.

    ``.onnx``: ``coordinates`` (N, 2) float32 to ``pixels`` (N, C) in [0, 1], clamped, for any N; the weights are cast
    to float32. Its metadata give the picture's ``width``, ``height`` and ``channels``, and the coordinate convention
    as JSON under ``coordinates``; its description says in words how to make the grid.

    ``.py``: a script that runs with torch alone, and beside it the weights as a model file of the same stem.
    ``python photo.py out.png --scale 2`` renders; ``from photo import network, render`` gives the module, from (N, 2)
    to outputs (N, C) in the model's target range, and ``render(height, width)``, pixels (C, H, W) in [0, 1].

    Returns:
        The files that make up the export.

    Raises:
        ValueError: another suffix, no such folder, a name that would hide a module which the script imports, a fit
            without a network, a memory of many pictures, or a network that knows no coordinates; as
            `modelfile.ModelFileError` a model file that cannot be read.
        FileExistsError: the place of the script's weights is taken by something else, which is left as it is.
        ImportError: ONNX without the packages that write it; the text says how to install them.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in (".onnx", ".py"):
        raise ValueError(f"{path}: the suffix chooses the format and must be .onnx (ONNX) or .py (a script for torch)")
    if path.is_dir() or not path.parent.is_dir():
        wrong = "this is a folder" if path.is_dir() else "its folder does not exist"
        raise ValueError(f"{path}: {wrong}; give a file name")
    if not isinstance(source, Network):
        source = Network.of(source) if isinstance(source, Result) else modelfile.load(source)
    if isinstance(source.model, PicturePrior):
        name = type(source.model).__name__
        raise ValueError(f"{path}: a {name} knows no coordinates, it makes one picture; `pixfit render` writes that")
    if source.model.sizes:
        raise ValueError(f"{path}: a memory holds many pictures; export one of them, which Network.one takes")
    return _write_onnx(source, path) if suffix == ".onnx" else _write_script(source, path)


def _convention(coordinates: Coordinates, height: int, width: int) -> str:
    """How to make the coordinates of a picture, one sentence a line."""
    signed = coordinates.range == "signed"
    first, second = ("x", "y") if coordinates.order == "xy" else ("y", "x")
    if coordinates.alignment == "center":
        along = (
            "Sample i of n along an axis is a pixel centre, at t = (i + 0.5) / n between the picture's edges 0 and 1."
        )
    else:
        along = "Sample i of n along an axis is at t = i / (n - 1), the first at 0, the last at 1; a single one at 0.5."
    position = "2 t - 1, from -1 to 1" if signed else "t, from 0 to 1"
    lines = [along, f"Its position is {position}; column 0 is {first}, column 1 {second}; x to the right, y down."]
    if coordinates.aspect == "keep" and height != width:
        name, ratio = ("x", f"{width} / {height}") if width < height else ("y", f"{height} / {width}")
        lines.append(
            f"Along {name}, the shorter side, the distance from {0 if signed else 0.5} is then multiplied by {ratio}."
        )
    return "\n".join(lines)


# ONNX


class _Pixels(nn.Module):
    """A network with its outputs as pixels."""

    def __init__(self, network: nn.Module, signed: bool) -> None:
        super().__init__()
        self.network = network
        self.signed = signed

    def forward(self, coordinates: Tensor) -> Tensor:
        output: Tensor = self.network(coordinates)
        return (0.5 * output + 0.5 if self.signed else output).clamp(0.0, 1.0)


def _write_onnx(network: Network, path: Path) -> tuple[Path, ...]:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(f'{path}: writing ONNX needs onnx and onnxscript; pip install "pixfit[export]"') from error
    channels, height, width = network.shape
    convention = network.model.coordinates
    module = _Pixels(network.module().float(), network.model.target_range == "signed").eval()
    with _quiet_exporter():
        program = torch.onnx.export(
            module,
            (torch.zeros(3, 2),),
            dynamo=True,
            verbose=False,
            external_data=False,
            opset_version=_OPSET,
            input_names=["coordinates"],
            output_names=["pixels"],
            dynamic_shapes={"coordinates": {0: torch.export.Dim("N")}},
        )
    if program is None:
        raise RuntimeError("torch.onnx.export gave no program; please report this with your version of torch")
    model = program.model_proto
    graph = model.graph
    for entry in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        entry.ClearField("metadata_props")  # the exporter's notes: stack traces with the paths of this machine
        entry.ClearField("doc_string")
    model.doc_string = (
        f"coordinates (N, 2) to pixels (N, {channels}) in [0, 1], clamped, of a picture of {width} x {height} pixels.\n"
        + _convention(convention, height, width)
    )
    for name, value in {
        "format": "pixfit",
        "width": str(width),
        "height": str(height),
        "channels": str(channels),
        "coordinates": json.dumps(asdict(convention), sort_keys=True),
    }.items():
        model.metadata_props.add(key=name, value=value)
    files.write_bytes(path, model.SerializeToString(deterministic=True))
    return (path,)


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Without two remarks on other things than the export: torch's use of an old name, and torchvision's absence."""
    log = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)
            yield
    finally:
        log.setLevel(level)


# The script


def _write_script(network: Network, path: Path) -> tuple[Path, ...]:
    if path.stem in {"torch", "numpy", *sys.stdlib_module_names}:
        raise ValueError(f"{path}: this name would hide the module {path.stem!r} from Python; give the script another")
    place = path.with_suffix(".safetensors")
    values = _script_values(network, path.stem)
    if not place.exists():
        modelfile.save(network, place)
    elif not _holds(place, network):
        raise FileExistsError(f"{place} holds something else, but the script's weights go there; give another name")
    stored = place.read_bytes()
    numbers = stored[8 + int.from_bytes(stored[:8], "little") :]
    script = Template(_SCRIPT).substitute(values, digest=hashlib.sha256(numbers).hexdigest())
    files.write_bytes(path, script.encode())
    return (path, place)


def _holds(path: Path, network: Network) -> bool:
    try:
        stored = modelfile.load(path)
    except modelfile.ModelFileError:
        return False
    return (
        canonical.text(stored.record) == canonical.text(network.record)
        and stored.weights.keys() == network.weights.keys()
        and all(
            value.dtype == network.weights[name].dtype and torch.equal(value, network.weights[name].cpu())
            for name, value in stored.weights.items()
        )
    )


def _script_values(network: Network, stem: str) -> dict[str, object]:
    """What the script's template lacks, but for the digest of the weights. Text from outside never enters it."""
    channels, height, width = network.shape
    convention = network.model.coordinates
    module = network.module()
    imports, classes = _source_of(module)
    keep = convention.aspect == "keep"
    signed = network.model.target_range == "signed"
    return {
        "stem": stem if stem.isidentifier() else "script",
        "version": pixfit.__version__,
        "channels": channels,
        "height": height,
        "width": width,
        "bits": 16 if network.bit_depth > 8 else 8,
        "dtype": next(iter(network.weights.values())).dtype,
        "outputs": "[-1, 1]" if signed else "[0, 1]",
        "pixels": "(0.5 * output + 0.5)" if signed else "output",
        "imports": imports,
        "classes": classes,
        "network": indent(_call(module), "    ").lstrip(),
        "convention": indent(_convention(convention, height, width), "    ").lstrip(),
        "order": "column, row" if convention.order == "xy" else "row, column",
        "rows": "height, HEIGHT" if keep else "height",
        "columns": "width, WIDTH" if keep else "width",
        "side": ", side: int" if keep else "",
        "span": "count" if convention.alignment == "center" else "max(count - 1, 1)",
        "aspect": "\n    offset, span = offset * side, span * max(HEIGHT, WIDTH)" if keep else "",
        "position": "offset / span" if convention.range == "signed" else "(offset + span) / (2.0 * span)",
    }


def _source_of(module: nn.Module) -> tuple[str, str]:
    """The imports of a script that runs the module, and the definitions it needs from `pixfit.models.networks`."""
    source = inspect.getsource(networks)
    lines = source.splitlines()
    tree = ast.parse(source).body
    definitions = {node.name: node for node in tree if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    wanted = {"Tensor", "nn", "torch"}
    found = {type(part).__name__ for part in module.modules() if type(part).__module__ == networks.__name__}
    while found:
        wanted |= found
        nodes = [definitions[name] for name in found if name in definitions]
        found = {part.id for node in nodes for part in ast.walk(node) if isinstance(part, ast.Name)} - wanted
    imports = ["from pathlib import Path"]
    imports += [f"import {name}" for name in ("argparse", "hashlib", "json", "struct", "zlib")]
    for node in tree:
        if isinstance(node, ast.Import | ast.ImportFrom):
            node.names = [alias for alias in node.names if (alias.asname or alias.name) in wanted]
            imports += [ast.unparse(node)] if node.names else []
    imports.sort(key=lambda line: ("torch" in line, line.startswith("from"), line))
    first = next(number for number, line in enumerate(imports) if "torch" in line)
    parts = [node for name, node in definitions.items() if name in wanted]
    classes = ["\n".join(lines[node.lineno - 1 : node.end_lineno]) for node in parts]
    return "\n".join([*imports[:first], "", *imports[first:]]), "\n\n\n".join(classes)


def _call(module: nn.Module) -> str:
    """The expression that builds the module, every argument a literal or another such expression."""
    if type(module).__module__ != networks.__name__:
        raise ValueError(f"a {type(module).__name__} cannot be written as a script; export it as .onnx")
    sizes = _sizes(module)
    arguments = []
    for name, parameter in inspect.signature(type(module)).parameters.items():
        if parameter.kind is not parameter.POSITIONAL_OR_KEYWORD:  # nn.Module's own *args
            continue
        value = sizes[name] if name in sizes else getattr(module, name)
        if isinstance(value, nn.ModuleList):  # experts, all alike
            each = indent(_call(value[0]), "    ")
            text = f"tuple(\n{each}\n    for _ in range({len(value)})\n)"
        elif isinstance(value, nn.Module):
            text = _call(value)
        else:
            text = json.dumps(value) if isinstance(value, str) else repr(value)
        arguments.append(f"{name}={text}")
    line = f"{type(module).__name__}({', '.join(arguments)})"
    if len(line) <= _LONGEST_CALL and "\n" not in line:
        return line
    listed = indent(",\n".join(arguments), "    ")
    return f"{type(module).__name__}(\n{listed},\n)"


def _sizes(module: nn.Module) -> dict[str, Any]:
    """The constructor's arguments that a module of `pixfit.models.networks` keeps as shapes and types alone."""
    sizes: dict[str, Any] = {}
    frequencies = getattr(module, "frequencies", None)
    if isinstance(frequencies, Tensor):
        trainable = isinstance(frequencies, nn.Parameter)
        sizes = {"in_features": frequencies.shape[0], "features": 2 * frequencies.shape[1], "trainable": trainable}
    layers = getattr(module, "layers", None)
    if isinstance(layers, nn.ModuleList):
        shapes = [next(layer.parameters()).shape for layer in layers]  # weights (out, in)
        norm = next(iter(getattr(module, "norms", ())), getattr(module, "norm", None))
        sizes = {
            "in_features": shapes[0][1],
            "encoded_features": shapes[0][1],
            "widths": tuple(shape[0] for shape in shapes[:-1]),
            "features": shapes[0][0],
            "out_features": shapes[-1][0],
            "count": shapes[-1][0],
            "raw": isinstance(layers[0], networks.CoordinateLinear),
            "norm": "layer" if isinstance(norm, nn.LayerNorm) else "rms" if isinstance(norm, nn.RMSNorm) else "none",
        }
    return sizes


_SCRIPT = r'''"""A picture of $width x $height pixels as a network, which needs torch and the weights beside it.

    python $stem.py out.png --scale 2

    from $stem import network, render
    network                       # the nn.Module: coordinates (N, 2) to outputs (N, $channels) in $outputs
    render(height, width)         # the whole picture at any size: ($channels, height, width) in [0, 1]

Made by pixfit $version. The weights are the file of the same stem that ends in .safetensors.
"""

from __future__ import annotations

$imports

CHANNELS, HEIGHT, WIDTH = $channels, $height, $width
BITS = $bits  # of a sample in the PNG
DTYPE = $dtype
SHA256 = "$digest"  # of the numbers in the weights' file


$classes


def _weights() -> dict[str, Tensor]:
    """A safetensors file: the length of a header in eight bytes, the header as JSON, the numbers."""
    path = Path(__file__).with_suffix(".safetensors")
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header, numbers = json.loads(data[8 : 8 + length]), bytearray(data[8 + length :])
    if hashlib.sha256(numbers).hexdigest() != SHA256:
        raise ValueError(f"{path} is not the file that this script was made for; export the network again")
    dtypes = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    weights = {}
    for name, entry in header.items():
        if name != "__metadata__":
            start, end = entry["data_offsets"]
            values = torch.frombuffer(numbers[start:end], dtype=dtypes[entry["dtype"]])
            weights[name] = values.reshape(entry["shape"])
    return weights


with torch.device("meta"):  # without drawing weights that would be replaced at once
    network = $network
network.load_state_dict(_weights(), assign=True)
network.requires_grad_(False)


def coordinates(height: int = HEIGHT, width: int = WIDTH) -> Tensor:
    """Positions (height * width, 2) of the samples of the whole picture, row by row.

    $convention
    """
    row, column = torch.meshgrid(_axis($rows), _axis($columns), indexing="ij")
    return torch.stack(($order), dim=-1).reshape(-1, 2)


def _axis(count: int$side) -> Tensor:
    offset = 2.0 * torch.arange(count, dtype=torch.float64) + 1.0 - count
    span = $span$aspect
    return ($position).to(DTYPE)


def render(height: int = HEIGHT, width: int = WIDTH) -> Tensor:
    """The whole picture, (CHANNELS, height, width), float32 in [0, 1]."""
    parts = coordinates(height, width).split(2**16)  # keeps the memory of the hidden layers small
    output = torch.cat([network(part).float() for part in parts])
    return $pixels.clamp(0.0, 1.0).T.reshape(CHANNELS, height, width)


def png(pixels: Tensor) -> bytes:
    """A PNG file of pixels (1 to 4, H, W) in [0, 1]: grey, grey and alpha, RGB, RGB and alpha."""
    channels, height, width = pixels.shape
    levels = (pixels * (2**BITS - 1) + 0.5).floor().to(torch.int32).permute(1, 2, 0)
    octets = torch.stack([levels] if BITS == 8 else [levels >> 8, levels & 255], dim=-1).reshape(height, -1)
    rows = b"".join(b"\0" + bytes(row.tolist()) for row in octets)
    header = struct.pack(">IIBBBBB", width, height, BITS, (0, 4, 2, 6)[channels - 1], 0, 0, 0)
    file = b"\x89PNG\r\n\x1a\n"
    for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
        file += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return file


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Render the picture as a PNG file.")
    parser.add_argument("out", type=Path, help="the PNG file to write")
    parser.add_argument("--scale", type=float, default=1.0, help=f"1 (the default) is {WIDTH} x {HEIGHT} pixels")
    arguments = parser.parse_args()
    if arguments.out.suffix.lower() != ".png" or not arguments.scale > 0:
        parser.error("the file must end in .png, the scale must be above 0")
    size = [max(1, round(side * arguments.scale)) for side in (HEIGHT, WIDTH)]
    arguments.out.write_bytes(png(render(*size)))
'''
