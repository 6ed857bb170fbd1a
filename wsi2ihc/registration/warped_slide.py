"""Write the moving slide in the frame of the fixed slide."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt

from ..atomic_files import check_output, make_folder, published, sync_file
from ..concurrency import Progress, ProgressCallback, ordered_map, silent
from ..errors import OptionError, TransformError
from ..geometry import RGB, BoolImage, Size, ceil_to
from ..pyramid import ImageDescription, PyramidOptions, Tile, ome_xml, validate, write_pyramid
from ..slide import Slide, SlideInfo, agreeing_levels, known_mpp
from ..system import cores, versions
from ..text import MOST_WORKERS, auto_option, check_bounds, option
from ..tissue import TissueMask, detect_tissue, whole_slide
from ..translation.output_files import check_not_inputs, check_report, provenance, report_path, write_report
from .transform import FloatArray, SlideFrame, Transform, moving_grid
from .transform_io import fingerprint
from .warped_region import read_warped, warping_grid

TISSUE_MARGIN_UM = 64.0
"""Margin around the tissue mask that is also written, since the mask is coarse."""

PREVIEW_UM = 16.0
"""Spacing at which the tissue mask is sampled; with the margin, no tile with tissue is missed."""

MPP_TOLERANCE = 0.01
"""Largest relative difference between the resolution of a slide and that of its registration."""

_SAMPLE_ROWS = 64


@dataclass(frozen=True, slots=True)
class OutputFrame:
    """Frame of the output: size in px, µm/px along (x, y), side of its tiles, and resolution of reading."""

    size: Size
    mpp: tuple[float, float]
    tile_px: int
    read_mpp: float


def check_slide(frame: SlideFrame | None, info: SlideInfo, otherwise: str = "") -> None:
    """Raise an error if a transform was made for another slide, as far as its frame is known.

    ``otherwise`` ends the message about another file: what else a user can do.

    Raises
    ------
    TransformError
        If size, identity or resolution of the slide differ.
    """
    if frame is None:
        return
    if frame.size != info.size:
        raise TransformError(
            f"{info.name}: {info.size} px, but the transform was made for {frame.name} of {frame.size} px; give that "
            f"slide, or register this one{otherwise}"
        )
    if is_comparable(frame.quickhash, info.quickhash) and frame.quickhash != info.quickhash:
        known = "the one of this name" if frame.name == info.name else f"the {frame.name}"
        raise TransformError(
            f"{info.name}: this is another file than {known} that the transform was made for (its hash differs); give "
            f"that slide, or register this one{otherwise}"
        )
    if info.mpp is not None and any(
        abs(own / known - 1) > MPP_TOLERANCE for own, known in zip(info.mpp, frame.mpp, strict=True)
    ):
        raise TransformError(
            f"{info.name}: {info.mpp[0]:.4g} µm/px, but the transform was made with {frame.mpp[0]:.4g}; state "
            f"that one with {info.mpp_option}, or register again"
        )


def warning_of_slide(frame: SlideFrame | None, info: SlideInfo) -> str:
    """Return a warning if a slide that passes `check_slide` may be another one; "" otherwise.

    A renamed file with the same hash is the same slide.
    """
    if frame is None or frame.name == info.name or is_comparable(frame.quickhash, info.quickhash):
        return ""
    return (
        f"The transform was made for {frame.name}; whether {info.name} is that slide is unknown, since there is no "
        "hash to compare."
    )


def is_comparable(one: str, other: str) -> bool:
    """Return whether two hashes are of the same kind, which depends on the reader."""
    return bool(one and other) and one.startswith("sha256:") == other.startswith("sha256:")


def output_frame(
    info: SlideInfo, transform: Transform, mpp: float, tile_px: int, *, any_slide: bool = False
) -> OutputFrame:
    """Return the frame of the fixed slide at ``mpp`` µm/px (0: its own), with tiles of at most ``tile_px``.

    ``any_slide`` accepts a moving slide that the transform was not made for.

    Raises
    ------
    TransformError
        If the transform belongs to another slide, or does not say how large the fixed one is.
    MissingResolutionError
        If the resolution of the moving slide, ``info``, is unknown.
    """
    if not any_slide:
        check_slide(transform.moving, info, ", or accept it with --any-slide")
    own_mpp = known_mpp(info)
    fixed = transform.fixed
    if fixed is None:
        raise TransformError(
            "the transform does not say how large the fixed slide is, so there is no frame to write; register again"
        )
    size, um_per_px = fixed.size, fixed.mpp
    if mpp:
        width, height = (
            max(1, math.ceil(side * own / mpp - 1e-6))
            for side, own in zip((size.width, size.height), um_per_px, strict=True)
        )
        size, um_per_px = Size(width, height), (mpp, mpp)
    # Read no finer than the moving slide is: its own px are then interpolated directly.
    read_mpp = max(min(um_per_px), min(own_mpp))
    warping_grid(info, read_mpp)  # whether it can be read so
    # Tiles no larger than the image needs: libvips refuses much larger ones.
    tile_px = min(tile_px, ceil_to(max(size.width, size.height), 16))
    return OutputFrame(size, um_per_px, tile_px, read_mpp)


def occupied_tiles(info: SlideInfo, transform: Transform, mask: TissueMask, frame: OutputFrame) -> BoolImage:
    """Return which tiles contain tissue or its margin, (rows, columns)."""
    mpp = info.mpp or frame.mpp
    pixel_um = (mask.pixel_size[0] * mpp[0], mask.pixel_size[1] * mpp[1])
    near = _grown(mask.pixels, pixel_um)
    rows, columns = (-(-side // frame.tile_px) for side in (frame.size.height, frame.size.width))
    occupied = np.zeros((rows, columns), np.bool_)
    x, tile_x = _looks(frame.size.width, frame.mpp[0], frame.tile_px)
    y, tile_y = _looks(frame.size.height, frame.mpp[1], frame.tile_px)
    corner_um = (mask.origin[0] * mpp[0], mask.origin[1] * mpp[1])
    for start in range(0, len(y), _SAMPLE_ROWS):
        part = slice(start, start + _SAMPLE_ROWS)
        places = np.floor((moving_grid(transform, x, y[part]) - corner_um) / pixel_um)
        i, j = np.clip(places[..., 1], -1, near.shape[0]), np.clip(places[..., 0], -1, near.shape[1])
        inside = (i >= 0) & (i < near.shape[0]) & (j >= 0) & (j < near.shape[1])
        seen = np.zeros(inside.shape, np.bool_)
        seen[inside] = near[i[inside].astype(np.intp), j[inside].astype(np.intp)]
        hit_rows, hit_columns = np.nonzero(seen)
        occupied[tile_y[part][hit_rows], tile_x[hit_columns]] = True
    return occupied


def _grown(mask: BoolImage, pixel_um: tuple[float, float]) -> BoolImage:
    """Dilate a mask by the tissue margin."""
    radius_x, radius_y = (math.ceil(TISSUE_MARGIN_UM / um) for um in pixel_um)
    if max(radius_x, radius_y) > 4096 or mask.all():
        return mask
    square = np.ones((2 * radius_y + 1, 2 * radius_x + 1), np.uint8)
    return np.asarray(cv2.dilate(mask.view(np.uint8), square), np.bool_)


def _looks(side_px: int, mpp: float, tile_px: int) -> tuple[FloatArray, npt.NDArray[np.intp]]:
    """Return the sample positions along one axis in µm, at least two per tile, and the tile of each."""
    per_tile = max(2, math.ceil(tile_px * mpp / PREVIEW_UM))
    count = -(-side_px // tile_px)
    places = (np.arange(count * per_tile, dtype=np.float64) + 0.5) * (tile_px * mpp / per_tile)
    tiles = np.repeat(np.arange(count), per_tile)
    kept = places < side_px * mpp + PREVIEW_UM
    return places[kept], tiles[kept]


NOTICE = "Scan of a stained slide, resampled into the frame of another slide. Research use only, not for diagnosis."


def describe_image(
    info: SlideInfo, transform: Transform, options: Mapping[str, Any], frame: OutputFrame, name: str
) -> str:
    """Return the OME-XML of the output ``name``."""
    fixed = transform.fixed
    entries = {
        "registered onto": "" if fixed is None else fixed.name,
        "quickhash of that": "" if fixed is None else fixed.quickhash,
        "transform": f"sha256:{fingerprint(transform)}",
    }
    magnification = None
    if info.magnification is not None and info.mpp is not None:  # coarser px are seen as through a weaker objective
        magnification = info.magnification * info.mpp[0] / frame.mpp[0]
    return ome_xml(
        ImageDescription(
            name=name,
            size=frame.size,
            mpp=frame.mpp,
            magnification=magnification,
            channel="IHC (registered)",
            notice=NOTICE,
            description=f"{info.name} in the frame of {'another slide' if fixed is None else fixed.name}.",
            provenance=provenance(info, entries, options, versions(), NOTICE),
        )
    )


@dataclass(frozen=True, slots=True)
class WarpOptions:
    """Options of `warp_slide`; the text of each field is the help of its command-line option."""

    mpp: float = option(0.0, "Resolution of the output in µm/px (0: level 0 of the fixed slide).")
    tissue: Literal["auto", "none"] = option("auto", "auto leaves out plain background; none writes the entire slide.")
    workers: int = auto_option("Threads that read, warp and encode.")
    pyramid: PyramidOptions = field(default_factory=PyramidOptions)
    any_slide: bool = option(False, "Accept a slide that was not registered, such as another export of the section.")
    overwrite: bool = option(False, "Replace an existing output.")

    def __post_init__(self) -> None:
        if not (self.mpp == 0 or 0.02 <= self.mpp <= 50):
            raise OptionError(f"--mpp {self.mpp} is not between 0.02 and 50 µm/px")
        if self.tissue not in ("auto", "none"):
            raise OptionError(f"--tissue {self.tissue!r} is not one of auto, none")
        check_bounds(self, {"workers": (0, MOST_WORKERS)})


@dataclass(frozen=True, slots=True)
class WarpReport:
    """Report of a warped slide; lengths in px of level 0, times in seconds.

    ``written_px`` counts the px of tiles that are not plain background; ``on_slide`` is the fraction of them on the
    moving slide.
    """

    source: dict[str, Any]
    fixed: dict[str, Any]
    transform: str
    options: dict[str, Any]
    output_name: str
    output_size: Size
    output_mpp: tuple[float, float]
    output_levels: tuple[Size, ...]
    output_bytes: int
    background: RGB
    written_px: int
    on_slide: float
    seconds: float
    mpx_per_s: float
    warnings: tuple[str, ...]
    versions: dict[str, str]
    created: str

    def to_json(self) -> dict[str, Any]:
        """Convert the report to JSON values."""
        plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self), default=str))
        return plain | {"notice": NOTICE}


def warp_slide(
    slide: Slide,
    transform: Transform,
    output: str | os.PathLike[str],
    options: WarpOptions | None = None,
    *,
    progress: ProgressCallback = silent,
    notes: Sequence[str] = (),
) -> WarpReport:
    """Write the moving slide in the frame of the fixed one, so that viewers overlay them px by px.

    The output covers the entire fixed slide. Positions outside the moving slide get its background color.
    Colors and color profile are kept. The file appears under its name only when it is complete and was read back; its
    report is then written beside it, under its name and ``.json``.

    Parameters
    ----------
    slide
        The open moving slide.
    transform
        Must know the fixed slide's frame. Where it knows the moving slide's, ``slide`` has to be that one.
    output
        Path that ends in ``.ome.tiff`` or ``.ome.tif``; its folder is made if it is not there.
    options
        All other choices.
    progress
        Called from this thread, often.
    notes
        Further warnings for the report.

    Raises
    ------
    TransformError
        If the transform belongs to another slide, or does not say how large the fixed one is.
    MissingResolutionError
        If the moving slide's resolution is unknown.
    OutputError
        If the file cannot be written.
    UnreadableSlideError
        If the slide is damaged.

    Notes
    -----
    Memory: 50 MB per thread (`read_warped`), raw tiles under way (two per thread), and what `write_pyramid` holds; the
    size of the slides adds one byte per 16 µm squared, and 150 bytes per tile of the file's index.
    """
    options = options or WarpOptions()
    path = Path(output)
    started = time.perf_counter()
    slide = agreeing_levels(slide)
    frame = output_frame(slide.info, transform, options.mpp, options.pyramid.tile_px, any_slide=options.any_slide)
    _check_outputs(path, slide, options.overwrite)
    progress(Progress("finding tissue"))
    mask, warnings = _find_mask(slide, options)
    occupied = occupied_tiles(slide.info, transform, mask, frame)
    workers = options.workers or cores()
    counts = _Counts(int(occupied.sum()) * frame.tile_px**2)
    with published(path, options.overwrite) as partial, ThreadPoolExecutor(workers, "warp") as executor:
        written = write_pyramid(
            partial,
            _tiles(slide, transform, frame, occupied, mask.background, executor, 2 * workers, counts, progress),
            occupied,
            frame.size,
            frame.mpp,
            mask.background,
            dataclasses.replace(options.pyramid, tile_px=frame.tile_px),
            ome_xml=describe_image(slide.info, transform, dataclasses.asdict(options), frame, path.name),
            icc_profile=slide.info.icc_profile,
            executor=executor,
        )
        progress(Progress("checking the file"))
        validate(partial, written.levels, openslide_compatible=options.pyramid.openslide_compatible)
        seconds = time.perf_counter() - started
        report = WarpReport(
            source=slide.info.described(),
            fixed={} if transform.fixed is None else dataclasses.asdict(transform.fixed),
            transform=fingerprint(transform),
            options=dataclasses.asdict(options),
            output_name=path.name,
            output_size=frame.size,
            output_mpp=frame.mpp,
            output_levels=written.levels,
            output_bytes=written.file_bytes,
            background=mask.background,
            written_px=counts.done_px,
            on_slide=counts.valid_px / max(1, counts.done_px),
            seconds=seconds,
            mpx_per_s=counts.done_px / 1e6 / seconds,
            warnings=(*slide.info.problems, *warnings, *notes),
            versions=versions(),
            created=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        )
        sync_file(partial)
        # Before the image gets its name: a run that is killed in between leaves no output, and can be repeated.
        write_report(path, report.to_json())
    return report


def _check_outputs(path: Path, slide: Slide, overwrite: bool) -> None:
    """Check that the output can be written, then create its folder."""
    existing = next(folder for folder in path.absolute().parents if folder.exists())
    check_output(existing / path.name if existing != path.absolute().parent else path, overwrite)
    make_folder(path.parent)
    check_report(path, WarpReport, slide.info, overwrite=overwrite)
    check_not_inputs([path, report_path(path)], [slide.path])


def _find_mask(slide: Slide, options: WarpOptions) -> tuple[TissueMask, tuple[str, ...]]:
    """Return the tissue mask, or the entire slide if none is used or found, and warnings.

    Warnings of the mask about the stain are omitted, since it expects H&E.
    """
    if options.tissue == "auto":
        mask = detect_tissue(slide)
        if not mask.is_empty:
            return mask, ()
        return whole_slide(slide), ("No tissue was found, so all of the slide was written.",)
    return whole_slide(slide), ()


@dataclass(slots=True)
class _Counts:
    """Progress of writing: px in total, px so far, and px on the moving slide."""

    total_px: int
    done_px: int = 0
    valid_px: int = 0


def _tiles(
    slide: Slide,
    transform: Transform,
    frame: OutputFrame,
    occupied: BoolImage,
    background: RGB,
    executor: Executor,
    ahead: int,
    counts: _Counts,
    progress: ProgressCallback,
) -> Iterator[Tile]:
    """Iterate over the occupied tiles in raster order, warped in threads; at most ``ahead`` are queued."""

    def warp(place: tuple[int, int]) -> tuple[Tile, int]:
        row, column = place
        x, y = (
            (np.arange(number * frame.tile_px, (number + 1) * frame.tile_px) + 0.5) * mpp
            for number, mpp in zip((column, row), frame.mpp, strict=True)
        )
        warped = read_warped(slide, transform, frame.read_mpp, x, y, background)
        return Tile(column, row, warped.pixels), int(warped.valid.sum())

    progress(Progress("warping", 0, counts.total_px))
    places = [(row, column) for row, column in np.argwhere(occupied).tolist()]
    for tile, valid_px in ordered_map(executor, warp, places, ahead):
        counts.done_px += frame.tile_px**2
        counts.valid_px += valid_px
        progress(Progress("warping", counts.done_px, counts.total_px))
        yield tile
