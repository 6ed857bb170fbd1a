"""Image statistics: color, sharpness, contrast and texture.

`image_statistics` measures one image; `describe` summarizes the statistics of all pairs by split and HER2 level.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt
from skimage import feature  # loads its modules on first use

from wsi2ihc.geometry import RGBImage

from ..data import ROLES, Pair
from ..data.layouts import LEVELS
from ..pairs.quality import sharpness

GRAY_LEVELS = 64
"""Gray levels of the co-occurrence matrix."""

ANGLES = (0, math.pi / 4, math.pi / 2, 3 * math.pi / 4)
"""Directions of the neighbors at distance 1."""


class Texture(NamedTuple):
    """Texture features of symmetric, normalized co-occurrence matrices, averaged over four directions.

    Contrast is the mean squared difference of neighbors, in levels from 0 to 63; homogeneity the mean of 1 / (1 +
    squared difference); energy the root of the sum of squared frequencies (1 for one color); and correlation that of
    the levels of neighbors.
    """

    contrast: float
    homogeneity: float
    energy: float
    correlation: float


def texture(luminance: npt.NDArray[np.uint8]) -> Texture:
    """Compute the texture features of an image (rows, columns) uint8 of at least 2 x 2 px."""
    levels = np.asarray(luminance // (256 // GRAY_LEVELS), np.uint8)
    matrices = feature.graycomatrix(levels, [1], ANGLES, GRAY_LEVELS, symmetric=True, normed=True)
    return Texture(*(float(feature.graycoprops(matrices, name).mean()) for name in Texture._fields))


RANGE_PERCENT = (1.0, 99.0)
"""Percentiles of luminance that limit the dynamic range."""


@dataclass(frozen=True, slots=True)
class ImageStatistics:
    """Statistics of one image; NaN if unknown."""

    # means, 0 to 255
    red: float
    green: float
    blue: float
    # variance of the Laplacian of luminance (3 x 3 kernel of four neighbors), in squared gray levels
    laplacian_variance: float
    sharpness: float  # see `pairs.quality.sharpness`; independent of stain and amount of tissue; NaN without resolution
    dynamic_range: float  # 99th minus 1st percentile of luminance, in gray levels
    rms_contrast: float  # standard deviation of luminance, in gray levels
    michelson_contrast: float  # (99th - 1st percentile) / (99th + 1st), 0 to 1
    # see `Texture`
    texture_contrast: float
    texture_homogeneity: float
    texture_energy: float
    texture_correlation: float


def image_statistics(image: RGBImage, mpp: float | None) -> ImageStatistics:
    """Measure an image (rows, columns, 3) uint8 RGB with ``mpp`` µm per px (None if unknown)."""
    luminance = np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.uint8)
    low, high = _percentiles(luminance)
    red, green, blue = (float(mean) for mean in cv2.mean(image)[:3])
    return ImageStatistics(
        red,
        green,
        blue,
        laplacian_variance=_variance(cv2.Laplacian(luminance, cv2.CV_16S)),  # 1,020 at most: exact
        sharpness=float("nan") if mpp is None else sharpness(image, mpp),
        dynamic_range=high - low,
        rms_contrast=_variance(luminance) ** 0.5,
        michelson_contrast=(high - low) / (high + low) if high else 0.0,
        **{f"texture_{name}": value for name, value in texture(luminance)._asdict().items()},
    )


def _percentiles(luminance: npt.NDArray[np.uint8]) -> tuple[float, float]:
    """Return the lowest levels that `RANGE_PERCENT` of the pixels do not exceed."""
    counts = cv2.calcHist([luminance], [0], None, [256], [0, 256]).ravel().astype(np.float64)
    below = np.cumsum(counts)
    low, high = (float(np.searchsorted(below, below[-1] * percent / 100)) for percent in RANGE_PERCENT)
    return low, high


def _variance(plane: npt.NDArray[np.generic] | cv2.typing.MatLike) -> float:
    return float(cv2.meanStdDev(np.asarray(plane))[1][0, 0]) ** 2


STATISTICS = tuple(one.name for one in dataclasses.fields(ImageStatistics))
"""Names of the statistics, in order."""


MAX_GROUPS = 30
"""Maximum number of groups that are described separately."""

ALL = "all"

Stain: TypeAlias = Literal["H&E", "IHC"]
STAINS: tuple[Stain, Stain] = ("H&E", "IHC")


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean and standard deviation (N - 1) of one statistic over images; NaN for too few."""

    mean: float
    deviation: float


@dataclass(frozen=True, slots=True)
class Description:
    """Description of a subset of the pairs."""

    # role and HER2 level, or "all"
    split: str
    level: str
    group: str  # group or slide; "" for all
    pairs: int
    # numbers of them; None if unknown
    groups: int | None
    slides: int | None
    patients: int | None
    statistics: Mapping[Stain, Mapping[str, Spread]]  # mean and deviation by stain and statistic


def describe(
    pairs: Sequence[Pair], statistics: Sequence[tuple[ImageStatistics, ImageStatistics]]
) -> tuple[Description, ...]:
    """Describe every split and HER2 level, and the whole dataset; "all" is last.

    If no level is known, also describe groups (or slides, without groups), if there are 2 to `MAX_GROUPS` of them.
    ``statistics`` are those of the H&E and the IHC of each pair.
    """
    table = np.array([[[getattr(one, name) for name in STATISTICS] for one in both] for both in statistics], np.float64)
    descriptions = []
    for split in splits_of(pairs):
        for level in levels_of(pairs):
            chosen = [
                number
                for number, pair in enumerate(pairs)
                if split in (ALL, pair.role or "train") and level in (ALL, pair.her2)
            ]
            descriptions.append(_described(split, level, "", pairs, chosen, table))
    if len(levels_of(pairs)) == 1:
        for name, chosen in _groups(pairs):
            descriptions.append(_described(ALL, ALL, name, pairs, chosen, table))
    return tuple(descriptions)


def splits_of(pairs: Sequence[Pair]) -> tuple[str, ...]:
    """Return the roles that occur and "all"; only "all" for fewer than two roles.

    In a dataset with roles, pairs without a role belong to train, as in training.
    """
    known = {pair.role for pair in pairs} - {None}
    roles = [role for role in ROLES if any((pair.role or "train") == role for pair in pairs)] if known else []
    return (*roles, ALL) if len(roles) > 1 else (ALL,)


def levels_of(pairs: Sequence[Pair]) -> tuple[str, ...]:
    """Return all HER2 levels, also those that do not occur, and "all"; only "all" if no level is known."""
    known = {pair.her2 for pair in pairs} - {None}
    return (*LEVELS, *sorted(str(level) for level in known - set(LEVELS)), ALL) if known else (ALL,)


def slide_of(pair: Pair) -> tuple[str, str] | None:
    """Return patient ("" if unknown) and slide, since slide names may repeat between patients; None without a slide."""
    return None if pair.slide is None else (pair.patient or "", pair.slide)


def empty_levels(descriptions: Sequence[Description]) -> Iterator[str]:
    """Yield a warning for each level that a split lacks; one for all if the whole dataset has a single level."""
    present = {one.level for one in descriptions if one.pairs and one.level != ALL}
    if len(present) == 1 and any(one.pairs == 0 for one in descriptions):
        yield f"all pairs with a known level are HER2 {present.pop()}"
        return
    splits = {one.split for one in descriptions}
    for one in descriptions:
        if one.pairs == 0 and (one.split != ALL or len(splits) == 1):
            yield f"there is no pair of HER2 {one.level}" + ("" if one.split == ALL else f" in {one.split}")


def _groups(pairs: Sequence[Pair]) -> list[tuple[str, list[int]]]:
    for field in ("group", "slide"):
        members: dict[str, list[int]] = {}
        for number, pair in enumerate(pairs):
            if (name := getattr(pair, field)) is not None:
                members.setdefault(name, []).append(number)
        if members:
            return sorted(members.items()) if 2 <= len(members) <= MAX_GROUPS else []
    return []


def _described(
    split: str, level: str, group: str, pairs: Sequence[Pair], chosen: Sequence[int], table: np.ndarray
) -> Description:
    own = [pairs[number] for number in chosen]
    values = table[list(chosen)] if chosen else np.zeros((0, *table.shape[1:]))
    statistics = {
        stain: {name: _spread(values[:, index, column]) for column, name in enumerate(STATISTICS)}
        for index, stain in enumerate(STAINS)
    }
    groups, slides, patients = (_count(pairs, own, field) for field in ("group", "slide", "patient"))
    return Description(split, level, group, len(own), groups, slides, patients, statistics)


def _count(pairs: Sequence[Pair], own: Sequence[Pair], field: str) -> int | None:
    if all(getattr(pair, field) is None for pair in pairs):
        return None
    if field == "slide":
        return len({slide_of(pair) for pair in own} - {None})
    return len({getattr(pair, field) for pair in own} - {None})


def _spread(values: np.ndarray) -> Spread:
    known = values[np.isfinite(values)]
    return Spread(
        float(known.mean()) if known.size else math.nan,
        float(known.std(ddof=1)) if known.size > 1 else math.nan,
    )
