"""The commands that make something of a model file: ``pixfit render`` and ``pixfit export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pixfit.cli.options import Device, Json, Quiet, bar, command, emit, fail, numbers, picture_of, sides

__all__ = ["export", "render"]

_Picture = Annotated[
    str | None, typer.Option(metavar="NAME|NUMBER", help="Which picture, of a network that holds several.")
]


@command
def render(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A model file of `pixfit fit`.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="OUT", help="Picture to write: .png, .tif, .jpg, .webp or .npy.")
    ],
    scale: Annotated[float | None, typer.Option(help="Output pixels per source pixel, such as 4 or 0.5.")] = None,
    size: Annotated[str | None, typer.Option(metavar="WxH", help="Output size instead of a scale.")] = None,
    region: Annotated[
        str | None, typer.Option(metavar="X,Y,W,H", help="Part of the picture, in source pixels.")
    ] = None,
    picture: _Picture = None,
    bits: Annotated[int | None, typer.Option(help="8 or 16; by default those of the source.")] = None,
    device: Device = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Renders a model file at any size; large pictures are written band by band.

    Example:  pixfit render photo.safetensors -o large.png --scale 4
              pixfit render photo.safetensors -o detail.png --region 100,80,64,64 --size 1024x1024
              pixfit render icons.safetensors -o apple.png --picture apple-48 --size 256x256
    """
    from pixfit import modelfile, run
    from pixfit import render as rendering

    xywh = numbers(region, ",", 4, "--region", "X,Y,W,H in source pixels")
    if bits not in (None, 8, 16):
        fail(f"--bits is 8 or 16, got {bits}")
    network, wanted = modelfile.load(model), sides(size)
    if picture is not None:
        network = network.one(picture_of(picture, network.names))
    elif network.model.sizes and (wanted is not None or xywh is not None):
        count = len(network.model.sizes)
        fail(f"{model} holds {count} pictures; say which with --picture NAME, or give --scale for all")
    with bar(quiet, "rendering") as show:
        frame = rendering.write(
            network, output, scale=scale, size=wanted,
            region=None if xywh is None else (xywh[0], xywh[1], xywh[2], xywh[3]), bit_depth=bits,
            device=run.choose_device(device), progress=lambda fraction: show(fraction, ""),
        )  # fmt: skip
    if as_json:
        emit({"file": str(output), "width": frame.width, "height": frame.height, "region": frame.region})
    else:
        print(f"{output}  {frame.width}×{frame.height}")


@command
def export(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A model file of `pixfit fit`.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="OUT", help=".onnx, or .py for a plain-PyTorch script.")
    ],
    picture: _Picture = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Writes a model for programs that do not have pixfit: ONNX, or a script that needs only PyTorch.

    Example:  pixfit export photo.safetensors -o photo.onnx
              pixfit export photo.safetensors -o photo.py && python photo.py photo.png
              pixfit export icons.safetensors -o apple.onnx --picture apple-48
    """
    from pixfit import export as exporting
    from pixfit import modelfile

    network = modelfile.load(model)
    if picture is not None:
        network = network.one(picture_of(picture, network.names))
    elif network.model.sizes:
        fail(f"{model} holds {len(network.model.sizes)} pictures; say which with --picture NAME")
    written = exporting.write(network, output)
    if as_json:
        emit({"files": [str(path) for path in written]})
    else:
        for path in written:
            print(path)
