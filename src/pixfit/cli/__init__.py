"""The command line: each verb is one or two library calls, imported inside it so that ``--help`` is instant."""

from __future__ import annotations

from typing import Annotated

import typer

import pixfit
from pixfit.cli import fitting, keeping, memorizing, output, restoring, studying

__all__ = ["app", "main"]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""Fit neural networks to single images.

A photo becomes a network; the network renders it at any size.

Example:  pixfit fit photo.jpg -o photo.safetensors
          pixfit render photo.safetensors -o large.png --scale 4""",
)
data_app = typer.Typer(
    no_args_is_help=True, help="Pictures and sets: bundled, downloadable, on disk.", rich_markup_mode="rich"
)
app.add_typer(data_app, name="data")
restore_app = typer.Typer(
    no_args_is_help=True,
    help="Restore one damaged picture: remove noise, fill holes, enlarge, sharpen.",
    rich_markup_mode="rich",
)
app.add_typer(restore_app, name="restore")


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"pixfit {pixfit.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Options before the command; the help of the program stands above."""


app.command()(fitting.demo)
app.command()(fitting.fit)
app.command()(output.render)
app.command()(output.export)
app.command()(memorizing.memorize)
app.command()(memorizing.interpolate)
app.command()(memorizing.neighbours)
app.command()(studying.study)
app.command(name="recipes")(keeping.show_recipes)
app.command()(keeping.ls)
app.command()(keeping.show)
app.command()(keeping.gc)
app.command()(keeping.doctor)
restore_app.command()(restoring.denoise)
restore_app.command()(restoring.inpaint)
restore_app.command()(restoring.upscale)
restore_app.command()(restoring.deblur)
data_app.command("list")(keeping.data_list)
data_app.command("get")(keeping.data_get)


def main() -> None:
    """The program ``pixfit``."""
    app()
