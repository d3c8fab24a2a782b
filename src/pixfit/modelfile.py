"""A network in one file: safetensors whose tensors are the plain ``state_dict``, with the spec as JSON beside them.

It holds the network, the spec, and the picture's size and hash; never the picture, its path or the truth. Of a memory
it holds the names of the pictures too, by which they are asked for. Nothing in a file is executed: specs are decoded by
the literal table below, sizes are checked before anything is allocated.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pixfit import canonical, files
from pixfit.augmentation import COPIES
from pixfit.canonical import is_whole
from pixfit.losses import LOSSES
from pixfit.models import (
    CODES,
    ENCODERS,
    ENCODINGS,
    META_MODELS,
    MODELS,
    PRIORS,
    VARIANTS,
    Coordinates,
    Cosines,
    Experts,
    FrozenSiren,
    Hyper,
    LowRank,
    Memory,
    Model,
    Perturbation,
    Tiles,
)
from pixfit.optim import OPTIMISERS
from pixfit.problem import Gallery, Problem, Sealed
from pixfit.result import Result
from pixfit.schedules import SCHEDULES
from pixfit.spec import BATCHES, ESTIMATES, Batches, Last, Shown, Spec
from pixfit.starts import FromPicture, Start
from pixfit.stopping import STOPPING, Budget, Never

__all__ = ["KINDS", "ModelFileError", "Network", "decode", "decode_spec", "load", "save", "size_in_bytes"]

KINDS: dict[str, type] = {
    **MODELS, **META_MODELS, **PRIORS, **ENCODINGS, **LOSSES, **OPTIMISERS, **SCHEDULES, **STOPPING, **ESTIMATES,
    **VARIANTS, **CODES, **BATCHES, "Memory": Memory,
    **ENCODERS, "Hyper": Hyper,
    "Cosines": Cosines, "FrozenSiren": FrozenSiren, "Tiles": Tiles, "LowRank": LowRank,
    "Coordinates": Coordinates, "Experts": Experts, "Perturbation": Perturbation,
    "Budget": Budget, "Start": Start, "FromPicture": FromPicture,
}  # fmt: skip
_LONGEST_JSON = 2**20
_PICTURE = "picture"  # no network has a tensor of this name


class ModelFileError(ValueError):
    """A model file that cannot be read; the text names the file and says why."""


@dataclass(frozen=True, eq=False)
class Network:
    """A fitted network that needs nothing else to render.

    Args:
        model: its settings.
        weights: every tensor by name, as in the ``state_dict`` of `module`.
        record: the canonical form of the spec that was fitted.
        picture: (C, H, W) float32, the fit's answer where it is not what the weights show, as with the estimate
            `pixfit.AveragedOutput`; else None.
        names: of the pictures of a memory, in their order; empty where they are not known, and for other models.
    """

    model: Model
    weights: Mapping[str, Tensor]
    record: Mapping[str, Any]
    picture: Tensor | None = None
    names: tuple[str, ...] = ()

    @classmethod
    def of(cls, result: Result) -> Network:
        """The network of a finished fit. Raises ValueError where the fit left none, or one that is not finite."""
        averaged = isinstance(result.spec.estimate, Shown)
        picture = result.estimate if averaged else None
        kept = [*result.weights.values(), *([] if picture is None else [picture])]
        missing = not result.weights or (averaged and picture is None)
        if missing or not all(bool(value.isfinite().all()) for value in kept):
            raise ValueError(f"this fit has no network: it is {result.status.value} ({result.reason})")
        names = result.spec.problem.names if isinstance(result.spec.problem, Gallery) else ()
        return cls(result.spec.model, result.weights, result.spec.plain, picture, names)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the picture it was fitted to."""
        image = self.record["problem"]["image"]
        return (int(image["channels"]), int(image["height"]), int(image["width"]))

    @property
    def bit_depth(self) -> int:
        """Of the picture's samples as they were read."""
        return int(self.record["problem"]["image"]["bit_depth"])

    @property
    def codes(self) -> Tensor:
        """The codes (N, K) of the pictures of a memory. Raises ValueError for other models."""
        return self._memory.codes(self.weights)

    @property
    def originals(self) -> int:
        """How many pictures of a memory, from the first, are no copies of others, see `pixfit.problem.Copies`.

        Raises ValueError for other models.
        """
        problem = self.record["problem"]
        views = COPIES.get(str(problem.get("by", "turns")), {}) if problem.get("kind") == "Copies" else {}
        return len(self._memory.sizes) // max(1, len(views))

    def number(self, which: int | str) -> int:
        """The number, from 0, of a picture of a memory that is asked for by number or name.

        Raises:
            ValueError: no such picture (with the nearest name), or a model that is no memory.
        """
        sizes = self._memory.sizes
        if isinstance(which, str):
            found = [number for number, name in enumerate(self.names) if name == which]
            if len(found) != 1:
                known = f"{'several' if found else 'none'} of its {len(sizes)} pictures"
                near = _nearest(which, list(self.names)) if self.names and not found else ""
                raise ValueError(f"{known} is called {which!r}{near or '; give the number, from 0'}")
            which = found[0]
        if not (is_whole(which) and 0 <= which < len(sizes)):
            raise ValueError(f"picture is {which!r}; this memory has those from 0 to {len(sizes) - 1}")
        return which

    def one(self, which: int | str) -> Network:
        """One picture of a memory as a network of its own, which can be rendered, saved and fitted further.

        Arguments and errors are those of `number`.
        """
        which = self.number(which)
        return self.shown(self.codes[which], *self._memory.sizes[which])

    def shown(self, code: Tensor, height: int, width: int) -> Network:
        """What a memory or a hypernetwork shows at any code, as an ordinary network of one picture: its inner one.

        Its record keeps the settings but for those that only many pictures have a use for.

        Args:
            code: (K,), such as a row of `codes`, what `pixfit.models.Hyper.encode` gives, or a blend of those.
            height, width: of the picture that the code is of. It may be rendered at any other size.

        Raises:
            ValueError: a code of another length, or a model that has no codes.
        """
        model, image = (self.model if isinstance(self.model, Hyper) else self._memory), self.record["problem"]["image"]
        one = {**{name: image[name] for name in ("channels", "bit_depth")}, "height": height, "width": width}
        record = {
            **self.record, "model": canonical.plain(model.inner), "batches": canonical.plain(Batches()),
            "estimate": canonical.plain(Last()), "stopping": canonical.plain(Never()),
            "problem": {"kind": "Problem", "image": one},
        }  # fmt: skip
        return Network(model.inner, model.shown(self.weights, code), record)

    @property
    def _memory(self) -> Memory:
        if not isinstance(self.model, Memory):
            raise ValueError(f"a {type(self.model).__name__} holds one picture; only a Memory has several")
        return self.model

    def module(self, *, device: torch.device | str = "cpu") -> nn.Module:
        """The plain ``nn.Module``, from coordinates (N, D) to outputs (N, C) in the model's target range; of a
        `pixfit.models.PicturePrior` from noise on its code, such as zeros (1, 1, 1), to all pixels (H·W, C)."""
        with torch.device("meta"):
            module = self.model.sized(*self.shape[1:]).network(self.model.in_features, self.shape[0])
        module.load_state_dict(dict(self.weights), assign=True)
        return module.requires_grad_(False).to(device)


def size_in_bytes(network: Network) -> int:
    """What the file of the network needs."""
    return len(_to_bytes(network))


def save(network: Network | Result, path: str | Path) -> int:
    """Writes the model file, whole or not at all, and returns its size in bytes.

    Raises:
        ModelFileError: no such folder, or a model of your own that no program could read back.
    """
    model = network.spec.model if isinstance(network, Result) else network.model
    if KINDS.get(type(model).__name__) is not type(model):
        raise ModelFileError(
            f"{path}: {type(model).__name__} is not in the table of models; put the class into pixfit.models.MODELS, "
            "in its source, so that every program that reads the file knows it"
        )
    target = Path(path)
    if target.is_dir() or not target.parent.is_dir():
        raise ModelFileError(
            f"{target}: {'this is a folder' if target.is_dir() else 'its folder does not exist'}; give a file name"
        )
    data = _to_bytes(Network.of(network) if isinstance(network, Result) else network)
    files.write_bytes(target, data)
    return len(data)


def load(path: str | Path) -> Network:
    """Reads a model file.

    Raises:
        ModelFileError: a file that is missing, broken, made by a newer pixfit, or whose tensors are not those of the
            network it names. One line, with what to do.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not os.path.isfile(path):  # Path.is_file raises on names that the system finds too long
        raise ModelFileError(f"{path}: no such file; `pixfit fit PICTURE -o {path.name}` makes one")
    try:
        with safe_open(path, framework="pt") as stored:
            record, called = _record(path, stored.metadata() or {})
            model = decode(record["model"])
            if not isinstance(model, Model):
                raise ModelFileError(f"{path}: its model is a {type(model).__name__}, which is no network")
            names = set(stored.keys())
            experts = getattr(getattr(model, "experts", None), "count", 1)
            if getattr(model, "hidden_layers", 0) * experts > len(names):  # before a hundred thousand layers are made
                raise ModelFileError(f"{path}: it holds fewer tensors than the network that it names; it is damaged")
            shape = Sealed(dict(record["problem"])).shape
            with torch.device("meta"):
                network = model.sized(*shape[1:]).network(model.in_features, shape[0])
            expected = {name: list(value.shape) for name, value in network.state_dict().items()}
            averaged = isinstance(decode(record.get("estimate")), Shown)
            found = {name: list(stored.get_slice(name).get_shape()) for name in names}
            if found != expected | ({_PICTURE: list(shape)} if averaged else {}):
                raise ModelFileError(
                    f"{path}: its tensors are not those of the {type(model).__name__} that it names; it is damaged"
                )
            if len(called) not in (0, len(model.sizes)):
                raise ModelFileError(f"{path}: it names {len(called)} of {len(model.sizes)} pictures; it is damaged")
            if model.sizes and shape[1:] != (1, sum(height * width for height, width in model.sizes)):
                raise ModelFileError(f"{path}: its pictures are not of the sizes that it names; it is damaged")
            weights = {name: stored.get_tensor(name) for name in expected}
            picture = stored.get_tensor(_PICTURE) if averaged else None
    except ModelFileError as error:
        raise error if str(path) in str(error) else ModelFileError(f"{path}: {_line(error)}") from None
    except (SafetensorError, OSError) as error:
        raise ModelFileError(f"{path}: not a readable safetensors file ({_line(error)})") from None
    except (KeyError, TypeError, ValueError, RuntimeError, RecursionError, OverflowError, MemoryError) as error:
        raise ModelFileError(f"{path}: its description is damaged ({type(error).__name__}: {_line(error)})") from None
    formats = {value.dtype for value in weights.values()}
    if formats not in ({torch.float32}, {torch.float64}) or (picture is not None and picture.dtype != torch.float32):
        raise ModelFileError(f"{path}: its tensors must all be float32 or all float64; it is damaged")
    kept = [*weights.values(), *([] if picture is None else [picture])]
    if not all(bool(value.isfinite().all()) for value in kept):
        raise ModelFileError(f"{path}: some of its weights are not finite numbers; fit the picture again")
    return Network(model, weights, record, picture, called)


def decode(plain: Any) -> Any:
    """Settings from their canonical form, by a literal table of classes.

    Raises:
        ValueError: an unknown kind or setting (with the nearest known name), or a value that the class refuses.
    """
    if isinstance(plain, list):
        return tuple(decode(item) for item in plain)
    if not isinstance(plain, dict):
        return plain
    kind = plain.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise ValueError(f"no settings are called {str(kind)[:50]!r}{_nearest(str(kind), list(KINDS))}")
    known = [field.name for field in fields(KINDS[kind])]
    for name in plain:
        if name != "kind" and name not in known:
            raise ValueError(f"{kind} has no setting {name!r}{_nearest(name, known)}")
    try:
        return KINDS[kind](**{name: decode(value) for name, value in plain.items() if name != "kind"})
    except TypeError as error:
        raise ValueError(f"{kind}: {error}") from None


def decode_spec(plain: Mapping[str, Any], problem: Problem | None = None) -> Spec:
    """A spec from its canonical form, for a problem; without one it is `Sealed`, known by its record alone.

    A start from other weights comes back as a start at random: files name their parent by its id, they do not hold it.
    A start from the picture is kept.
    """
    known = [field.name for field in fields(Spec)]
    for name in plain:
        if name != "kind" and name not in known:
            raise ValueError(f"a spec has no setting {name!r}{_nearest(name, known)}")
    settings = {name: decode(value) for name, value in plain.items() if name not in ("kind", "problem", "start")}
    start = plain.get("start")
    if isinstance(start, Mapping) and start.get("weights") == canonical.plain(FromPicture()):
        settings["start"] = Start(FromPicture(), layers=start.get("layers"))
    return Spec(problem if problem is not None else Sealed(dict(plain["problem"])), **settings)


def _to_bytes(network: Network) -> bytes:
    from safetensors.torch import save as to_safetensors

    tensors = {name: value.contiguous() for name, value in network.weights.items()}
    if network.picture is not None:
        tensors[_PICTURE] = network.picture.contiguous()
    about: dict[str, Any] = {"schema": canonical.SCHEMA, "spec": network.record}
    if network.names:
        about["pictures"] = network.names
    text = json.dumps(about, sort_keys=True, separators=(",", ":"))
    if len(text) > _LONGEST_JSON:
        raise ModelFileError(
            f"the description of this network has {len(text):,} characters, and a model file takes {_LONGEST_JSON:,}; "
            "use fewer pictures, or shorter names"
        )
    # One entry only: safetensors writes several in random order, and one network should be one sequence of bytes.
    return to_safetensors(tensors, {"pixfit": text})


def _record(path: Path, metadata: Mapping[str, str]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The spec's canonical form, and the names of a memory's pictures."""
    if "pixfit" not in metadata:
        raise ModelFileError(f"{path}: a safetensors file, but not one of pixfit's; `pixfit fit` makes those")
    if len(metadata["pixfit"]) > _LONGEST_JSON:
        raise ModelFileError(f"{path}: its description is longer than any spec can be; it is damaged")
    about = json.loads(metadata["pixfit"])
    if (
        not isinstance(about, dict)
        or not isinstance(about.get("schema"), int)
        or not isinstance(about.get("spec"), dict)
    ):
        raise ModelFileError(f"{path}: its description is not a spec; it is damaged")
    if about["schema"] > canonical.SCHEMA:
        raise ModelFileError(f"{path}: made by a newer pixfit (schema {about['schema']}); update pixfit to read it")
    record: dict[str, Any] = about["spec"]
    sides = record["problem"]["image"]
    if not all(isinstance(sides[name], int) and 1 <= sides[name] <= 2**24 for name in ("height", "width")) or not (
        isinstance(sides["channels"], int) and 1 <= sides["channels"] <= 4
    ):
        raise ModelFileError(f"{path}: it names a picture of impossible size; it is damaged")
    if sides["bit_depth"] not in (8, 16, 32):
        raise ModelFileError(f"{path}: it names a picture of an impossible bit depth; it is damaged")
    names = about.get("pictures", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ModelFileError(f"{path}: its pictures have names that are no texts; it is damaged")
    return record, tuple(names)


def _line(error: Exception) -> str:
    """The error's text as one line of bearable length."""
    return " ".join(str(error).split())[:300]


def _nearest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(sorted(known))}"
