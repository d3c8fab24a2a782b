"""Published figures that stand beside those of the climb's tables, with where they come from."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["PUBLISHED", "Published"]


@dataclass(frozen=True)
class Published:
    """A row of a published table.

    Args:
        name: of the method.
        psnr: in dB, as published: mean over pictures, or over seeds where ``deviation`` is one over these.
        parameters: trained numbers; None where none were told.
        deviation: standard deviation over seeds, in dB.
        seconds: of training, on the device that the source names.
        source: the publication, its pictures and its protocol.
    """

    name: str
    psnr: float
    source: str
    parameters: int | None = None
    deviation: float | None = None
    seconds: float | None = None


_TIGER = "published for one picture, Tiger, of 256×317: 10,000 full-batch steps, 10 seeds"
_KODAK = "published, mean over the 24 pictures of Kodak"

PUBLISHED: dict[str, tuple[Published, ...]] = {
    "tiger": (
        Published("SASNet / FDHO", 53.71, _TIGER, parameters=129_841, deviation=0.04),
        Published("SASNet / FDHO", 63.73, _TIGER, parameters=214_001, deviation=0.15),
    ),
    "kodak": (
        Published("CARA", 48.00, _KODAK, parameters=471_000),
        Published("CARA", 40.03, _KODAK, parameters=205_000),
        Published("MetricGrids", 45.77, f"{_KODAK}; Wang et al., CVPR 2025", parameters=533_000),
        Published("GaussianImage", 44.08, f"{_KODAK}; Zhang et al., ECCV 2024; on a V100", seconds=107.0),
        Published("I-NGP", 43.88, f"{_KODAK}; the method of Müller et al., SIGGRAPH 2022"),
        Published("SIREN", 40.83, f"{_KODAK}; the method of Sitzmann et al., NeurIPS 2020"),
    ),
    "five": (
        Published(
            "the climb's last step", 47.15, "published, mean over five photographs that are not at hand; on a GPU",
            parameters=6_847_116, seconds=180.0,
        ),
    ),
    "compact": (),
}  # fmt: skip
"""By table. Parameters of the Kodak rows are rounded to thousands."""
