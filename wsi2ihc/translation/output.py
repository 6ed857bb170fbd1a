"""Check, assemble and write the outputs of a translation: the image, its report and its preview.

`finished_tiles` connects the stages of a job, `write_image` writes its tiles, and `make_report` and `write_preview`
describe the result. The report and the preview are written before the image gets its name, so that an interrupted run
leaves no output without them.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import io
import json
import math
import os
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ..atomic_files import SUFFIXES, check_name, check_output, published
from ..concurrency import Progress, ProgressCallback, silent
from ..errors import OutputError
from ..files import read_regular, sha256_of
from ..geometry import BoolImage, RGBImage
from ..pyramid import ZARR_SUFFIX, PyramidReport, Tile, check_zarr_output, is_zarr, ome_xml, write_pyramid
from ..pyramid import read_overview as read_result
from ..slide import Slide, overview_grid, read_overview, srgb_profile
from ..text import pluralize
from .blend import blend_overlaps, feather_cores
from .job import TranslationJob, hash_fingerprint
from .options import TRANSLATING, TranslateOptions
from .output_files import check_not_inputs, check_report, is_report_of, report_path, write_report
from .report import TranslateReport, caption, describe_image, describe_model, options_for_report, versions
from .seams import SeamMeter, SeamMetrics
from .stages import DeviceClock, FinishedCore, assemble_tiles, crop_cores, read_windows, translate_windows
from .windows import Plan

PREVIEW_PX = 1600
"""Longest side of each half of a preview."""

GAP_PX = 8

ORIGIN = "wsi2ihc"
"""PNG text field of a preview that identifies its output and slide."""

LARGEST_PREVIEW_BYTES = 64 << 20


def check_outputs(
    slide: Slide, path: Path, options: TranslateOptions, inputs: Sequence[str | os.PathLike[str]] = ()
) -> None:
    """Refuse outputs that cannot be written or would replace an input, before any work.

    ``inputs`` are files read besides the slide and the mask, such as the model.

    Raises
    ------
    OutputError
        If a folder is missing or not writable, a suffix is unknown, or an existing file may not be replaced.
    """
    check_name(path)
    _check_image(path, options.overwrite)
    check_report(path, TranslateReport, slide.info, overwrite=options.overwrite)
    outputs, preview = [path, report_path(path)], options.preview
    if preview is not None:
        is_stale = not os.path.lexists(path) and is_preview_of(preview, path.name, slide.info.quickhash)
        check_output(preview, options.overwrite or is_stale, suffixes=(".png",))
        outputs.append(preview)
    check_not_inputs(outputs, [slide.path, options.tissue, *inputs])


def _check_image(path: Path, overwrite: bool) -> None:
    if is_zarr(path):
        check_zarr_output(path, overwrite)
    else:
        check_output(path, overwrite, suffixes=(*SUFFIXES, ZARR_SUFFIX))


def finished_tiles(
    job: TranslationJob,
    executor: Executor,
    clock: DeviceClock,
    meter: SeamMeter | None,
    progress: ProgressCallback = silent,
) -> Iterator[Tile]:
    """Run all stages of a job: windows → pixels → outputs of the model → cores → tiles."""
    cores = report_progress(translated_cores(job, job.plan, executor, clock), progress, job.plan.window_px)
    return tiles_of_cores(job, cores, job.plan, executor, meter)


def translated_cores(job: TranslationJob, plan: Plan, executor: Executor, clock: DeviceClock) -> Iterator[FinishedCore]:
    """Run the first stages on a plan (the job's own, or one of a band): windows → pixels → outputs → cores."""
    patches = read_windows(plan.windows, job.prepared.reader, executor, ahead=2 * job.workers + 2 * job.batch_size)
    outputs = translate_windows(patches, job.inference.translators, job.batch_size, clock)
    return blend_overlaps(outputs, plan) if plan.layout.overlap_px else crop_cores(outputs)


def report_progress(
    cores: Iterator[FinishedCore], progress: ProgressCallback, total_px: int, done_px: int = 0
) -> Iterator[FinishedCore]:
    """Pass cores on, and report the translated px of windows out of ``total_px``."""
    progress(Progress(TRANSLATING, done_px, total_px))
    for core in cores:
        done_px += core.window.region.area_px
        progress(Progress(TRANSLATING, done_px, total_px))
        yield core


def tiles_of_cores(
    job: TranslationJob, cores: Iterator[FinishedCore], plan: Plan, executor: Executor, meter: SeamMeter | None
) -> Iterator[Tile]:
    """Run the last stages on the cores of a plan: measure seams, fade into the fill, assemble tiles."""
    if meter is not None:
        cores = meter.watch(cores)
    if not job.prepared.mask.pixels.all():
        cores = feather_cores(cores, job.prepared.fade, job.fill, executor, ahead=job.workers + 1)
    return assemble_tiles(cores, plan, job.options.pyramid.tile_px, job.fill)


def write_preview(preview: Path, result: Path, job: TranslationJob, *, of: str) -> None:
    """Write ``preview`` (PNG): the source on the left, the finished ``result`` on the right, at one scale.

    Its PNG text "Description" says what it shows, and another one identifies the output ``of`` this name.
    """
    virtual = read_result(result, PREVIEW_PX)
    height, width = virtual.shape[:2]
    both = np.full((height, 2 * width + GAP_PX, 3), 255, dtype=np.uint8)
    both[:, :width] = _read_source(job, width, height)
    both[:, -width:] = virtual
    text = PngInfo()
    text.add_itxt("Description", caption(job))
    text.add_itxt(ORIGIN, _origin(of, job.slide.info.quickhash))
    with published(preview, overwrite=True) as partial:
        Image.fromarray(both).save(partial, format="PNG", pnginfo=text)


def is_preview_of(preview: Path, name: str, quickhash: str) -> bool:
    """Return whether a file is the preview of an output with this name, made from this slide."""
    try:
        with Image.open(io.BytesIO(read_regular(preview, LARGEST_PREVIEW_BYTES)), formats=["PNG"]) as image:
            return image.info.get(ORIGIN) == _origin(name, quickhash)
    # Pillow raises all of these for damaged chunks and text.
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error):
        return False


def _origin(name: str, quickhash: str) -> str:
    return json.dumps([name, quickhash])


def _read_source(job: TranslationJob, width: int, height: int) -> RGBImage:
    """Read the extent of the slide, (height, width, 3), from a level not much larger."""
    grid, extent, info = job.prepared.grid, job.plan.extent, job.slide.info
    shrink = extent.width * grid.downsample[0] / width
    overview = overview_grid(info, max(1.0, shrink))
    reader = job.prepared.reader
    pixels = read_overview(reader.slide, overview, reader.background)
    if reader.color is not None:
        pixels = reader.color(pixels)
    left, top, right, bottom = (
        edge * grid.downsample[axis] / overview.downsample[axis]
        for edge, axis in ((extent.x, 0), (extent.y, 1), (extent.right, 0), (extent.bottom, 1))
    )
    part = pixels[int(top) : max(int(top) + 1, round(bottom)), int(left) : max(int(left) + 1, round(right))]
    return np.asarray(cv2.resize(part, (width, height), interpolation=cv2.INTER_AREA), np.uint8)


@dataclass(frozen=True, slots=True)
class WorkSummary:
    """Summary of the work on a translation, for its report."""

    plan: dict[str, Any]  # result of `plan_metadata`
    seams: SeamMetrics | None  # seam metrics; None if the model cannot produce seams
    model_s: float  # seconds spent in the translators, summed over devices
    run_s: float  # seconds spent after the preparation
    unreadable: int  # number of unreadable areas
    warnings: tuple[str, ...] = ()  # warnings in addition to those of the job


def write_image(
    job: TranslationJob,
    partial: Path,
    tiles: Iterable[Tile],
    occupied: BoolImage,
    executor: Executor,
    name: str,
    on_progress: Callable[[int], None] | None = None,
) -> PyramidReport:
    """Write the OME-TIFF of a job from its tiles; see `write_pyramid`. ``name`` is its final name."""
    written = write_pyramid(
        partial,
        tiles,
        occupied,
        job.plan.extent.size,
        job.prepared.grid.mpp,
        job.fill,
        job.options.pyramid,
        ome_xml=ome_xml(describe_image(job, name)),
        icc_profile=job.slide.info.icc_profile if job.options.icc == "keep" else srgb_profile(),
        executor=executor,
        on_progress=on_progress,
    )
    return replace(written, sha256=sha256_of(partial))


def plan_metadata(plans: Iterable[Plan], shown: Iterable[Plan]) -> dict[str, Any]:
    """Summarize the windows of a slide for its report.

    ``plans`` are one plan, or one for each band, all with the same core size; ``shown`` are the same plans with cores
    cropped to what the output shows.
    """
    translated, kept = list(plans), list(shown)
    first = translated[0]
    origin = None
    if all(plan.core_origin == first.core_origin for plan in translated):  # else each band has its own grid
        origin = [first.core_origin[0] - first.extent.x, first.core_origin[1] - first.extent.y]
    return {
        "windows": sum(len(plan.windows) for plan in translated),
        "core_size": [first.core_size.width, first.core_size.height],
        "core_origin": origin,
        "halo_px": first.layout.halo_px,
        "overlap_px": first.layout.overlap_px,
        "kept_px": sum(plan.kept_px for plan in kept),
        "window_px": sum(plan.window_px for plan in translated),
    }


def _position_um(job: TranslationJob) -> tuple[float, float]:
    """Return the offset of the output from the top left corner of level 0 of the slide, in µm."""
    grid, extent, mpp = job.prepared.grid, job.plan.extent, job.slide.info.mpp or (math.nan, math.nan)
    x, y = (
        (origin + start * step) * um
        for origin, start, step, um in zip(grid.level0_origin, (extent.x, extent.y), grid.downsample, mpp, strict=True)
    )
    return x, y


def make_report(job: TranslationJob, name: str, written: PyramidReport, work: WorkSummary) -> TranslateReport:
    """Make the report of a finished translation."""
    plan, warnings = job.plan, job.warnings + work.warnings
    if work.unreadable:
        warnings += (f"{pluralize(work.unreadable, 'place')} could not be read and were filled with background",)
    return TranslateReport(
        source=job.slide.info.described(),
        model=describe_model(job.generator),
        options=options_for_report(job.options, name),
        output_name=name,
        output_size=plan.extent.size,
        output_mpp=job.prepared.grid.mpp,
        output_levels=written.levels,
        output_bytes=written.file_bytes,
        output_sha256=written.sha256,
        extent=plan.extent,
        position_um=_position_um(job),
        tissue_share=job.prepared.tissue_px / plan.extent.area_px,
        annotations=tuple(
            {"class": one.classification, "name": one.name, "areas": one.areas, "ignored": one.is_ignored}
            for one in job.prepared.mask.annotations
        ),
        background=job.prepared.mask.background,
        fill=job.fill,
        plan={**work.plan, "tissue_px": round(job.prepared.tissue_px)},
        device=job.inference.device,
        precision=job.inference.precision,
        blend=job.blend,
        seams=work.seams,
        seconds={**job.seconds, "run": work.run_s, "generator": work.model_s},
        mpx_per_s=work.plan["kept_px"] / 1e6 / work.run_s,
        unreadable_regions=work.unreadable,
        warnings=warnings,
        versions=versions(),
        fingerprint=hash_fingerprint(job.fingerprint),
        created=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
    )


def write_extras_first(
    job: TranslationJob, path: Path, report: TranslateReport, finished: Path, progress: ProgressCallback = silent
) -> OutputError | None:
    """Write the report and the preview before the output gets its name; see `write_extras`.

    A run that is interrupted in between leaves no output, so that the same command can be repeated. An error is
    returned, since the output is to be published nevertheless.

    Raises
    ------
    OutputExistsError
        If the output has appeared meanwhile and may not be replaced; an existing report then belongs to it.
    """
    _check_image(path, job.options.overwrite)
    try:
        write_extras(job, path, report, progress, finished=finished)
    except OutputError as error:
        return error
    return None


def write_extras(
    job: TranslationJob,
    path: Path,
    report: TranslateReport,
    progress: ProgressCallback = silent,
    *,
    finished: Path | None = None,
) -> None:
    """Write the preview, if requested, and the report of an output, whose image may still be at ``finished``.

    Raises
    ------
    OutputError
        If one of them cannot be written; the output is complete nevertheless.
    """
    if job.options.preview is not None:
        draw_preview(job, job.options.preview, path, progress, finished=finished)
    write_report(path, report.to_json())


def draw_preview(
    job: TranslationJob, preview: Path, path: Path, progress: ProgressCallback = silent, *, finished: Path | None = None
) -> None:
    """Write the preview of a finished output, whose image may still be at ``finished``; errors as in `write_extras`."""
    progress(Progress("drawing the preview"))
    try:
        write_preview(preview, finished or path, job, of=path.name)
    except OSError as error:
        raise OutputError(
            f"{preview}: the preview cannot be written ({error}); the virtual slide {path} is complete"
        ) from error


@contextlib.contextmanager
def extras_removed_on_error(job: TranslationJob, path: Path) -> Iterator[None]:
    """Remove the report and the preview if the body fails before the output has its final name."""
    try:
        yield
    except BaseException:
        name, quickhash, preview = path.name, job.slide.info.quickhash, job.options.preview
        with contextlib.suppress(OSError):
            if not os.path.lexists(path) and is_report_of(report_path(path), TranslateReport, name, quickhash):
                report_path(path).unlink()
            if not os.path.lexists(path) and preview is not None and is_preview_of(preview, name, quickhash):
                preview.unlink()
        raise
