"""A whole moving slide, written as it lies on the fixed one: a pyramidal OME-TIFF like any other output.

The writer pulls tiles; each is warped in a thread when its turn comes, and nothing is ever as large as a slide.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..arrays import RGB, BoolImage
from ..errors import OptionError, OutputError
from ..files import json_bytes, read_json
from ..geometry import Size
from ..notation import MOST_WORKERS, check_bounds
from ..ordered import ordered_map
from ..progress import Progress, ProgressCallback, silent
from ..pyramid import PyramidOptions, Tile, check_output, published, validate, write_pyramid
from ..pyramid.folders import sync_file
from ..runtime import cores, versions
from ..slide import Slide, agreeing_levels
from ..tissue import TissueMask, detect_tissue, whole_slide
from .files import fingerprint, make_folder, write_file
from .transform import Transform
from .warp_plan import OutputFrame, occupied_tiles, output_frame
from .warp_provenance import NOTICE, describe_image
from .warping import read_warped


@dataclass(frozen=True, slots=True)
class WarpOptions:
    """Options of `warp_slide`; the fields are those of the command line.

    mpp:        µm per px of the output, 0 for the fixed slide's level 0, px for px
    tissue:     "auto" leaves tiles without tissue as plain glass, "none" writes all that the slide holds
    workers:    threads that read, warp and encode; 0 for one per core
    pyramid:    how the output is stored
    any_slide:  take a slide that the transform was not made for: another export of the same section, say
    overwrite:  replace an output that is there
    """

    mpp: float = 0.0
    tissue: Literal["auto", "none"] = "auto"
    workers: int = 0
    pyramid: PyramidOptions = field(default_factory=PyramidOptions)
    any_slide: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        if not (self.mpp == 0 or 0.02 <= self.mpp <= 50):
            raise OptionError(f"--mpp {self.mpp} is not between 0.02 and 50 µm per pixel")
        if self.tissue not in ("auto", "none"):
            raise OptionError(f"--tissue {self.tissue!r} is not one of auto, none")
        check_bounds(self, {"workers": (0, MOST_WORKERS)})


@dataclass(frozen=True, slots=True)
class WarpReport:
    """The facts of one warped slide; lengths in px of level 0, times in seconds.

    ``written_px`` are those of tiles that are not plain glass; ``on_slide`` is the share of them that lies on the
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
    glass: RGB
    written_px: int
    on_slide: float
    seconds: float
    mpx_per_s: float
    warnings: tuple[str, ...]
    versions: dict[str, str]
    created: str

    def to_json(self) -> dict[str, Any]:
        """A dictionary that `json.dumps` takes as it is."""
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
    """Write the moving slide in the frame of the fixed one, so that viewers lay them on each other px by px.

    The output covers the whole fixed slide. What the moving slide does not hold gets the colour of its own glass.
    Colours and colour profile are kept. The file appears under its name only when it is complete and was read back; its
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
        What else is to be told among the warnings of the report.

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
            _tiles(slide, transform, frame, occupied, mask.glass, executor, 2 * workers, counts, progress),
            occupied,
            frame.size,
            frame.mpp,
            mask.glass,
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
            glass=mask.glass,
            written_px=counts.done_px,
            on_slide=counts.valid_px / max(1, counts.done_px),
            seconds=seconds,
            mpx_per_s=counts.done_px / 1e6 / seconds,
            warnings=(*slide.info.problems, *warnings, *notes),
            versions=versions(),
            created=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        )
        content = json_bytes(report.to_json())
        sync_file(partial)
        # Before the image gets its name: a run that is killed in between leaves no output, and can be repeated.
        write_file(report_path(path), content)
    return report


def report_path(output: Path) -> Path:
    """Where the report of an output goes."""
    return output.with_name(f"{output.name}.json")


def _check_outputs(path: Path, slide: Slide, overwrite: bool) -> None:
    """Refuse what cannot be written, and only then make the folder."""
    existing = next(place for place in path.absolute().parents if place.exists())
    check_output(existing / path.name if existing != path.absolute().parent else path, overwrite)
    make_folder(path.parent)
    is_left_behind = not os.path.lexists(path) and _is_report_of(report_path(path), path.name, slide.info.quickhash)
    check_output(report_path(path), overwrite or is_left_behind, suffixes=(".json",))
    if path.exists() and Path(slide.path).is_file() and path.samefile(slide.path):
        raise OutputError(f"{path}: this file is also the input; give the output another name")


def _is_report_of(report: Path, name: str, quickhash: str) -> bool:
    """Whether a file is the report of an output of this name and slide: without the output, a killed run left it."""
    try:
        facts = read_json(report)
        is_same = facts["output_name"] == name and facts["source"]["quickhash"] == quickhash
        return bool(is_same and facts["transform"] and facts["output_levels"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _find_mask(slide: Slide, options: WarpOptions) -> tuple[TissueMask, tuple[str, ...]]:
    """The tissue, or the whole slide where none is wanted or found; and what to say of it.

    What the mask says of the stain is left out: it looks for H&E.
    """
    if options.tissue == "auto":
        mask = detect_tissue(slide)
        if not mask.is_empty:
            return mask, ()
        return whole_slide(slide), ("No tissue was found, so all of the slide was written.",)
    return whole_slide(slide), ()


@dataclass(slots=True)
class _Counts:
    """What has been written: px in all, px so far, and those of them that lie on the moving slide."""

    total_px: int
    done_px: int = 0
    valid_px: int = 0


def _tiles(
    slide: Slide,
    transform: Transform,
    frame: OutputFrame,
    occupied: BoolImage,
    glass: RGB,
    executor: Executor,
    ahead: int,
    counts: _Counts,
    progress: ProgressCallback,
) -> Iterator[Tile]:
    """The occupied tiles in raster order, warped in threads; at most ``ahead`` wait."""

    def warp(place: tuple[int, int]) -> tuple[Tile, int]:
        row, column = place
        x, y = (
            (np.arange(number * frame.tile_px, (number + 1) * frame.tile_px) + 0.5) * mpp
            for number, mpp in zip((column, row), frame.mpp, strict=True)
        )
        warped = read_warped(slide, transform, frame.read_mpp, x, y, glass)
        return Tile(column, row, warped.pixels), int(warped.valid.sum())

    progress(Progress("warping", 0, counts.total_px))
    places = [(row, column) for row, column in np.argwhere(occupied).tolist()]
    for tile, valid_px in ordered_map(executor, warp, places, ahead):
        counts.done_px += frame.tile_px**2
        counts.valid_px += valid_px
        progress(Progress("warping", counts.done_px, counts.total_px))
        yield tile
