"""Many pictures in one network: `spec` says how it is fitted, `scores` and `write_pages` how well it holds them, `walk`
what it shows between two of them, and `neighbours` which of them are alike to it.
"""

from pixfit.memorize.comparisons import Neighbours, Walk, check_drawable, draw, neighbours, walk
from pixfit.memorize.pages import Scores, scores, write_pages
from pixfit.memorize.recipes import (
    CODES,
    RECIPES,
    Recipe,
    bottleneck,
    exercise_published,
    quick,
    record,
    spec,
    steps_per_epoch,
)

__all__ = [
    "CODES", "RECIPES", "Neighbours", "Recipe", "Scores", "Walk", "bottleneck", "check_drawable", "draw",
    "exercise_published", "neighbours", "quick", "record", "scores", "spec", "steps_per_epoch", "walk", "write_pages",
]  # fmt: skip
