"""Many pictures in one network: which design memorises, up-samples and interpolates best?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, ClassVar, Literal, get_args

import torch

from pixfit.canonical import is_number, is_whole
from pixfit.images import Image
from pixfit.modelfile import Network
from pixfit.models import ConvEncoder, Hyper, Memory, Siren
from pixfit.optim import Adam
from pixfit.problem import Copies, Gallery, Problem, stream
from pixfit.result import Status
from pixfit.spec import BestHeldOut, Last, PictureBatches, Precision, Record, Spec
from pixfit.stopping import Epochs, Steps
from pixfit.store import Store
from pixfit.studies import memorize_answer, memorize_pictures
from pixfit.studies.memorize_acceptance import Facts, facts
from pixfit.studies.memorize_designs import DESIGNS, HYPER, PUBLISHED
from pixfit.studies.memorize_drawings import Drawings, drawings
from pixfit.studies.memorize_pictures import Pictures, doubled
from pixfit.studies.memorize_scores import Score, network_at, of_hyper, of_memory
from pixfit.studies.memorize_upsampling import FILTERS, Controls, filtered
from pixfit.studies.study import Answer, Study, StudyError

__all__ = ["MemorizeStudy"]

_HELD_OUT = 0.1  # of the pixels of each picture, by the published rule
_LOOK = 5  # epochs between two looks at held-out pixels, but for the published training, which looks after each


@dataclass(frozen=True)
class MemorizeStudy(Study):
    """The settings of the study of memories.

    The profile ``laptop`` makes the published training whole, at its own width, and compares the designs at half of
    that width for 200 epochs of 801, with hypernetworks of an eighth of the published width and 500 steps. So it leaves
    out how the designs do at the published width and length, and the published hypernetworks, which want a GPU.

    Args:
        images: ``icons``: the data folder's ``exercise_multi_image`` (``PIXFIT_DATA``); ``bundled``: crops of bundled
            pictures; or a folder of small pictures, to be memorised.
        large: with a folder, the one of the same pictures in more pixels, in the order of file names; empty: none.
        count: of pictures, from the first; null: all.
        alpha: of the small pictures: ``white``, or ``drop`` as published. The published training always drops it.
        designs: which, see `pixfit.studies.memorize_designs.DESIGNS` and ``HYPER``; the one named ``published`` is
            the published training, whole, and the only one that the acceptance table is about.
        features: width of the compared networks, but for those of hypernetworks.
        epochs: of each compared fit. All of them make as many steps, on about as many pixels each.
        batch: pictures in a step.
        published_features, published_epochs: of the published training.
        hyper_width, hyper_features, hyper_steps, hyper_lr: of a hypernetwork the width of its encoder and perceptrons,
            the width of the network that it makes, its steps of training, and their learning rate.
        unseen: how many pictures, from the last, no hypernetwork is trained on.
        contexts: how many pixels of those it is shown then; null: all.
        upsampled: at most so many pictures, evenly spaced, are compared with their large ones.
        pairs: of distinct pictures, drawn with the seed, between which paths are measured.
        shown: epochs of the published training whose pictures are drawn.
        show: whether figures that show the pictures are written. Set it where their licence allows it.
        precision: of the compared fits and the published training, where a design can have it.
        seed: of all fits and draws.
    """

    images: str = "icons"
    large: str = ""
    count: int | None = None
    alpha: str = "white"
    designs: tuple[str, ...] = ("published", *DESIGNS, *HYPER)
    features: int = 480
    epochs: int = 801
    batch: int = 16
    published_features: int = 480
    published_epochs: int = 801
    hyper_width: int = 256
    hyper_features: int = 256
    hyper_steps: int = 5607
    hyper_lr: float = 5e-5
    unseen: int = 10
    contexts: tuple[int | None, ...] = (10, 100, 1000, None)
    upsampled: int = 15
    pairs: int = 6
    shown: tuple[int, ...] = (50, 750)
    show: bool = False
    precision: Precision = "float32"
    seed: int = 0

    name: ClassVar[str] = "memorize"
    profiles: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "smoke": {
            "images": "bundled", "features": 20, "epochs": 10, "batch": 3, "published_features": 16,
            "published_epochs": 12, "hyper_width": 4, "hyper_features": 8, "hyper_steps": 4, "unseen": 2,
            "contexts": (10, None), "upsampled": 2, "pairs": 2, "shown": (5, 10),
        },
        "laptop": {
            "features": 240, "epochs": 200, "hyper_width": 32, "hyper_features": 128, "hyper_steps": 500,
            "hyper_lr": 5e-4,
        },
        "published": {},
    }  # fmt: skip

    _specs: dict[str, Spec] = field(default_factory=dict, init=False, repr=False, compare=False)
    _galleries: dict[str, Gallery] = field(default_factory=dict, init=False, repr=False, compare=False)
    _scores: dict[str, Score | None] = field(default_factory=dict, init=False, repr=False, compare=False)
    _known: dict[str, Facts] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        known = ("published", *DESIGNS, *HYPER)
        for one in self.designs:
            if one not in known:
                raise StudyError(f"designs has {one!r}; it may have {', '.join(known)}")
        if not self.designs or len(set(self.designs)) < len(self.designs):
            raise StudyError(f"designs is {', '.join(self.designs) or 'empty'}; name at least one, each once")
        wholes = ["features", "epochs", "batch", "published_features", "published_epochs", "hyper_width"]
        wholes += ["hyper_features", "hyper_steps", "unseen", "upsampled", "pairs"]
        for name in (*wholes, *(["count"] if self.count is not None else [])):
            if not is_whole(getattr(self, name)) or getattr(self, name) < 1:
                raise StudyError(f"{name} is {getattr(self, name)!r}; it must be a whole number, 1 or more")
        if not (is_number(self.hyper_lr) and self.hyper_lr > 0):
            raise StudyError(f"hyper_lr is {self.hyper_lr!r}; it must be a number above 0")
        if self.features < 10 and "bottleneck" in self.designs:
            raise StudyError(f"features is {self.features}; a bottleneck of a tenth needs 10 or more")
        even = [one for one in self.designs if one in HYPER and HYPER[one].encoder is ConvEncoder]
        if self.hyper_width % 2 and even:
            raise StudyError(f"hyper_width is {self.hyper_width}; {even[0]} needs an even one")
        for name in ("shown", "contexts"):
            value = getattr(self, name)
            if not all((name == "contexts" and one is None) or (is_whole(one) and one >= 0) for one in value):
                raise StudyError(f"{name} is {value!r}; it must be whole numbers, 0 or more, such as 50,750")
        if self.alpha not in ("white", "drop"):
            raise StudyError(f"alpha is {self.alpha!r}; it may be white or drop")
        if self.precision not in get_args(Precision):
            raise StudyError(f"precision is {self.precision!r}; it may be {', '.join(get_args(Precision))}")
        if not isinstance(self.show, bool):
            raise StudyError(f"show is {self.show!r}; it may be true or false")
        if not (is_whole(self.seed) and 0 <= self.seed < 2**62):
            raise StudyError(f"seed is {self.seed!r}; it must be 0 to 2^62 - 1")

    # -------------------------------------------------------------------------------------------------------- pictures

    @cached_property
    def pictures(self) -> Pictures:
        """What the compared designs memorise, and the large pictures that they are compared with."""
        return memorize_pictures.load(self.images, self.large, self.alpha, self.count)

    @cached_property
    def dropped(self) -> Pictures:
        """The same with small pictures whose alpha was dropped, as published."""
        return self.pictures if self.alpha == "drop" else memorize_pictures.without_alpha(self.images, self.pictures)

    def gallery(self, shown: str) -> Gallery:
        """What networks are fitted to: ``published``, or what a design names in its ``shown``."""
        if shown not in self._galleries:
            small = self.dropped.small if shown == "published" else self.pictures.small
            if shown in ("copies", "crops"):
                by: Literal["turns", "crops"] = "turns" if shown == "copies" else "crops"
                made: Gallery = Copies.of(small, by=by, held_out=_HELD_OUT, rule="published")
            elif shown == "doubled":
                made = Gallery(doubled(small), held_out=0.0)
            else:
                made = Gallery(small, held_out=_HELD_OUT, rule="published")
            self._galleries[shown] = made
        return self._galleries[shown]

    @cached_property
    def mosaic(self) -> Problem | None:
        """What hypernetworks are trained on, one picture below the other; None where they have several sizes."""
        if len({picture.data.shape for picture in self.pictures.small}) > 1:
            return None
        if len(self.pictures.small) <= self.unseen:
            raise StudyError(f"unseen is {self.unseen}, of {len(self.pictures.small)} pictures; lower unseen")
        data = torch.cat([picture.data for picture in self._trained], dim=1)
        return Problem(Image(data, name="mosaic", bit_depth=max(picture.bit_depth for picture in self._trained)))

    @property
    def _trained(self) -> tuple[Image, ...]:
        return self.pictures.small[: -self.unseen]

    @cached_property
    def chosen(self) -> tuple[int, ...]:
        """The pictures that are compared with their large ones."""
        return tuple(range(0, len(self.pictures.small), -(-len(self.pictures.small) // self.upsampled)))

    @cached_property
    def drawn_pairs(self) -> tuple[tuple[int, int], ...]:
        """Pairs of pictures of one size, each picture in one of them."""
        order = torch.randperm(len(self.pictures.small), generator=stream(self.seed, "pairs")).tolist()
        waiting: dict[tuple[int, ...], int] = {}
        found = []
        for number in order:
            shape = tuple(self.pictures.small[number].data.shape)
            if shape in waiting:
                found.append((waiting.pop(shape), number))
            else:
                waiting[shape] = number
        return tuple(found[: self.pairs])

    @property
    def per_epoch(self) -> int:
        """Steps of an epoch of all pictures."""
        return -(-len(self.pictures.small) // self.batch)

    # ------------------------------------------------------------------------------------------------------------ fits

    def fit(self, design: str) -> Spec:
        """The fit of a design. Raises StudyError for a hypernetwork of pictures of several sizes."""
        if design not in self._specs:
            made = self._published() if design == "published" else (
                self._hyper(design) if design in HYPER else self._memory(design)
            )  # fmt: skip
            self._specs[design] = made
        return self._specs[design]

    def _published(self) -> Spec:
        gallery = self.gallery("published")
        inner = Siren(3, self.published_features, coordinates=PUBLISHED)
        return Spec(
            gallery, Memory(inner, sizes=gallery.sizes), batches=PictureBatches(self.batch), optimiser=Adam(1e-4),
            budget=Epochs(self.published_epochs), estimate=BestHeldOut(self.per_epoch), precision=self.precision,
            seed=self.seed,
        )  # fmt: skip

    def _memory(self, name: str) -> Spec:
        design = DESIGNS[name]
        gallery = self.gallery(design.shown)
        side = (max(height for height, _ in gallery.sizes), max(width for _, width in gallery.sizes))
        model = Memory(design.inner(self.features, side), design.code, gallery.sizes)
        order: Literal["fixed", "shuffled"] = "shuffled" if isinstance(gallery, Copies) else "fixed"
        # A step sees about as many pixels, of fewer pictures where these are larger.
        small = self.pictures.small
        own, shown = sum(one.pixels for one in small) * len(gallery.sizes), gallery.image.pixels * len(small)
        batch = max(1, self.batch * own // shown)
        return Spec(
            gallery, model, batches=PictureBatches(batch, order), optimiser=design.optimiser,
            budget=Steps(self.epochs * self.per_epoch),
            estimate=BestHeldOut(_LOOK * self.per_epoch) if gallery.held_out else Last(),
            precision=self.precision if model.plan(model.in_features) is not None else "float32", seed=self.seed,
        )  # fmt: skip

    def _hyper(self, name: str) -> Spec:
        if self.mosaic is None:
            raise StudyError(f"{name} needs pictures of one size, and these have several; leave it out of designs")
        height, width = self._trained[0].height, self._trained[0].width
        pixels = height * width
        published = 1024  # pixels of the pictures that its contexts were drawn for
        model = Hyper(
            Siren(3, self.hyper_features, coordinates=PUBLISHED), HYPER[name].encoder(self.hyper_width),
            hidden_features=self.hyper_width, height=height, width=width,
            context=(10.0 * pixels / published, 200.0 * pixels / published),
        )  # fmt: skip
        return Spec(
            self.mosaic, model, batches=HYPER[name].batches(min(self.batch, len(self._trained)) * pixels),
            optimiser=Adam(self.hyper_lr, clip_norm=1.0), budget=Steps(self.hyper_steps), seed=self.seed,
        )  # fmt: skip

    @property
    def possible(self) -> tuple[str, ...]:
        """The designs that these pictures allow: hypernetworks need those of one size."""
        return tuple(name for name in self.designs if name not in HYPER or self.mosaic is not None)

    def fits(self, store: Store) -> list[Spec]:
        return list({spec.id: spec for spec in map(self.fit, self.possible)}.values())

    def record(self, spec: Spec) -> Record:
        """The last weights; of the published training those whose pictures are drawn, too."""
        keep = {self._last(spec)}
        if "published" in self.designs and spec == self.fit("published"):
            keep |= {epoch * self.per_epoch for epoch in self.shown if epoch <= self.published_epochs}
        return Record(keep=tuple(sorted(keep)))

    def _last(self, spec: Spec) -> int:
        """The step at which its budget ends."""
        limit = spec.budget.step_limit(self.per_epoch)
        assert limit is not None
        return limit

    # ---------------------------------------------------------------------------------------------------------- answer

    def answer(self, store: Store) -> Answer:
        rows = {row["id"]: row for row in store.rows()}
        scores: dict[str, Score] = {}
        for design in self.possible:
            if (score := self._score(store, design, rows)) is not None:
                scores[design] = score
        first = self.pictures.small[0]
        shown = Drawings({}, {})
        if self.show:
            pictures = {name: self.dropped if name == "published" else self.pictures for name in scores}
            masked = self.gallery("published") if "published" in scores else None
            steps = {f"epoch {epoch}": epoch * self.per_epoch for epoch in self.shown}
            shown = drawings(partial(self._network, store), pictures, self.chosen, self.drawn_pairs, masked, steps)
        return memorize_answer.answer(
            scores, self.controls if scores else {}, self._facts(store, scores),
            [name for name in self.designs if name not in scores], first.pixels, shown,
        )  # fmt: skip

    @cached_property
    def controls(self) -> Controls:
        """The quality of pictures that filters made larger, by filter and convention."""
        return self._filtered(self.pictures, tuple(FILTERS))

    def _filtered(self, pictures: Pictures, names: Sequence[str]) -> Controls:
        if not pictures.large:
            return {}
        small, large = ([group[i].data for i in self.chosen] for group in (pictures.small, pictures.large))
        return filtered(small, large, names)

    def _score(self, store: Store, design: str, rows: Mapping[str, Mapping[str, Any]]) -> Score | None:
        """Of a finished fit, kept for the next question: networks are asked for many pixels."""
        spec = self.fit(design)
        if spec.id not in rows or not Status(rows[spec.id]["status"]).finished:
            return None
        if spec.id not in self._scores:
            result, row = store.get(spec), rows[spec.id]
            if result is None:
                return None
            if design in HYPER:
                made = of_hyper(
                    result, self.pictures, len(self._trained), self.chosen, self.drawn_pairs, self.contexts, self.seed,
                    self.per_epoch, row,
                )  # fmt: skip
            else:
                pictures = self.dropped if design == "published" else self.pictures
                made = of_memory(
                    result, self._last(spec), pictures, self.chosen, self.drawn_pairs, self.per_epoch, row
                )  # fmt: skip
            self._scores[spec.id] = made
        return self._scores[spec.id]

    def _facts(self, store: Store, scores: Mapping[str, Score]) -> Facts | None:
        """What the acceptance of the published training needs; None where that is not finished."""
        if "published" not in scores:
            return None
        spec = self.fit("published")
        if spec.id not in self._known:
            network, result = self._network(store, "published"), store.get(spec)
            assert network is not None
            assert result is not None
            controls = self._filtered(self.pictures, ("bicubic",))
            bicubic = controls["bicubic"]["edges"] if controls else None
            self._known[spec.id] = facts(
                result, network, scores["published"], self.drawn_pairs, self.per_epoch, self.batch, bicubic
            )  # fmt: skip
        return self._known[spec.id]

    def _network(self, store: Store, design: str, step: int | None = None) -> Network | None:
        """The network of a finished fit at a step, by default its last."""
        spec = self.fit(design)
        if (result := store.get(spec)) is None:
            return None
        return network_at(result) if design in HYPER else network_at(result, self._last(spec) if step is None else step)
