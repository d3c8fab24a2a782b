"""pixfit: fit neural networks to single images.

    import pixfit as pf

    image   = pf.images.load("coffee")
    problem = pf.Problem(image)
    spec    = pf.Spec(problem, pf.models.Siren(hidden_layers=4, hidden_features=256), budget=pf.Steps(500))
    result  = pf.fit(spec)
    result.save_image("out.png")

Everything below is imported when first used, so that ``import pixfit`` itself takes milliseconds.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_MODULES = (
    "canonical", "embedding", "export", "images", "losses", "memorize", "metrics", "modelfile", "models", "noise",
    "operators", "optim", "paths", "plots", "recipes", "render", "restore", "schedules",
    "similarity", "starts", "stopping",
)  # fmt: skip
_NAMES = {
    "AugmentedBatches": "spec", "AveragedOutput": "spec",
    "Batches": "spec", "BestHeldOut": "spec", "Last": "spec", "MovingAverage": "spec", "Record": "spec", "Spec": "spec",
    "Budget": "stopping", "Epochs": "stopping", "Never": "stopping", "Seconds": "stopping", "Steps": "stopping",
    "HeldOut": "stopping",
    "TargetPSNR": "stopping", "GaussianNoise": "noise", "PoissonNoise": "noise", "SaltAndPepper": "noise",
    "Copies": "problem", "Gallery": "problem", "PictureBatches": "spec", "Problem": "problem",
    "Image": "images", "Network": "modelfile", "Result": "result", "Start": "starts",
    "Status": "result", "Store": "store", "Weights": "starts", "fit": "run", "load": "modelfile", "save": "modelfile",
}  # fmt: skip

if TYPE_CHECKING:
    from pixfit import (
        canonical,
        embedding,
        export,
        images,
        losses,
        memorize,
        metrics,
        modelfile,
        models,
        noise,
        operators,
        optim,
        paths,
        plots,
        recipes,
        render,
        restore,
        schedules,
        similarity,
        starts,
        stopping,
    )
    from pixfit.images import Image
    from pixfit.modelfile import Network, load, save
    from pixfit.noise import GaussianNoise, PoissonNoise, SaltAndPepper
    from pixfit.problem import Copies, Gallery, Problem
    from pixfit.result import Result, Status
    from pixfit.run import fit
    from pixfit.spec import (
        AugmentedBatches,
        AveragedOutput,
        Batches,
        BestHeldOut,
        Last,
        MovingAverage,
        PictureBatches,
        Record,
        Spec,
    )
    from pixfit.starts import Start, Weights
    from pixfit.stopping import Budget, Epochs, HeldOut, Never, Seconds, Steps, TargetPSNR
    from pixfit.store import Store

__all__ = [
    "AugmentedBatches", "AveragedOutput",
    "Batches", "BestHeldOut", "Budget", "Copies", "Epochs", "Gallery", "GaussianNoise", "HeldOut", "Image",
    "Last", "MovingAverage", "Network", "Never", "PictureBatches", "PoissonNoise", "Problem", "Record", "Result",
    "SaltAndPepper", "Seconds", "Spec", "Start", "Status", "Steps", "Store",
    "TargetPSNR", "Weights", "canonical", "embedding", "export", "fit", "images", "load", "losses", "memorize",
    "metrics", "modelfile", "models", "noise", "operators", "optim", "paths", "plots", "recipes", "render", "restore",
    "save", "schedules", "similarity", "starts", "stopping",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"pixfit.{name}")
    if name in _NAMES:
        value = getattr(importlib.import_module(f"pixfit.{_NAMES[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'pixfit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
