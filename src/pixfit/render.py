"""A network to pixels, at any size, band by band, so that memory does not grow with the picture."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pixfit import images, kernels, lowered, modelfile
from pixfit.canonical import is_number, is_whole
from pixfit.modelfile import Network
from pixfit.models import Memory, PicturePrior
from pixfit.result import Result

__all__ = ["Frame", "Region", "bands", "frame", "render", "write"]

_POINTS = 2**16  # samples of a band
_TILE = 2**12  # samples of a band that pass through the network at a time, at the least
_LARGEST = 2**40  # samples of one render
_LONGEST = 2**24  # samples along one of its sides

Region = tuple[float, float, float, float]


@dataclass(frozen=True)
class Frame:
    """Which samples to render: ``height`` × ``width`` of them over ``region`` (x, y, w, h) in source pixels."""

    height: int
    width: int
    region: Region


def frame(
    network: Network, *, scale: float | None = None, size: tuple[int, int] | None = None, region: Region | None = None
) -> Frame:
    """The samples that a scale, a size or a region ask for.

    Args:
        scale: output samples per source pixel along each axis; 1 without a size.
        size: (width, height) of the output instead of a scale.
        region: (x, y, w, h) in source pixels; the whole picture by default.

    Raises:
        ValueError: both a scale and a size, numbers that are not positive, a region outside the picture, or another
            scale than 1 of a network that makes one whole picture, or of a memory, whose flat picture (C, 1, N) has its
            pictures one after the other.
    """
    _, height, width = network.shape
    region = region if region is not None else (0, 0, width, height)
    if len(region) != 4:
        raise ValueError(f"region is {region}; give four numbers: x, y, width and height in the picture's pixels")
    x, y, w, h = region
    if not (0 <= x < x + w <= width and 0 <= y < y + h <= height):
        raise ValueError(
            f"region {x:g},{y:g},{w:g},{h:g} is not inside the {width}×{height} picture; give X,Y,W,H in its pixels"
        )
    if scale is not None and size is not None:
        raise ValueError("give either a scale or a size, not both")
    if size is None:
        factor = 1.0 if scale is None else scale
        if not (is_number(factor) and 0 < factor <= 2**20):
            raise ValueError(f"scale is {factor!r}; it must be above 0 and at most {2**20}")
        size = (max(1, round(w * factor)), max(1, round(h * factor)))
    if len(size) != 2:
        raise ValueError(f"size is {size}; give two numbers: width and height")
    if not all(is_whole(side) and 1 <= side <= _LONGEST for side in size) or size[0] * size[1] > _LARGEST:
        raise ValueError(
            f"size {size[0]}×{size[1]} cannot be rendered; sides are whole numbers from 1 to 2^24, "
            "and at most 2^40 pixels in all"
        )
    if isinstance(network.model, PicturePrior) and (size != (w, h) or any(part != int(part) for part in region)):
        raise ValueError(
            f"this network makes one picture of {width}×{height}; it cannot be rendered at another size, nor between "
            "its pixels"
        )
    if isinstance(network.model, Memory) and (size != (w, h) or tuple(region) != (0, 0, width, height)):
        raise ValueError(
            f"this network holds {len(network.model.sizes)} pictures; take one with Network.one(number or name) and "
            "render that"
        )
    return Frame(size[1], size[0], (x, y, w, h))


def bands(network: Network, wanted: Frame, *, device: torch.device | str = "cpu") -> Iterator[Tensor]:
    """The picture from top to bottom in bands (C, rows, W), float32, not clamped.

    A band depends on its place alone: any two ways to cut one picture give the same samples but for rounding.
    """
    channels, height, width = network.shape
    tall = max(1, _POINTS // wanted.width)
    if isinstance(network.model, PicturePrior):
        x, y, w, h = map(int, wanted.region)
        part = _whole(network, device)[:, y : y + h, x : x + w]
        yield from (part[:, top : top + tall] for top in range(0, h, tall))
        return
    module = network.module(device=device)
    dtype = next(iter(network.weights.values())).dtype
    rows, columns = network.model.coordinates.axes(
        height, width, region=wanted.region, samples=(wanted.height, wanted.width), dtype=dtype, device=device
    )
    on_cpu = torch.device(device).type == "cpu"
    compiled = None
    if on_cpu and network.record["kernel"] == "auto":
        compiled = lowered.forward(network.model, network.weights, channels, torch.get_num_threads())
    widest = max(max(value.shape, default=1) for name, value in network.weights.items() if ".tables." not in name)
    kernel = kernels.kernel_name(torch.device(device), widest)
    tile = max(_TILE, 2**19 // widest) if on_cpu else _POINTS
    for top in range(0, wanted.height, tall):
        points = network.model.coordinates.mesh(rows[top : top + tall], columns)

        def one(part: int, points: Tensor = points) -> Tensor:
            with torch.no_grad():
                output: Tensor = module(points[part * tile : (part + 1) * tile])
                return output.float().cpu()

        if compiled is not None:
            outputs = compiled(points)
        else:
            size = kernels.crew_size(len(points), widest) if on_cpu else 0
            with kernels.fast_matmul(kernel), kernels.Crew(size) as crew:
                outputs = torch.cat(crew.map(one, -(-len(points) // tile)))
        yield network.model.to_pixels(outputs).reshape(-1, wanted.width, channels).permute(2, 0, 1)


def _whole(network: Network, device: torch.device | str) -> Tensor:
    """The picture (C, H, W) of a network that makes one of one size, from its code without noise."""
    if network.picture is not None:
        return network.picture
    dtype = next(iter(network.weights.values())).dtype
    with torch.no_grad():
        output = network.module(device=device)(torch.zeros(1, 1, 1, dtype=dtype, device=device))
    return network.model.to_pixels(output.float().cpu()).T.reshape(network.shape)


def render(
    source: Network | Result | str | Path,
    *,
    scale: float | None = None,
    size: tuple[int, int] | None = None,
    region: Region | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    progress: Callable[[float], None] = lambda fraction: None,
) -> Tensor:
    """The picture (C, H, W) of a network, a finished fit or a model file, on the CPU, not clamped.

    Args:
        scale, size, region: as of `frame`, whose errors it raises.
        device: where to compute.
        dtype: of the picture; the network computes in the type that it was fitted in.
        progress: is told the fraction that is done, from 0 to 1.

    Raises:
        modelfile.ModelFileError: a file that is missing or broken.
    """
    network = _network(source)
    wanted = frame(network, scale=scale, size=size, region=region)
    picture = torch.empty(network.shape[0], wanted.height, wanted.width, dtype=dtype)
    done = 0
    for band in bands(network, wanted, device=device):
        picture[:, done : done + band.shape[1]] = band
        done += band.shape[1]
        progress(done / wanted.height)
    return picture


def write(
    source: Network | Result | str | Path,
    path: str | Path,
    *,
    scale: float | None = None,
    size: tuple[int, int] | None = None,
    region: Region | None = None,
    bit_depth: int | None = None,
    device: torch.device | str = "cpu",
    progress: Callable[[float], None] = lambda fraction: None,
) -> Frame:
    """Renders straight into a PNG or TIFF file of any size; other formats are rendered whole first. Of a memory, a
    contact sheet of all pictures, each at the scale; the frame returned is that of the sheet.

    Args:
        bit_depth: 8 or 16; by default that of the picture which was fitted.
        progress: is told the fraction that is done, from 0 to 1.
    """
    network = _network(source)
    if isinstance(network.model, Memory) and size is None and region is None:
        return _write_sheet(network, Path(path), scale, bit_depth, device, progress)
    wanted = frame(network, scale=scale, size=size, region=region)
    path = Path(path)
    images.check_writable(path, width=wanted.width, height=wanted.height, bit_depth=bit_depth)
    streamed = path.suffix.lower() in (".png", ".tif", ".tiff")
    if not streamed:
        images.save(
            render(network, size=(wanted.width, wanted.height), region=wanted.region, device=device).clamp(0, 1),
            path,
            bit_depth=bit_depth,
        )
        progress(1.0)
        return wanted
    if bit_depth is None:
        bit_depth = 16 if network.bit_depth > 8 else 8
    done = 0
    with images.BandWriter(
        path, width=wanted.width, height=wanted.height, channels=network.shape[0], bit_depth=bit_depth
    ) as writer:
        for band in bands(network, wanted, device=device):
            writer.write(band.clamp(0, 1))
            done += band.shape[1]
            progress(done / wanted.height)
    return wanted


def _write_sheet(
    network: Network,
    path: Path,
    scale: float | None,
    bit_depth: int | None,
    device: torch.device | str,
    progress: Callable[[float], None],
) -> Frame:
    count = len(network.codes)
    pictures = []
    for number in range(count):
        pictures.append(render(network.one(number), scale=scale, device=device).clamp(0, 1))
        progress((number + 1) / count)
    sheet = images.contact_sheet(pictures)
    if bit_depth is None and path.suffix.lower() in (".png", ".tif", ".tiff"):
        bit_depth = 16 if network.bit_depth > 8 else 8
    images.save(sheet, path, bit_depth=bit_depth)
    return Frame(sheet.shape[1], sheet.shape[2], (0, 0, sheet.shape[2], sheet.shape[1]))


def _network(source: Network | Result | str | Path) -> Network:
    if isinstance(source, Network):
        return source
    return Network.of(source) if isinstance(source, Result) else modelfile.load(source)
