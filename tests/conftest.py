"""What the tests share: one torch thread, small pictures, and the data folder where it is at hand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import pixfit as pf
from pixfit import images
from pixfit.images import Image
from pixfit.problem import stream
from pixfit.restore import pictures

_DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Bit-for-bit promises hold with one thread per fit; a test that wants more sets them itself."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def no_kernel_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The best kernel runs, whatever the suite was asked to run on."""
    monkeypatch.delenv("PIXFIT_KERNEL", raising=False)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of test pictures that is not part of the repository."""
    if not _DATA.is_dir():
        pytest.skip(f"needs the folder {_DATA}, which is not here")
    return _DATA


def picture(channels: int, height: int, width: int, seed: int = 0) -> Image:
    """A smooth picture with a little noise, 8 bits deep: some structure to fit and some that is hard to fit."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.linspace(0, 3, height)[:, None]
    columns = torch.linspace(0, 4, width)[None]
    waves = [torch.sin((1 + c) * rows + c) * torch.cos((2 - 0.5 * c) * columns) for c in range(channels)]
    data = 0.5 + 0.4 * torch.stack(waves) + 0.05 * torch.randn(channels, height, width, generator=generator)
    return Image((data.clamp(0, 1) * 255).round() / 255, name="waves")


@pytest.fixture
def small() -> Image:
    """RGB, 12 rows, 10 columns."""
    return picture(3, 12, 10)


@pytest.fixture
def grey() -> Image:
    """One channel, 8 rows, 16 columns."""
    return picture(1, 8, 16)


@pytest.fixture
def square() -> Image:
    """RGB, 32 by 32, the size of the pre-fit study's pictures."""
    return picture(3, 32, 32)


def clean() -> Image:
    """Edges and slopes of a bundled photograph, 24 rows, 27 columns."""
    return Image(images.load("coffee").data[:, 100:124, 220:247].clone(), "coffee")


def noisy(image: Image, sigma: float = 25 / 255) -> Image:
    data = pf.GaussianNoise(sigma)(image.data, stream(0, "noise")).clamp(0, 1)
    return Image((data * 255).round() / 255, "noisy")


def counts(clean: Image, at_white: float) -> Image:
    """With Poisson noise."""
    return Image(pf.PoissonNoise(at_white)(clean.data, stream(0, "counts")).clamp(0, 1), clean.name)


@pytest.fixture
def four_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """The small test picture is large enough to be cut."""
    monkeypatch.setattr(pictures, "_WHOLE", 20)
    monkeypatch.setattr(pictures, "_PIECE", 18)
    monkeypatch.setattr(pictures, "_OVERLAP", 6)
