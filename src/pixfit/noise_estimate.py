"""What kind of noise a damaged picture has, and how much, told from the picture alone.

Independent noise has a `NoiseLevel`, which may grow with brightness, and `noise_level` finds it.

Single held-out pixels tell when a fit begins to follow the noise, as long as the noise of a pixel says nothing of the
noise beside it. In pictures that were resized, blurred, or kept as JPEG it does, and then a rule that looks at such
pixels never fires; squares of them (`pixfit.held_out`) must be held out. `neighbour_correlation` and `jpeg_grid`
measure that without the true picture.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

__all__ = [
    "BESIDE", "CORRELATED", "ENLARGED", "GRIDDED", "IMPULSIVE", "LEAST_NOISE", "NoiseLevel", "impulse_rate", "impulses",
    "jpeg_grid", "neighbour_correlation", "noise_beside", "noise_level", "shared_level", "signs_of_shared_noise",
    "struck",
]  # fmt: skip

CORRELATED = 0.075
"""`neighbour_correlation` above this says that neighbours share their noise, where there is enough of it to tell."""

ENLARGED = 0.55
"""`neighbour_correlation` above this says that the picture was enlarged, with or without noise."""

GRIDDED = 0.06
"""`jpeg_grid` above this says that the picture was kept as JPEG."""

IMPULSIVE = 0.01
"""`impulses` above this says that values were replaced by black and white."""

BESIDE = 8 / 255
"""`noise_beside` above this says that what impulses did not strike has noise, too."""

LEAST_NOISE = 4 / 255
"""Level of the noise below which its correlation cannot be told from that of the picture."""

_MEDIAN = 0.6745  # of the absolute values of a normal distribution of σ = 1
_BIN, _MOST_BINS = 200, 32  # wavelets in a bin of brightness at least, and bins at most
_NARROW = 0.05  # of the range, between the brightness of bins, below which they show no slope
_SURE = 2.0  # standard errors of a slope that is believed
_ROUNDS = 4  # of a line whose weights follow from it
_LEAST = 0.1  # of the median variance, below which no bin weighs more
_BLOCK = 8  # pixels a side
_SMOOTHEST = 0.3  # of the blocks
_TAKEN = 1.15  # noise blurred by 0.6 pixels, over what is left of it in typical blocks without its Gaussian mean
_FEWEST = 64  # pixels a side from which a picture tells enough
_LARGEST = 512  # pixels a side of the part in which impulses are counted
_ALONE = 0.25  # between a value and each of those around it
_BETWEEN = 0.25  # of the values, at least, that are neither black nor white where there are impulses
_SQUARE = 16  # pixels a side of those in which impulses are counted for their rate
_AROUND = 24  # values that surround one in 5 x 5
_CHANCE = 1e-4  # that so many of them are struck in the same way


@dataclass(frozen=True)
class NoiseLevel:
    """Of independent noise whose variance is a line over brightness, in units of the range [0, 1].

    Counted photons and what reads them out leave such noise (Foi et al., IEEE TIP 2008), and so does clipping, roughly.

    Args:
        floor: variance at black; below 0 where the line meets 0 above black.
        slope: by how much it grows to white; below 0 for noise that is less there.
    """

    floor: float
    slope: float = 0.0

    @classmethod
    def white(cls, sigma: float) -> NoiseLevel:
        """Of one standard deviation everywhere."""
        return cls(sigma**2)

    def sigma(self, brightness: float) -> float:
        """Standard deviation at a brightness; at the mean of a picture, the root mean square over that picture."""
        return math.sqrt(max(0.0, self.floor + self.slope * brightness))

    def variance(self, picture: Tensor) -> Tensor:
        """Of each value of a picture, which has no noise."""
        return (self.floor + self.slope * picture).clamp(min=0)


def noise_level(picture: Tensor) -> NoiseLevel:
    """The level of independent noise in a picture (C, H, W).

    σ is the median absolute value of the finest diagonal wavelets over 0.6745 (Donoho and Johnstone, 1994), here in
    bins of brightness, the mean of what a wavelet covers. The line goes through their squares, weighted by how sure
    each of them is; where its slope may be chance, one σ of all wavelets is taken. Pictures under some 900 values have
    but one bin; under 4 pixels a side there is no level but 0.
    """
    import pywt

    if min(picture.shape[1:]) < 4:
        return NoiseLevel(0.0)
    found = [pywt.dwt2(channel, "db2") for channel in picture.double().numpy()]
    bright = np.concatenate([means.ravel() / 2 for means, _ in found])
    sizes = np.abs(np.concatenate([details[2].ravel() for _, details in found]))
    bins = np.array_split(bright.argsort(kind="stable"), min(_MOST_BINS, len(bright) // _BIN) or 1)
    variances = np.array([float(np.median(sizes[bin])) / _MEDIAN for bin in bins]) ** 2
    typical = float(np.median(variances))
    white = NoiseLevel.white(float(np.median(sizes)) / _MEDIAN)
    places = np.array([float(np.median(bright[bin])) for bin in bins])
    if len(bins) < 2 or typical == 0 or np.ptp(places) < _NARROW:
        return white
    return _line(places, variances, _LEAST * typical, len(sizes) / len(bins)) or white


def _line(bright: NDArray[np.float64], variances: NDArray[np.float64], least: float, count: float) -> NoiseLevel | None:
    """Of least squares relative to itself: the error of an estimated variance is in proportion to it. None where the
    slope may be chance. ``count``: wavelets in each bin."""
    sure = np.maximum(variances, least)
    terms = np.stack([np.ones_like(bright), bright], axis=1)
    for _ in range(_ROUNDS):
        (floor, slope), *_ = np.linalg.lstsq(terms / sure[:, None], variances / sure, rcond=None)
        sure = np.maximum(terms @ [floor, slope], least)
    # The standard error of a variance that comes from the median of n absolute values is 2.33 / √n of it.
    error = 2.33 / math.sqrt(count) * float(np.sqrt(np.linalg.inv((terms / sure[:, None] ** 2).T @ terms)[1, 1]))
    return None if abs(slope) < _SURE * error else NoiseLevel(float(floor), float(slope))


def impulses(picture: Tensor) -> float:
    """The share of the values (C, H, W) that stand alone at black or at white, as salt-and-pepper noise leaves them.

    A value stands alone when it is a quarter of the range or more from all of the eight around it, so that lines do
    not count, nor all of the impulses where they are many. Strong noise of other kinds leaves such values, too, but not
    at black and white alone, stars are white points with no black ones beside them, and in a picture of black and white
    dots these are the picture: then 0 is returned.
    """
    height, width = picture.shape[1:]
    between = float(((picture > 0) & (picture < 1)).float().mean())
    if min(height, width) < 3 or between < _BETWEEN:
        return 0.0
    rows, columns = (slice((side - min(side, _LARGEST)) // 2, (side + _LARGEST) // 2) for side in (height, width))
    planes = picture[:, rows, columns][:, None]
    values = planes.flatten(1)
    around = F.unfold(F.pad(planes, (1, 1, 1, 1), mode="reflect"), 3)
    apart = (around - values[:, None]).abs()
    apart[:, 4] = torch.inf  # the value itself
    alone = apart.amin(dim=1) >= _ALONE
    black, white = (float((alone & (values == level)).float().mean()) for level in (0.0, 1.0))
    others = float(alone.float().mean()) - black - white
    return black + white if black + white > 4 * others and min(black, white) > 0.2 * (black + white) else 0.0


def impulse_rate(picture: Tensor) -> float:
    """The share of the values (C, H, W) that salt and pepper replaced, if there are both: twice the share of the rarer.

    Shares are medians over squares of 16 x 16 pixels, so that a sky or a caption does not count.
    """
    shares = []
    for level in (0.0, 1.0):
        alike = (picture == level).float().mean(dim=0)[None]
        shares.append(float(F.avg_pool2d(alike, min(_SQUARE, *picture.shape[1:]), ceil_mode=True).median()))
    return 2 * min(shares)


def noise_beside(picture: Tensor, lost: Tensor) -> float:
    """σ of white noise in the values (C, H, W) that were not struck, where impulses struck the ``lost`` ones (bool).

    The median absolute second difference of three in a row, none of them lost, over 0.6745 · √6; 0 where there are none
    such. Fine structure counts as noise: photographs without any have some 2 to 4 / 255, and fur up to 20 / 255.
    """
    found = []
    for axis in (1, 2):
        length = picture.shape[axis] - 2
        if length < 1:
            continue
        first, middle, last = (picture.narrow(axis, start, length) for start in range(3))
        unseen = lost.narrow(axis, 0, length) | lost.narrow(axis, 1, length) | lost.narrow(axis, 2, length)
        found.append((first - 2 * middle + last)[~unseen].abs())
    sizes = torch.cat(found) if found else torch.empty(0)
    return float(sizes.median()) / _MEDIAN / math.sqrt(6) if len(sizes) else 0.0


def struck(picture: Tensor, sigma: float = 0.0) -> Tensor:
    """Bool (C, H, W): which values of a picture with salt and pepper (C, H, W) are taken for impulses.

    Those are all at black and at white but for the ones among so many of their own kind that impulses alone would lie
    so by a chance of less than one in ten thousand, as in a bright sky or in broad black strokes. Small letters in pure
    black or white cannot be told from impulses.

    Args:
        sigma: standard deviation of noise beside the impulses. Black and white values that it may have made, where the
            others around are within two of it, are no impulses then: without them dark parts would seem too bright.
    """
    from scipy.special import bdtrc

    extremes = [picture == level for level in (0.0, 1.0)]
    rate = impulse_rate(picture) / 2
    usual = next(count for count in range(_AROUND + 1) if bdtrc(count, _AROUND, rate) <= _CHANCE)
    found = torch.zeros_like(picture, dtype=torch.bool)
    for one in extremes:
        padded = F.pad(
            one[:, None].float(), (2, 2, 2, 2), mode="reflect" if min(picture.shape[1:]) > 2 else "replicate"
        )
        alike = F.avg_pool2d(padded, 5, 1)[:, 0] * (_AROUND + 1) - 1
        found |= one & (alike < usual + 0.5)
    if not sigma:
        return found
    kept = (~found).float()
    sums, counts = (F.avg_pool2d(each[:, None], 5, 1, padding=2)[:, 0] for each in (picture * kept, kept))
    return found & ((sums / counts.clamp(min=1e-6) - picture).abs() > 2 * sigma)


def neighbour_correlation(picture: Tensor) -> float:
    """How much of its noise a pixel shares with the next, of a picture (C, H, W): near 0 for independent noise.

    Mixed second differences, of columns and then of rows, leave next to nothing of a smooth picture. Of independent
    noise they have the correlation −2/3 between neighbours; what is returned is the correlation found, plus 2/3: from 0
    up to about 0.7, which is what twofold enlargement gives. It is found in the three tenths of the blocks of 8 x 8
    pixels where the blurred picture is flattest. Of colours it is the median of those of their mean and of two of their
    differences, in which a picture has less structure, as far as these have noise.

    Of a picture with less noise than `LEAST_NOISE` it tells the structure. 0 for a picture without any differences, or
    under 12 pixels a side.
    """
    return _noise(picture)[0]


def _noise(picture: Tensor) -> tuple[float, float]:
    """The correlation, and the level of the noise if it were independent."""
    if min(picture.shape[1:]) < _BLOCK + 4:
        return 0.0, 0.0
    found = [_correlation(plane, variance) for plane, variance in _planes(picture.double())]
    noisy = sorted(each for each in found if each[1] >= LEAST_NOISE)
    return noisy[(len(noisy) - 1) // 2] if noisy else max(found, key=lambda each: each[1])


def _correlation(plane: Tensor, variance: float) -> tuple[float, float]:
    """The correlation in a plane (H, W), and the level of the noise if it were independent, when the plane has so much
    of the variance in each channel."""
    second = plane[1:-1] * 2 - plane[:-2] - plane[2:]
    mixed = second[:, 1:-1] * 2 - second[:, :-2] - second[:, 2:]
    blocks = _blocks(mixed)[_flattest(plane)]
    blocks = _typical(blocks)
    energy = float(blocks.square().mean())
    if energy == 0:
        return 0.0, 0.0
    across, down = blocks[:, :, 1:] * blocks[:, :, :-1], blocks[:, 1:] * blocks[:, :-1]
    return float(across.mean() + down.mean()) / 2 / energy + 2 / 3, math.sqrt(energy / 36 / variance)


def jpeg_grid(picture: Tensor) -> float:
    """How much larger steps are every eighth pixel than elsewhere, of a picture (C, H, W): 0 and more for none.

    A step is how far the difference of two neighbours is from the mean of the differences beside it. The eighth pixels
    may be any, so that pictures that were cropped show theirs; the smaller of the excesses of rows and columns counts.
    """
    grey = picture.double().mean(dim=0)
    return min(_every_eighth(grey), _every_eighth(grey.T))


def shared_level(picture: Tensor) -> float:
    """σ of noise that neighbours share, in units of a picture (C, H, W): of what is left of each channel without a
    Gaussian mean of 2 pixels, in the three tenths of the blocks of 8 x 8 pixels where that mean is flattest.

    It is scaled so that white noise that was blurred by 0.6 pixels is found as large as it is. Noise that reaches
    further is found too small (by about a fifth where the blur is of 1 pixel), and the fine structure of pictures that
    are flat nowhere is taken for noise. 0 for pictures under 12 pixels a side.
    """
    if min(picture.shape[1:]) < _BLOCK + 4:
        return 0.0
    levels = []
    for plane in picture.double():
        rest = _blocks((plane - _smooth(plane))[2:-2, 2:-2])[_flattest(plane[1:-1, 1:-1])]
        levels.append(math.sqrt(float(_typical(rest).square().mean())))
    return _TAKEN * sum(levels) / len(levels)


def signs_of_shared_noise(picture: Tensor) -> tuple[str, ...]:
    """What speaks for noise that neighbouring pixels of a picture (C, H, W) share, a clause for a user each; none for
    noise that differs from pixel to pixel, and none for a picture that is too small to tell."""
    if min(picture.shape[1:]) < _FEWEST:
        return ()
    found = []
    if jpeg_grid(picture) > GRIDDED:
        found.append("it was kept as JPEG")
    correlation, level = _noise(picture)
    if correlation > (CORRELATED if level >= LEAST_NOISE else ENLARGED):
        found.append("neighbouring pixels share their noise, as after a change of size, a blur, or JPEG")
    return tuple(found)


def _planes(picture: Tensor) -> list[tuple[Tensor, float]]:
    """The mean of the colours, and the differences of two to the second; with the variance of each where that of
    independent noise in each channel is 1."""
    if len(picture) < 3:
        return [(picture[0], 1.0)]
    red, green, blue = picture[:3]
    return [(picture[:3].mean(dim=0), 1 / 3), (red - green, 2.0), (blue - green, 2.0)]


def _blocks(plane: Tensor) -> Tensor:
    """(H, W) as (B, 8, 8), without what is left over at the right and the bottom."""
    rows, columns = plane.shape[0] // _BLOCK, plane.shape[1] // _BLOCK
    whole = plane[: rows * _BLOCK, : columns * _BLOCK]
    return whole.reshape(rows, _BLOCK, columns, _BLOCK).transpose(1, 2).reshape(-1, _BLOCK, _BLOCK)


def _typical(blocks: Tensor) -> Tensor:
    """Those without an edge in them, and with something at all, by their energy: a tenth at either end is left out."""
    order, tenth = blocks.square().mean(dim=(1, 2)).argsort(stable=True), len(blocks) // 10
    return blocks[order[tenth : len(order) - tenth]]


def _smooth(plane: Tensor) -> Tensor:
    """Gaussian mean of 2 pixels; the border is mirrored."""
    taps = torch.exp(-0.5 * (torch.arange(-8, 9, dtype=plane.dtype) / 2.0).square())
    taps = (taps / taps.sum())[None, None]
    margin = [8 if side > 8 else side - 1 for side in plane.shape]
    padded = F.pad(plane[None, None], (margin[1], margin[1], margin[0], margin[0]), mode="reflect")
    padded = F.pad(padded, (8 - margin[1],) * 2 + (8 - margin[0],) * 2, mode="replicate")
    return F.conv2d(F.conv2d(padded, taps[..., None]), taps[:, :, None])[0, 0]


def _flattest(plane: Tensor) -> Tensor:
    """Numbers of the blocks of the plane's inside where its slope is least after a Gaussian blur of 2 pixels."""
    smooth = _smooth(plane)
    slope = (smooth[2:, 1:-1] - smooth[:-2, 1:-1]).square() + (smooth[1:-1, 2:] - smooth[1:-1, :-2]).square()
    slopes = _blocks(slope).mean(dim=(1, 2))
    return slopes.argsort(stable=True)[: max(1, round(_SMOOTHEST * len(slopes)))]


def _every_eighth(grey: Tensor) -> float:
    """The largest mean step over the columns of one remainder by 8, over the second largest, less 1."""
    if grey.shape[1] < 4 * _BLOCK:
        return 0.0
    differences = grey[:, 1:] - grey[:, :-1]
    steps = (differences[:, 1:-1] - (differences[:, :-2] + differences[:, 2:]) / 2).abs().mean(dim=0)
    means = torch.stack([steps[start::_BLOCK].mean() for start in range(_BLOCK)])
    second, largest = means.sort().values[-2:].tolist()
    return 0.0 if largest == 0 else math.inf if second == 0 else largest / second - 1
