"""Named presets for memories: functions that take pictures, a code and the held-out fraction, and return a spec."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Literal, cast

import torch

from pixfit import recipes
from pixfit.augmentation import COPIES
from pixfit.canonical import is_whole
from pixfit.images import Image
from pixfit.kernels import library
from pixfit.models import AxisCode, BinaryCode, Code, Coordinates, LearnedCode, Memory, RingCode, Siren
from pixfit.optim import Adam
from pixfit.problem import Copies, Gallery
from pixfit.schedules import Cosine
from pixfit.spec import Batches, Batching, BestHeldOut, Estimate, Last, PictureBatches, Precision, Record, Spec
from pixfit.stopping import Budget, Epochs, Steps

__all__ = [
    "CODES", "RECIPES", "Recipe", "bottleneck", "exercise_published", "quick", "record", "spec", "steps_per_epoch",
]  # fmt: skip

Recipe = Callable[[Sequence[Image], Code, float], Spec]

CODES: dict[str, Code] = {"binary": BinaryCode(), "axis": AxisCode(), "ring": RingCode(), "learned": LearnedCode()}
"""How pictures are told apart, by name, with the default settings of each."""

# Of `quick` and `bottleneck`: few choices, tried on one folder of a hundred icons (docs/log.md).
_RATE = 5e-4
_PIXELS = 8192


def quick(pictures: Sequence[Image], code: Code, held_out: float) -> Spec:
    """A seventh of the published training's passes, with a higher rate that falls and batches of pixels of all
    pictures, of a network with less than half of its numbers.

    It is the published one but for its width, 320 of 480, and its coordinates, which are those of pixel centres.
    """
    return _fallen(pictures, Siren(3, 320), code, held_out, epochs=120)


def bottleneck(pictures: Sequence[Image], code: Code, held_out: float) -> Spec:
    """As quick, with five layers of the published width, the middle one a tenth as wide: an embedding to blend that is
    not the picture."""
    return _fallen(pictures, Siren.bottleneck(480), code, held_out, epochs=150)


def exercise_published(pictures: Sequence[Image], code: Code, held_out: float) -> Spec:
    """The published training of 100 icons in 698,883 numbers: 16 pictures a step in fixed order, Adam 1e-4, 801 epochs.

    Published with the code ``binary``, a tenth held out, pictures read with alpha dropped, and a look at the held-out
    pixels every 50 epochs; here every epoch.
    """
    gallery = Gallery(pictures, held_out=held_out, rule="published")
    inner = Siren(3, 480, coordinates=Coordinates("corner", order="row_col"))
    batches = PictureBatches(16)
    return Spec(
        gallery, Memory(inner, code, gallery.sizes), batches=batches, optimiser=Adam(1e-4), budget=Epochs(801),
        estimate=_estimate(gallery, batches),
    )  # fmt: skip


RECIPES: dict[str, Recipe] = {"quick": quick, "bottleneck": bottleneck, "exercise-published": exercise_published}


def spec(
    pictures: Sequence[Image],
    *,
    recipe: str = "quick",
    code: str = "binary",
    held_out: float = 0.1,
    augment: str | None = None,
    settings: Mapping[str, str] | None = None,
    budget: Budget | None = None,
    seed: int = 0,
) -> Spec:
    """The fit of one network to many pictures.

    Args:
        pictures: at least two, of any sizes. Grey ones among coloured ones become coloured, and opaque ones among
            transparent ones get an alpha channel.
        recipe: a name of `RECIPES`.
        code: a name of `CODES`.
        held_out: fraction of the pixels of each picture that is kept out of the loss. By them the answer is chosen;
            with 0 it is the last step's.
        augment: copies of each picture that are fitted too, in as many steps as the recipe makes without them, see
            `pixfit.problem.Copies`: ``turns`` or ``crops``. An epoch is then one of all pictures and copies.
        settings: changes by dotted names, as `pixfit.recipes.configure` takes them.
        budget: instead of the recipe's.
        seed: of the weights and the batches.

    Raises:
        ValueError: fewer than two pictures, an unknown name (with the nearest one), or settings out of bounds.
    """
    if len(pictures) < 2:
        raise ValueError(
            f"a memory holds at least two pictures, got {len(pictures)}; `pixfit fit` makes a network of one"
        )
    _check_name("recipe", recipe, RECIPES)
    _check_name("code", code, CODES)
    made = replace(RECIPES[recipe](_alike(pictures), CODES[code], held_out), seed=seed)
    if augment is not None:
        _check_name("augmentation", augment, COPIES)
        made = _augmented(made, cast(Literal["turns", "crops"], augment))
    if budget is not None:
        made = replace(made, budget=budget)
    return recipes.configure(made, settings or {}, recipe=recipe)


def steps_per_epoch(spec: Spec) -> int:
    """Steps until each fitted pixel of all pictures was seen once. The spec's problem must be a `Gallery`."""
    assert isinstance(spec.problem, Gallery)
    return _per_epoch(spec.problem, spec.batches)


def record(spec: Spec, epochs: Sequence[int] | None = None) -> Record:
    """What to keep of a fit, for its pages: the weights after some epochs.

    Args:
        spec: of a gallery.
        epochs: whole numbers; by default about a sixteenth, a quarter and all of the budget, or nothing where that is
            in seconds alone.

    Raises:
        ValueError: an epoch that is no whole number, or below 0.
    """
    one = steps_per_epoch(spec)
    if epochs is None:
        limit = spec.budget.step_limit(one)
        steps = () if limit is None else (limit // 16, limit // 4, limit)
        return Record(keep=tuple(sorted({step - step % one if step >= one else step for step in steps} - {0})))
    if not all(is_whole(epoch) and epoch >= 0 for epoch in epochs):
        raise ValueError(f"epochs is {tuple(epochs)}; they must be whole numbers, 0 or more")
    return Record(keep=tuple(sorted({epoch * one for epoch in epochs})))


def _fallen(pictures: Sequence[Image], inner: Siren, code: Code, held_out: float, epochs: int) -> Spec:
    gallery, batches = Gallery(pictures, held_out=held_out), Batches(_PIXELS)
    optimiser = Adam(_RATE, schedule=Cosine(final=0.01))
    return Spec(
        gallery, Memory(inner, code, gallery.sizes), optimiser=optimiser, batches=batches, budget=Epochs(epochs),
        estimate=_estimate(gallery, batches), precision=_precision(code),
    )  # fmt: skip


def _augmented(made: Spec, by: Literal["turns", "crops"]) -> Spec:
    """The fit with copies beside its pictures, in equally many steps."""
    gallery, model, batches = made.problem, made.model, made.batches
    assert isinstance(gallery, Gallery)
    assert isinstance(model, Memory)
    steps = made.budget.step_limit(_per_epoch(gallery, batches))
    assert steps is not None
    copies = Copies.of(gallery.pictures, by=by, held_out=gallery.held_out, rule=gallery.rule, seed=gallery.seed)
    if isinstance(batches, PictureBatches):  # in their order a step would see copies of one kind alone
        batches = replace(batches, order="shuffled")
    return replace(
        made, problem=copies, model=replace(model, sizes=copies.sizes), batches=batches, budget=Steps(steps),
        estimate=_estimate(copies, batches),
    )  # fmt: skip


def _precision(code: Code) -> Precision:
    """Rounded backward products where they are faster, see `pixfit.kernels.library.Library.fast_bfloat16`."""
    compiled = None if torch.cuda.is_available() or code.learned else library.load()
    return "bfloat16-backward" if compiled is not None and compiled.fast_bfloat16 else "float32"


def _estimate(gallery: Gallery, batches: Batching) -> Estimate:
    """The best by held-out pixels, looked at every epoch, where there are such pixels."""
    return BestHeldOut(_per_epoch(gallery, batches)) if gallery.held_out else Last()


def _per_epoch(gallery: Gallery, batches: Batching) -> int:
    use = gallery.view.use
    fitted = gallery.image.pixels if use is None else int(use.sum())
    return batches.steps_per_epoch(fitted, len(gallery.sizes))


def _alike(pictures: Sequence[Image]) -> list[Image]:
    """The pictures with one number of channels: the most that any needs. None loses anything."""
    coloured = any(picture.channels > 2 for picture in pictures)
    clear = any(picture.channels in (2, 4) for picture in pictures)
    return [_with_channels(picture, coloured, clear) for picture in pictures]


def _with_channels(picture: Image, coloured: bool, clear: bool) -> Image:
    data, own = picture.data, picture.channels in (2, 4)
    colours, alpha = (data[:-1], data[-1:]) if own else (data, torch.ones_like(data[:1]))
    colours = colours.expand(3, -1, -1) if coloured else colours
    data = torch.cat([colours, alpha]) if clear else colours.contiguous()
    return picture if len(data) == picture.channels else replace(picture, data=data)


def _check_name(what: str, name: str, known: Mapping[str, object]) -> None:
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(known)}"
        raise ValueError(f"no {what} for memories is called {name!r}; {hint}")
