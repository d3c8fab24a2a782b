"""Small public-domain pictures that come with scikit-image's wheel; nothing is downloaded."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from pixfit.images.image import ImageError

__all__ = ["BUNDLED", "bundled_path"]

_FILES = {
    "astronaut": "astronaut.png",
    "brick": "brick.png",
    "camera": "camera.png",
    "chelsea": "chelsea.png",
    "coffee": "coffee.png",
    "grass": "grass.png",
    "gravel": "gravel.png",
    "hubble_deep_field": "hubble_deep_field.jpg",
    "moon": "moon.png",
    "retina": "retina.jpg",
    "rocket": "rocket.jpg",
}

BUNDLED: tuple[str, ...] = tuple(_FILES)


def bundled_path(name: str) -> Path:
    """Where the bundled picture lies; scikit-image's folder is looked up without importing it.

    Raises:
        ImageError: no such name, or scikit-image is not installed with its data.
    """
    if name not in _FILES:
        raise ImageError(f"no bundled picture {name!r}; there are {', '.join(BUNDLED)}")
    for package in ("skimage", "_skimage2"):
        spec = importlib.util.find_spec(package)
        for folder in (spec.submodule_search_locations or []) if spec else []:
            path = Path(folder) / "data" / _FILES[name]
            if path.is_file():
                return path
    raise ImageError(f"the bundled picture {name!r} is missing from scikit-image; reinstall scikit-image")
