"""Extract aligned patches from two slides.

`align` takes the transform of a slide pair from the manifest or registers the slides. `plan_extraction` finds tissue
on both and the candidate positions on the working grid of the H&E. `extract_patches` reads each candidate in threads,
warps the IHC onto it, measures its quality and decides whether it is kept. Checks that need only the masks come first,
so that rejected positions are not read.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from wsi2ihc.concurrency import ProgressCallback, ordered_map
from wsi2ihc.errors import UnreadableSlideError
from wsi2ihc.geometry import RGB, BoolImage, Region, RGBImage
from wsi2ihc.registration.landmarks import (
    MatchedLandmarks,
    contradiction,
    diagonal_um,
    landmark_errors,
    read_landmark_pair,
)
from wsi2ihc.registration.register import RegistrationOptions, register
from wsi2ihc.registration.report import report_of
from wsi2ihc.registration.transform import Transform, frame_of, identity, moving_grid
from wsi2ihc.registration.transform_io import load_transform
from wsi2ihc.registration.warped_region import read_warped
from wsi2ihc.registration.warped_slide import check_slide, warning_of_slide
from wsi2ihc.slide import (
    Slide,
    WorkingGrid,
    agreeing_levels,
    known_mpp,
    read_overview,
    read_region,
    to_srgb_transform,
    working_grid,
)
from wsi2ihc.tissue import TissueMask, detect_tissue, load_mask, whole_slide
from wsi2ihc.tissue.detection import mask_grid
from wsi2ihc.translation.stages import FaultTolerantSlide
from wsi2ihc.translation.windows import TissueGrid, mask_on_grid, without_margin

from .options import PairsOptions
from .pair_manifest import IDENTITY, SlidePair, Tissue
from .quality import (
    FoldThreshold,
    PatchMetrics,
    agreement,
    fold_density,
    mask_rejection,
    measure_quality,
    rejection_reason,
    tissue_fraction,
)


@dataclass(frozen=True, slots=True, eq=False)
class Alignment:
    """Transform from H&E to IHC, or None and the reason why registration failed; and the content of
    ``registration.json``, without times, so that it is reproducible.
    """

    transform: Transform | None
    reason: str
    metadata: Mapping[str, Any]

    @property
    def summary(self) -> dict[str, Any]:
        """Part of the metadata that is copied to the slide's record."""
        kept = ("status", "transform", "score", "residual_um", "angle_deg", "scale", "mirrored")
        return {name: self.metadata[name] for name in kept if name in self.metadata}


def given_transform(pair: SlidePair, he: Slide, ihc: Slide) -> Transform | None:
    """Return the manifest's transform with the frames of both slides; None if they have to be registered.

    Raises
    ------
    TransformError
        If a saved transform cannot be read, or was made for other slides.
    """
    if pair.transform is None:
        return None
    if isinstance(pair.transform, Path):
        loaded = load_transform(pair.transform)
        check_slide(loaded.fixed, he.info)
        check_slide(loaded.moving, ihc.info)
    else:
        loaded = Transform(np.array(pair.transform).reshape(2, 3))
    return dataclasses.replace(loaded, fixed=frame_of(he.info), moving=frame_of(ihc.info))


def slide_warnings(pair: SlidePair, he: Slide, ihc: Slide) -> Iterator[str]:
    """Yield warnings if a saved transform may belong to other slides."""
    if isinstance(pair.transform, Path):
        loaded = load_transform(pair.transform)
        yield from filter(None, (warning_of_slide(loaded.fixed, he.info), warning_of_slide(loaded.moving, ihc.info)))


def landmarks_of(pair: SlidePair, he: Slide, ihc: Slide) -> MatchedLandmarks | None:
    """Return the landmarks of both slides; None if the manifest has none.

    Raises
    ------
    RegistrationError
        If a table cannot be read, or no landmark is on both slides.
    """
    if pair.he_landmarks is None or pair.ihc_landmarks is None:
        return None
    frames = frame_of(he.info), frame_of(ihc.info)
    return read_landmark_pair((pair.he_landmarks, pair.ihc_landmarks), frames[0].mpp, frames[1].mpp)


def align(
    he: Slide, ihc: Slide, options: RegistrationOptions, landmarks: MatchedLandmarks | None, threads: int,
    progress: ProgressCallback,
) -> Alignment:  # fmt: skip
    """Register the IHC slide to the H&E slide. A failed registration is returned, not raised."""
    found = register(he, ihc, options, progress, workers=threads)
    metadata = report_of(frame_of(he.info), frame_of(ihc.info), options, found, landmarks).to_json()
    del metadata["created"]
    for stage in metadata["stages"]:
        del stage["seconds"]
    return Alignment(found.transform, found.reason, metadata)


def given_alignment(pair: SlidePair, transform: Transform, landmarks: MatchedLandmarks | None) -> Alignment:
    """Return the alignment for a transform of the manifest, with its landmark errors."""
    given = pair.transform
    metadata: dict[str, Any] = {
        "status": "given",
        "transform": given.name if isinstance(given, Path) else "identity" if given == IDENTITY else "matrix",
        "fixed": transform.fixed and dataclasses.asdict(transform.fixed),
        "moving": transform.moving and dataclasses.asdict(transform.moving),
        "landmarks": None,
        "warnings": [],
    }
    if landmarks is not None and transform.moving is not None:
        length_um = diagonal_um(transform.moving)
        before, after = (landmark_errors(one, landmarks, length_um) for one in (identity(), transform))
        metadata["landmarks"] = {
            "pairs": len(landmarks.ids),
            "unmatched_fixed": landmarks.unmatched_fixed,
            "unmatched_moving": landmarks.unmatched_moving,
            "before": dataclasses.asdict(before),
            "after": dataclasses.asdict(after),
        }
        metadata["warnings"] += filter(None, [contradiction(before, after, None)])
    return Alignment(transform, "", metadata)


def seen_as(slide: Slide, options: PairsOptions) -> Slide:
    """Return the slide for overviews and registration: damaged areas are background, if the options allow damage."""
    return FaultTolerantSlide(slide) if options.on_read_error == "background" else slide


def tissue_of(slide: Slide, tissue: Tissue | Path) -> TissueMask:
    """Find the tissue of a slide, without a margin around it.

    Raises
    ------
    MaskError
        If a mask file cannot be read or does not fit the slide.
    UnreadableSlideError
        If the slide is damaged.
    """
    if isinstance(tissue, Path):
        return load_mask(tissue, slide)
    if tissue == "none":
        return whole_slide(slide)
    return without_margin(detect_tissue(slide), known_mpp(slide.info))


@dataclass(frozen=True, slots=True)
class Colors:
    """Color conversion of a slide as in translation, its converted background color, and warnings."""

    convert: Callable[[RGBImage], RGBImage]
    background: RGB
    notes: tuple[str, ...] = ()


def colors_of(slide: Slide, background: RGB, options: PairsOptions) -> Colors:
    """Return the conversion for the option ``icc``: none, or to sRGB by the slide's profile."""
    if options.icc == "keep":
        return Colors(lambda pixels: pixels, background)
    if slide.info.icc_profile is None:
        note = f"{slide.info.name} has no color profile; its colors are assumed to be sRGB (--icc srgb)"
        return Colors(lambda pixels: pixels, background, (note,))
    convert = to_srgb_transform(slide.info.icc_profile)
    red, green, blue = convert(np.array([[background]], np.uint8))[0, 0].tolist()
    return Colors(convert, (red, green, blue))


_log = logging.getLogger(__name__)

CANDIDATE_SHARE = 0.05
"""Minimum tissue fraction of the H&E at candidate positions; others are background and not counted."""

SAMPLES = 33
"""Sample points of the masks along each side of a patch, from the first to the last px."""


@dataclass(frozen=True, slots=True, eq=False)
class ExtractedPatch:
    """A pair of patches, kept or rejected."""

    region: Region  # region in working px of the H&E slide
    # top left corner on the H&E slide
    x_um: float
    y_um: float
    # pixels (rows, columns, 3); empty if not read
    he: RGBImage
    ihc: RGBImage
    valid: BoolImage  # mask (rows, columns) of the px that lie on the IHC slide; empty if not read
    metrics: PatchMetrics
    rejected: str  # reason of the rejection, one of `quality.REASONS`; "" if kept
    unreadable: bool = False  # whether a slide is unreadable there; such patches are rejected as outside


@dataclass(frozen=True, slots=True, eq=False)
class ExtractionPlan:
    """A pair of slides prepared for patch extraction."""

    he: Slide
    ihc: Slide
    transform: Transform
    options: PairsOptions
    grid: WorkingGrid  # working grid of the H&E slide
    mpp: tuple[float, float]  # actual µm per working px along (x, y)
    regions: tuple[Region, ...]  # candidate positions with tissue in the H&E, in raster order
    shares: tuple[float, ...]  # tissue fraction of each position in the H&E
    # tissue of both slides, each in its own level-0 px
    he_mask: TissueMask
    ihc_mask: TissueMask
    fold_threshold: FoldThreshold
    he_colors: Colors
    ihc_colors: Colors
    verified: bool = True  # whether the transform was found, and so verified, by registration

    @property
    def notes(self) -> tuple[str, ...]:
        """Warnings, one sentence each."""
        return self.he_colors.notes + self.ihc_colors.notes


def plan_extraction(
    he: Slide, ihc: Slide, transform: Transform, options: PairsOptions, *, verified: bool = True,
    tissue: Tissue | Path | None = None,
) -> ExtractionPlan:  # fmt: skip
    """Find the tissue of both slides and the candidate positions of patches.

    Parameters
    ----------
    transform
        Transform from µm of the H&E to µm of the IHC.
    verified
        Whether registration found the transform; for others, patches need a measurable residual or correlation.
    tissue
        Tissue of the H&E slide; None as in the options.

    Raises
    ------
    MaskError
        If a mask file does not fit the H&E slide.
    MissingResolutionError
        If the resolution of a slide is unknown.
    OptionError
        If ``options.mpp`` is more than four times finer than a slide's. A level within 5 % of it is not resampled.
    UnreadableSlideError
        If a file is damaged.
    """
    he, ihc = agreeing_levels(he), agreeing_levels(ihc)
    grid = working_grid(he.info, options.mpp)
    working_grid(ihc.info, options.mpp)  # raises before anything is read
    seen = seen_as(he, options), seen_as(ihc, options)
    chosen = options.tissue if tissue is None else tissue
    he_mask, ihc_mask = tissue_of(seen[0], chosen), tissue_of(seen[1], "none" if chosen == "none" else "auto")
    he_colors, ihc_colors = colors_of(he, he_mask.background, options), colors_of(ihc, ihc_mask.background, options)
    fold_threshold = FoldThreshold(
        _fold_density(seen[0], he_mask, chosen == "auto", he_colors, "he"),
        _fold_density(seen[1], ihc_mask, chosen != "none", ihc_colors, "ihc"),
    )
    side, step = options.patch_size, options.step_px
    x, y = (np.arange(0, length - side + 1, step) for length in (grid.size.width, grid.size.height))
    shares = np.minimum(_tissue_areas(mask_on_grid(he_mask, grid), x, y, side) / side**2, 1)
    rows, columns = np.nonzero(shares >= CANDIDATE_SHARE)
    regions = tuple(
        Region(left, top, side, side) for left, top in zip(x[columns].tolist(), y[rows].tolist(), strict=True)
    )
    return ExtractionPlan(
        he, ihc, transform, options, grid, grid.mpp, regions, tuple(shares[rows, columns].tolist()),
        he_mask, ihc_mask, fold_threshold, he_colors, ihc_colors, verified,
    )  # fmt: skip


def _tissue_areas(
    tissue: TissueGrid, x: npt.NDArray[np.int64], y: npt.NDArray[np.int64], side_px: int
) -> npt.NDArray[np.float64]:
    """Return the tissue area in working px of each square with top left corners ``x`` × ``y``: (rows, columns)."""
    (left, top), (width, height) = tissue.origin, tissue.pixel_size
    down = _sums_of_rows(tissue.pixels, (y - top) / height, side_px / height)
    return np.asarray(_sums_of_rows(down.T, (x - left) / width, side_px / width).T * (width * height))


def _sums_of_rows(values: npt.NDArray[Any], starts: npt.NDArray[Any], length: float) -> npt.NDArray[np.float64]:
    """Return sums of ``length`` rows from each start, (starts, columns); partly covered rows count in part."""
    count = len(values)
    sums = np.zeros((count + 1, values.shape[1]))
    np.cumsum(values, axis=0, out=sums[1:])

    def up_to(ends: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        ends = np.clip(ends, 0, count)
        row = np.minimum(ends.astype(np.intp), count - 1)
        return np.asarray(sums[row] + (ends - row)[:, np.newaxis] * (sums[row + 1] - sums[row]))

    return up_to(starts + length) - up_to(starts)


def extract_patches(plan: ExtractionPlan, *, workers: int = 1) -> Generator[ExtractedPatch, None, None]:
    """Yield the patches of a plan in raster order, kept or rejected, read and measured by ``workers`` threads.

    Memory bound: ``workers + 2`` patches, for slides of any size, unless the caller keeps them.

    Raises
    ------
    UnreadableSlideError
        If a file is damaged.
    """
    items = zip(plan.regions, plan.shares, strict=True)
    with ThreadPoolExecutor(max(1, workers), "cut") as pool:
        patches = ordered_map(pool, lambda item: _extract_one(plan, *item), items, max(1, workers) + 1)
        with closing(patches):
            yield from patches


def _extract_one(plan: ExtractionPlan, region: Region, tissue_he: float) -> ExtractedPatch:
    places_um = moving_grid(plan.transform, *_sampled(plan, region))
    inside = _inside(plan.ihc, places_um)
    tissue_ihc = float(_in_mask(plan.ihc_mask, plan.ihc, places_um).mean())
    metrics = PatchMetrics(tissue_he=tissue_he, tissue_ihc=tissue_ihc, valid=float(inside.mean()))
    limits = plan.options.limits
    if reason := mask_rejection(metrics, limits):
        return _rejected(plan, region, metrics, reason)
    try:
        he, ihc, valid = _read(plan, region)
    except UnreadableSlideError as error:
        if plan.options.on_read_error == "fail":
            raise
        _log.info("patch rejected: %s", error)
        return _rejected(plan, region, dataclasses.replace(metrics, valid=0.0), "outside", unreadable=True)
    metrics = _measured(metrics, he, ihc, valid, plan)
    rejected = rejection_reason(metrics, limits, verified=plan.verified)
    return ExtractedPatch(region, *_corner_um(plan, region), he, ihc, valid, metrics, rejected)


def _read(plan: ExtractionPlan, region: Region) -> tuple[RGBImage, RGBImage, BoolImage]:
    """Read both images, and the mask of px on the IHC slide."""
    he = read_region(plan.he, plan.grid, region, plan.he_mask.background)
    x_um, y_um = _centers_um(plan, region)
    warped = read_warped(plan.ihc, plan.transform, _mean(plan.mpp), x_um, y_um, plan.ihc_mask.background)
    return plan.he_colors.convert(he), plan.ihc_colors.convert(warped.pixels), warped.valid


def _rejected(
    plan: ExtractionPlan, region: Region, metrics: PatchMetrics, reason: str, *, unreadable: bool = False
) -> ExtractedPatch:
    """Return a rejected patch without pixels."""
    none = np.zeros((0, 0, 3), np.uint8)
    return ExtractedPatch(region, *_corner_um(plan, region), none, none, none[..., 0] > 0, metrics, reason, unreadable)


def _measured(
    metrics: PatchMetrics, he: RGBImage, ihc: RGBImage, valid: BoolImage, plan: ExtractionPlan
) -> PatchMetrics:
    """Add the metrics that are measured on pixels."""
    mpp = _mean(plan.mpp)
    agree = agreement(he, ihc, mpp)
    return dataclasses.replace(
        metrics,
        tissue_he=min(metrics.tissue_he, tissue_fraction(he, mpp, plan.he_colors.background)),
        tissue_ihc=min(metrics.tissue_ihc, tissue_fraction(ihc, mpp, plan.ihc_colors.background)),
        valid=float(valid.mean()),
        correlation=agree.correlation,
        residual_um=agree.residual_um,
        **measure_quality(he, ihc, valid, mpp, plan.fold_threshold),
    )


def _centers_um(plan: ExtractionPlan, region: Region) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the centers of the columns and rows of a region on the H&E slide in µm."""
    return tuple(  # type: ignore[return-value]
        (plan.grid.level0_origin[axis] + (np.arange(start, start + count) + 0.5) * plan.grid.downsample[axis]) * mpp
        for axis, (start, count, mpp) in enumerate(
            zip((region.x, region.y), (region.width, region.height), known_mpp(plan.he.info), strict=True)
        )
    )


def _sampled(plan: ExtractionPlan, region: Region) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return sampled centers, including the outermost ones."""
    x_um, y_um = _centers_um(plan, region)
    return np.linspace(x_um[0], x_um[-1], SAMPLES), np.linspace(y_um[0], y_um[-1], SAMPLES)


def _corner_um(plan: ExtractionPlan, region: Region) -> tuple[float, float]:
    x, y = (
        (plan.grid.level0_origin[axis] + start * plan.grid.downsample[axis]) * known_mpp(plan.he.info)[axis]
        for axis, start in enumerate((region.x, region.y))
    )
    return x, y


def _inside(slide: Slide, places_um: npt.NDArray[np.float64]) -> BoolImage:
    """Check which positions lie on the scanned area of a slide."""
    bounds, (mpp_x, mpp_y) = slide.info.bounds, known_mpp(slide.info)
    x, y = places_um[..., 0], places_um[..., 1]
    across, down = x / mpp_x, y / mpp_y
    inside: BoolImage = (across >= bounds.x) & (across <= bounds.right) & (down >= bounds.y) & (down <= bounds.bottom)
    return inside


def _in_mask(mask: TissueMask, slide: Slide, places_um: npt.NDArray[np.float64]) -> BoolImage:
    """Check which positions on a slide lie in its tissue mask."""
    at = np.floor((places_um / known_mpp(slide.info) - mask.origin) / mask.pixel_size)
    rows, columns = mask.pixels.shape
    within = np.all((at >= 0) & (at < (columns, rows)), axis=-1)
    column, row = np.moveaxis(np.where(within[..., np.newaxis], at, 0).astype(np.intp), -1, 0)
    held: BoolImage = within & mask.pixels[row, column]
    return held


def _fold_density(slide: Slide, mask: TissueMask, is_detected: bool, colors: Colors, stain: str) -> float:
    """Return the fold threshold of a slide, from an overview on the grid of the detected (not a given) mask."""
    found = mask if is_detected else tissue_of(slide, "auto")
    grid = mask_grid(slide.info)  # grid of detected masks
    overview = colors.convert(read_overview(slide, grid, mask.background))
    return fold_density(overview, _mean(grid.mpp), found.pixels, stain)


def _mean(pair: tuple[float, float]) -> float:
    return math.sqrt(pair[0] * pair[1])
