"""F networks as one: their weights as a matrix, the samples they are fitted to, and the passes through both.

Shape legend: F fits of one stack, P parameters of a fit, N samples (known pixels), B of them in a batch, C channels, D
coordinates of a sample: two, or a code and two.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.func import functional_call, vmap
from torch.nn import Parameter

from pixfit.kernels import Crew, Plan, twin
from pixfit.models import Model, PicturePrior
from pixfit.models.conv_networks import HourglassNetwork
from pixfit.optim import Entry
from pixfit.problem import View, stream
from pixfit.spec import AugmentedBatches, PictureBatches
from pixfit.starts import Weights

__all__ = ["Samples", "Stack"]


class Stack:
    """The weights (F, P) of F networks of one model, their gradient, and the way through them.

    Args:
        model: the network's settings.
        channels: of the picture.
        weights: F mappings with every tensor of the network; they are copied.
        masks: F masks, or None where a fit has none.
        threads: that compiled code may use for hourglasses, where it serves them; 0 leaves them to torch.
        rounded: the plan to run instead of the network, with bfloat16 operands in its backward products, or None.
        dtype, device: of all that is computed.

    Raises:
        ValueError: tensors that are not those of the model's network.
    """

    def __init__(
        self,
        model: Model,
        channels: int,
        weights: Sequence[Mapping[str, Tensor]],
        masks: Sequence[Weights | None],
        *,
        threads: int,
        rounded: Plan | None = None,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.fits, self.dtype, self.device, self._rounded = len(weights), dtype, device, rounded
        self._prior = model if isinstance(model, PicturePrior) else None
        with torch.device("meta"):
            network = model.network(model.in_features, channels)
        self.network = network.to(dtype).to_empty(device=device)
        hourglasses = [one for one in self.network.modules() if isinstance(one, HourglassNetwork)]
        for one in hourglasses:
            one.threads = threads
        self.has_maps = bool(hourglasses)
        self._in_one_row = (
            self.fits == 1 and type(self.network) is HourglassNetwork and not isinstance(self.network.code, Parameter)
            and threads > 0
        )  # fmt: skip
        expected = {name: tuple(value.shape) for name, value in self.network.state_dict().items()}
        for named in weights:
            if {name: tuple(value.shape) for name, value in named.items()} != expected:
                raise ValueError(f"the weights given are not those of {type(model).__name__} with these settings")
        self.layout: list[Entry] = []
        at = 0
        for name, parameter in self.network.named_parameters():
            self.layout.append(Entry(name, tuple(parameter.shape), at, at + parameter.numel()))
            at += parameter.numel()
        rows = [torch.cat([named[entry.name].reshape(-1).to(dtype) for entry in self.layout]) for named in weights]
        self.weights = torch.stack(rows).to(device)
        self.buffers = {
            name: torch.stack([named[name] for named in weights]).to(device, dtype)
            for name, _ in self.network.named_buffers()
        }
        self.mask = None if all(mask is None for mask in masks) else self._stacked(masks)
        if self.mask is not None:
            self.weights.mul_(self.mask)
        self._bind()

    def _bind(self) -> None:
        """One fit: the module's own parameters become windows on the row, so that plain calls train it."""
        if self.fits > 1:
            self._leaves = [self.weights.requires_grad_(True)]
            return
        self.network.load_state_dict({name: buffer[0] for name, buffer in self.buffers.items()}, strict=False)
        self._leaves = list(self.network.parameters())
        for network in self.network.modules():
            if isinstance(network, HourglassNetwork) and not isinstance(network.code, Parameter):
                # In the order of maps, in which its noise comes, too.
                network.code = network.code.permute(1, 2, 0).contiguous().permute(2, 0, 1)
        # A second module shows other weights than those in training; swapping them in the first is not for threads.
        self._shown, self._still = self.weights[0].clone(), copy.deepcopy(self.network).requires_grad_(False)
        for row, network in ((self.weights[0], self.network), (self._shown, self._still)):
            for entry, parameter in zip(self.layout, network.parameters(), strict=True):
                parameter.data = row[entry.start : entry.stop].view(entry.shape)
        if self._in_one_row:
            own = self.weights[0].requires_grad_(True)
            self.network.row, self._still.row, self._leaves = own, self._shown, [own]

    def _stacked(self, masks: Sequence[Weights | None]) -> Tensor:
        stacked = torch.ones_like(self.weights)
        places = {entry.name: entry for entry in self.layout}
        for row, mask in zip(stacked, masks, strict=True):
            for name, value in ({} if mask is None else mask.tensors).items():
                if name not in places or tuple(value.shape) != places[name].shape:
                    raise ValueError(f"the mask names {name} {tuple(value.shape)}, which this network does not have")
                row[places[name].start : places[name].stop] = value.reshape(-1).to(row)
        return stacked

    @property
    def widest(self) -> int:
        """The largest side of any matrix: a measure of the work at one sample, which sees little of a feature grid."""
        matrices = (entry.shape for entry in self.layout if len(entry.shape) > 1 and ".tables." not in entry.name)
        return max((max(shape) for shape in matrices), default=1)

    @property
    def tile(self) -> int:
        """Samples that pass at a time, so that activations stay in the caches of a CPU and in the memory of a GPU."""
        return max(1024, (2**20 if self.device.type == "cpu" else 2**27) // (self.widest * self.fits))

    def forward(self, coordinates: Tensor, *, targets: Tensor | None = None, autocast: bool = False) -> Tensor:
        """(1 or F, B, D) to (F, B, C) with the weights in training; ``targets`` (F, B, C) for a model with tiles.

        Networks of whole pictures take their noise (1 or F, …) instead of coordinates and give all pixels (F, H·W, C).
        """
        if self._rounded is not None:
            leaves = self._leaves if self.fits == 1 else self._cut(self.weights)
            tensors = {
                entry.name: leaf.reshape(-1, *entry.shape) for entry, leaf in zip(self.layout, leaves, strict=True)
            }
            return twin.forward(self._rounded, tensors | self.buffers, coordinates, backward="bfloat16")
        # The cache of cast weights is shared by threads, which come and go at different times here.
        with torch.autocast(self.device.type, torch.bfloat16, enabled=autocast, cache_enabled=False):
            if self.fits > 1:
                return self._together(self.weights, coordinates, targets).to(self.dtype)
            given = (coordinates[0],) if targets is None else (coordinates[0], targets[0])
            output: Tensor = self.network(*given)[None]
        return output.to(self.dtype)

    def gradient(self, losses: Tensor) -> Tensor:
        """The gradient (F, P) of losses (F,), each with respect to its own fit's weights."""
        slopes = torch.autograd.grad(losses.sum(), self._leaves, materialize_grads=True)
        return slopes[0] if self.fits > 1 else torch.cat([slope.reshape(-1) for slope in slopes])[None]

    def _cut(self, weights: Tensor) -> list[Tensor]:
        """The parts (F, n) of weights (F, P) that are one tensor each."""
        return [weights[:, entry.start : entry.stop] for entry in self.layout]

    def _together(self, weights: Tensor, coordinates: Tensor, targets: Tensor | None = None) -> Tensor:
        """(1 or F, B, D) to (F, B, C) with any weights (F, P)."""
        parts = zip(self.layout, self._cut(weights), strict=True)
        tensors = {entry.name: part.reshape(-1, *entry.shape) for entry, part in parts}

        def one(tensors: dict[str, Tensor], buffers: dict[str, Tensor], *given: Tensor) -> Tensor:
            output: Tensor = functional_call(self.network, {**tensors, **buffers}, given)
            return output

        shared = coordinates.shape[0] == 1
        if self._prior is not None:
            # One after another: a picture fills the machine, and convolutions with F weights are slow.
            pictures = []
            for fit in range(self.fits):
                own = {name: value[fit] for name, value in (tensors | self.buffers).items()}
                pictures.append(functional_call(self.network, own, (coordinates[0 if shared else fit],)))
            return torch.stack(pictures)
        points = coordinates[0] if shared else coordinates
        more = () if targets is None else (targets,)
        in_dims = (0, 0, None if shared else 0, *(0 for _ in more))
        return vmap(one, in_dims=in_dims)(tensors, self.buffers, points, *more)

    def explained(self, measured: Tensor) -> Tensor:
        """What the loss compares with the measurement, of what the pictures in training measure, (F, C', H', W')."""
        if self._prior is None:
            return measured
        names, leaves = [entry.name for entry in self.layout], self._leaves
        if self._in_one_row:
            leaves = [leaves[0][entry.start : entry.stop].view(entry.shape) for entry in self.layout]
        if self.fits > 1:
            parts = zip(self.layout, self._cut(self.weights), strict=True)
            leaves = [part.reshape(-1, *entry.shape) for entry, part in parts]
        rows = [leaves] if self.fits == 1 else [[leaf[fit] for leaf in leaves] for fit in range(self.fits)]
        pairs = zip(measured, rows, strict=True)
        return torch.stack([self._prior.explained(own, dict(zip(names, row, strict=True))) for own, row in pairs])

    def predict(self, weights: Tensor, coordinates: Tensor, crew: Crew) -> Tensor:
        """Outputs (F, n, C) of any weights (F, P) at coordinates (1 or F, n, D), tile by tile, without gradients.

        Of networks of whole pictures at places (1 or F, n), from all pixels at once.
        """
        if self.fits == 1:
            self._shown.copy_(weights[0].detach())

        def shown(points: Tensor) -> Tensor:
            # Without the user's autocast, as in training.
            with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
                return self._still(points[0])[None] if self.fits == 1 else self._together(weights, points)

        if self._prior is not None:
            pixels = shown(torch.zeros(1, 1, 1, 1, dtype=self.dtype, device=self.device))
            return _pick(pixels, coordinates.to(self.device).expand(self.fits, -1))
        coordinates = coordinates.to(self.device, self.dtype)

        def one(tile: int) -> Tensor:
            return shown(coordinates[:, tile * self.tile : (tile + 1) * self.tile])

        return torch.cat(crew.map(one, -(-coordinates.shape[1] // self.tile)), dim=1)

    def named(self, weights: Tensor, fit: int) -> dict[str, Tensor]:
        """One fit's tensors by name, on the CPU, in the network's own order."""
        row = weights[fit].detach().cpu()
        named = {entry.name: row[entry.start : entry.stop].reshape(entry.shape).clone() for entry in self.layout}
        named.update({name: value[fit].cpu().clone() for name, value in self.buffers.items()})
        return {name: named[name] for name in self.network.state_dict()}


class Samples:
    """What a stack is fitted to: places in the picture, pixels, and weights.

    With a pointwise operator a sample is a known pixel: places (1 or F, N) in row-major order, pixels and weights
    (F, N, C). With any other, and for networks of whole pictures, it is the whole picture: all its places, pixels and
    weights (F, C', H', W').

    Args:
        model: for the coordinate convention and the target range.
        views: one a fit, with as many samples each.
        seeds: one a fit, of the order of its batches.
        batch: samples of a step; None for all.
        pictures: whole pictures of a step instead; None: no such.
        augmented: how a step shows the tiles of its batch; None: as they are.
    """

    def __init__(
        self,
        model: Model,
        views: Sequence[View],
        seeds: Sequence[int],
        batch: int | None,
        *,
        pictures: PictureBatches | None = None,
        augmented: AugmentedBatches | None = None,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.model, self.seeds, self.device, self._pictures = model, seeds, device, pictures
        self._augmented = augmented
        self.operator, self.shape = views[0].operator, views[0].shape
        self._prior = model if isinstance(model, PicturePrior) else None
        self._code_shape = (0, 0, 0) if self._prior is None else self._prior.code_shape
        self.pointwise = self.operator.pointwise and self._prior is None
        rows, columns = model.coordinates.axes(*self.shape[1:], dtype=dtype)
        self._axes = (rows.to(device), columns.to(device))
        if self.pointwise:
            parts = [view.samples() for view in views]
            places = torch.stack([part[0] for part in parts])
            shared = bool((places == places[:1]).all())
            places = places[:1] if shared else places
            pixels = torch.stack([part[1] for part in parts])
            weights = [part[2] for part in parts]
        else:
            places = torch.arange(self.shape[1] * self.shape[2])[None]
            pixels = torch.stack([view.measurement for view in views])
            weights = [None if view.use is None else view.use.expand_as(view.measurement).to(dtype) for view in views]
        self.places = places.to(device)
        self.pixels = pixels.to(device, dtype)
        self.weights: Tensor | None = None
        if any(weight is not None for weight in weights):
            filled = [torch.ones_like(p) if w is None else w for p, w in zip(pixels, weights, strict=True)]
            self.weights = torch.stack(filled).to(device, dtype)
        self.count = self.places.shape[1]
        self.batch_size = batch if self.pointwise else None
        self._tiles = None if model.tile is None else self._whole_tiles(*model.tile)
        self._counts = None if pictures is None else self._count_pictures()
        self.whole = self.batch_size is None and pictures is None
        self.per_epoch, self.per_step = 1, self.count
        if self.batch_size is not None:
            self.per_epoch, self.per_step = -(-self.count // self.batch_size), min(self.batch_size, self.count)
        if pictures is not None and self._counts is not None:
            self.per_epoch = pictures.steps_per_epoch(self.count, len(self._counts))
            ordered = self._counts if pictures.order == "fixed" else self._counts.sort(descending=True).values
            self.per_step = max(int(part.sum()) for part in torch.split(ordered, pictures.pictures))
        self._order: tuple[int, Tensor, Sequence[int]] | None = None
        self._whole: tuple[Tensor, Tensor, Tensor | None] | None = None
        if self.whole:
            places, pixels = self.places, self.pixels
            if self._tiles is not None:
                places = self._tiles.reshape(1, -1).to(device)
                pixels = self.pixels[:, places[0]]
            self._whole = (self.at(places), model.to_target(pixels), self.weights)

    def _whole_tiles(self, rows: int, columns: int) -> Tensor:
        """Places (T, n) of the pixels of each tile, row by row.

        Raises:
            ValueError: pixels that are not all known, or batches that are not whole tiles.
        """
        _, height, width = self.shape
        if not self.pointwise or self.count != height * width or self.weights is not None:
            raise ValueError("a meta-learned start needs to see every pixel of its pictures; leave masks and such out")
        if self.batch_size is not None and self.batch_size % (rows * columns):
            raise ValueError(
                f"batches.pixels is {self.batch_size}; a meta-learned start is trained on whole pictures, here so many "
                f"times {rows * columns} pixels"
            )
        places = torch.arange(self.count).view(height // rows, rows, width // columns, columns)
        return places.transpose(1, 2).reshape(-1, rows * columns)

    def _count_pictures(self) -> Tensor:
        """How many samples (K,) each picture of a gallery has; of all fits alike."""
        ends = torch.tensor([height * width for height, width in self.model.sizes]).cumsum(dim=0)
        numbers = torch.bucketize(self.places.cpu(), ends, right=True)
        counts = torch.stack([row.bincount(minlength=len(ends)) for row in numbers])
        if not bool((counts == counts[:1]).all()):
            raise ValueError("these galleries hold out unequal numbers of pixels; fit them one by one")
        return counts[0]

    def _order_of(self, seed: int, epoch: int) -> tuple[Tensor, Sequence[int]]:
        """The order of all samples in an epoch, and where in it each batch ends; from its number and the seed, so that
        a resumed fit goes on alike."""
        generator = stream(seed, f"batches/{epoch}")
        if self._pictures is not None and self._counts is not None:
            parts = torch.split(torch.arange(self.count), self._counts.tolist())
            order = torch.arange(len(parts))
            if self._pictures.order == "shuffled":
                order = torch.randperm(len(parts), generator=generator)
            ends = self._counts[order].cumsum(dim=0).tolist()
            last = [*ends[self._pictures.pictures - 1 : -1 : self._pictures.pictures], ends[-1]]
            return torch.cat([parts[number] for number in order.tolist()]), last
        size = self.batch_size or self.count
        steps = range(size, self.count + size, size)
        if self._tiles is None:
            return torch.randperm(self.count, generator=generator), steps
        return self._tiles[torch.randperm(len(self._tiles), generator=generator)].flatten(), steps

    def at(self, places: Tensor) -> Tensor:
        """Coordinates (..., D) of places (...) in row-major order, on the stack's device.

        A network of whole pictures knows no coordinates: for it these are the places themselves.
        """
        if self._prior is not None:
            return places.to(self.device)
        return self.model.coordinates.pick(*self._axes, places.to(self.device))

    def batch(self, step: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Coordinates (1 or F, B, D), targets in the network's range and weights (F, B, C) of a step.

        Batches are drawn without replacement within an epoch. A network of whole pictures has noise (1 or F, …) for its
        code in place of coordinates.
        """
        if self._whole is not None:
            inputs, targets, weights = self._whole
            inputs = inputs if self._prior is None else self._noise(self._prior, step)
            return inputs, self._shown(targets, step), weights
        index, _ = self.rows(step, 1)
        assert index is not None
        index = index[:, 0]
        places = _pick(self.places[..., None], index)[..., 0]
        weights = None if self.weights is None else _pick(self.weights, index)
        return self.at(places), self._shown(self.model.to_target(_pick(self.pixels, index)), step), weights

    def _shown(self, targets: Tensor, step: int) -> Tensor:
        """The targets (F, B, C) of whole tiles as the batches of a step show them."""
        if self._augmented is None or self.model.tile is None:
            return targets
        tiles = targets.reshape(len(targets), -1, *self.model.tile, targets.shape[2])
        each = [
            self._augmented.shown(own, stream(seed, f"augmentation/{step}"))
            for own, seed in zip(tiles, self.seeds, strict=True)
        ]
        return torch.stack(each).flatten(1, 3)

    def given(self, targets: Tensor, step: int) -> Tensor:
        """What a network that learns from tiles is given in a step: their targets (F, B, C), with one more column where
        its model says which pixels it may look at. That hangs on the seed and the step alone."""
        seen = [self.model.seen(targets.shape[1], stream(seed, f"seen/{step}")) for seed in self.seeds]
        columns = [one.to(targets) for one in seen if one is not None]
        return torch.cat([targets, torch.stack(columns)], dim=2) if columns else targets

    def _noise(self, prior: PicturePrior, step: int) -> Tensor:
        """What a step adds to the codes, (F, D, h, w) or (1, 1, 1, 1) of nothing. It hangs on the seed and the step
        alone, and is drawn where it is used."""
        std = prior.perturbation.at(step)
        if std == 0:
            return torch.zeros(1, 1, 1, 1, dtype=self.pixels.dtype, device=self.device)
        features, rows, columns = self._code_shape
        noise = torch.empty(len(self.seeds), rows, columns, features, device=self.device)
        for drawn, seed in zip(noise, self.seeds, strict=True):
            own = stream(seed, f"perturbation/{step}").initial_seed()
            drawn.normal_(0.0, std, generator=torch.Generator(self.device).manual_seed(own))
        return noise.to(self.pixels.dtype).permute(0, 3, 1, 2)  # in the order in memory that convolutions like

    def rows(self, step: int, most: int) -> tuple[Tensor | None, int]:
        """Which samples the next steps see: int64 (F, S, B) of S ≤ most steps of one size in one epoch, and S.

        The index is None where every step sees all samples.
        """
        if self.whole:
            return None, most
        epoch, at = divmod(step, self.per_epoch)
        if self._order is None or self._order[0] != epoch:
            orders, ends = zip(*(self._order_of(seed, epoch) for seed in self.seeds), strict=True)
            self._order = (epoch, torch.stack(orders).to(self.device), ends[0])
        _, order, marks = self._order
        start, size = (marks[at - 1] if at else 0), self._size(marks, at)
        count = 1
        while count < most and at + count < self.per_epoch and self._size(marks, at + count) == size:
            count += 1
        part = order[:, start : start + count * size]
        return part.reshape(len(part), count, size).contiguous(), count

    def _size(self, marks: Sequence[int], at: int) -> int:
        """Of an epoch's batch ``at``, of which ``marks`` tell the ends; the last one may be said to end too late."""
        return min(marks[at], self.count) - (marks[at - 1] if at else 0)

    def picture(self, output: Tensor) -> Tensor:
        """Outputs (F, H·W, C) as pictures (F, C, H, W) in units of pixels."""
        return self.model.to_pixels(output).mT.reshape(output.shape[0], *self.shape)


def _pick(table: Tensor, index: Tensor) -> Tensor:
    """Rows ``index`` (F, B) of a table (1 or F, N, K): (F, B, K)."""
    if table.shape[0] == 1:
        return table[0].index_select(0, index.reshape(-1)).reshape(*index.shape, table.shape[2])
    return torch.gather(table, 1, index[..., None].expand(-1, -1, table.shape[2]))
