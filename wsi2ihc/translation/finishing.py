"""The end of a translation: the file, what is told of it, and the preview."""

from __future__ import annotations

import contextlib
import datetime as dt
import math
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..arrays import BoolImage
from ..errors import OutputError
from ..files import sha256_of
from ..plan import Plan
from ..progress import Progress, ProgressCallback, silent
from ..pyramid import PyramidReport, Tile, check_output, ome_xml, write_pyramid
from ..slide import SlideInfo, srgb_profile
from ..text import pluralize
from .identity import fingerprint
from .job import Job
from .options import TranslateOptions
from .preview import is_preview_of, write_preview
from .provenance import describe_image
from .report import TranslateReport, describe_model, is_report_of, options_for_report, versions, write_report
from .seams import SeamFigures


@dataclass(frozen=True, slots=True)
class Work:
    """What a translation took.

    plan:         what a report says of the plan
    seams:        None where there can be none
    generator_s:  seconds that the translators worked, summed over devices
    run_s:        seconds of everything after the preparations
    unreadable:   places that could not be read
    warnings:     beside those of the job
    """

    plan: dict[str, Any]
    seams: SeamFigures | None
    generator_s: float
    run_s: float
    unreadable: int
    warnings: tuple[str, ...] = ()


def report_path(path: Path) -> Path:
    """Where the JSON report of an output goes."""
    return path.with_name(path.name + ".json")


def write_image(
    job: Job,
    partial: Path,
    tiles: Iterable[Tile],
    occupied: BoolImage,
    executor: Executor,
    name: str,
    on_progress: Callable[[int], None] | None = None,
) -> PyramidReport:
    """Write the OME-TIFF of a job from its tiles; see `write_pyramid`. ``name`` is what it will be called."""
    written = write_pyramid(
        partial,
        tiles,
        occupied,
        job.plan.extent.size,
        job.scene.grid.mpp,
        job.fill,
        job.options.pyramid,
        ome_xml=ome_xml(describe_image(job, name)),
        icc_profile=job.slide.info.icc_profile if job.options.icc == "keep" else srgb_profile(),
        executor=executor,
        on_progress=on_progress,
    )
    return replace(written, sha256=sha256_of(partial))


def plan_facts(plans: Iterable[Plan], shown: Iterable[Plan]) -> dict[str, Any]:
    """What a report says of how a slide was divided.

    Parameters
    ----------
    plans
        What was translated: one plan, or one for each part of the slide, with cells of one size.
    shown
        The same, with the cores that the output holds.
    """
    worked, kept = list(plans), list(shown)
    first = worked[0]
    origin = None
    if all(plan.cell_origin == first.cell_origin for plan in worked):  # else each part has a grid of its own
        origin = [first.cell_origin[0] - first.extent.x, first.cell_origin[1] - first.extent.y]
    return {
        "windows": sum(len(plan.windows) for plan in worked),
        "cell": [first.cell.width, first.cell.height],
        "cell_origin": origin,
        "halo_px": first.layout.halo_px,
        "overlap_px": first.layout.overlap_px,
        "kept_px": sum(plan.kept_px for plan in kept),
        "window_px": sum(plan.window_px for plan in worked),
    }


def _position_um(job: Job) -> tuple[float, float]:
    """Where the output's corner lies on the slide, from the corner of its level 0."""
    grid, extent, mpp = job.scene.grid, job.plan.extent, job.slide.info.mpp or (math.nan, math.nan)
    x, y = (
        (origin + start * step) * um
        for origin, start, step, um in zip(grid.level0_origin, (extent.x, extent.y), grid.downsample, mpp, strict=True)
    )
    return x, y


def make_report(job: Job, name: str, written: PyramidReport, work: Work) -> TranslateReport:
    """The facts of a finished translation."""
    plan, warnings = job.plan, job.warnings + work.warnings
    if work.unreadable:
        warnings += (f"{pluralize(work.unreadable, 'place')} could not be read: glass was assumed there",)
    return TranslateReport(
        source=job.slide.info.described(),
        model=describe_model(job.generator),
        options=options_for_report(job.options, name),
        output_name=name,
        output_size=plan.extent.size,
        output_mpp=job.scene.grid.mpp,
        output_levels=written.levels,
        output_bytes=written.file_bytes,
        output_sha256=written.sha256,
        extent=plan.extent,
        position_um=_position_um(job),
        tissue_share=job.scene.tissue_px / plan.extent.area_px,
        annotations=tuple(
            {"class": one.classification, "name": one.name, "areas": one.areas, "ignored": one.is_ignored}
            for one in job.scene.mask.annotations
        ),
        glass=job.scene.mask.glass,
        fill=job.fill,
        plan={**work.plan, "tissue_px": round(job.scene.tissue_px)},
        device=job.machine.device,
        precision=job.machine.precision,
        blend=job.blend,
        seams=work.seams,
        seconds={**job.seconds, "run": work.run_s, "generator": work.generator_s},
        mpx_per_s=work.plan["kept_px"] / 1e6 / work.run_s,
        unreadable_regions=work.unreadable,
        warnings=warnings,
        versions=versions(),
        fingerprint=fingerprint(job.identity),
        created=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
    )


def write_extras(
    job: Job, path: Path, report: TranslateReport, progress: ProgressCallback = silent, *, finished: Path | None = None
) -> None:
    """Write what lies beside an output: the preview if one is wanted, and last the report.

    Parameters
    ----------
    path
        The output's name.
    finished
        The complete image, where it does not have its name yet. What lies beside an output is written first: a run
        that is killed in between leaves no output, so that the same command does not refuse (see `check_extras`).

    Raises
    ------
    OutputError
        If one of them cannot be written; the output is complete all the same.
    """
    if job.options.preview is not None:
        draw_preview(job, job.options.preview, path, progress, finished=finished)
    write_report(report_path(path), report)


def draw_preview(
    job: Job, preview: Path, path: Path, progress: ProgressCallback = silent, *, finished: Path | None = None
) -> None:
    """Write the preview of a finished output, which may lie at ``finished`` yet.

    Raises
    ------
    OutputError
        If it cannot be written; the output is complete all the same.
    """
    progress(Progress("drawing the preview"))
    try:
        write_preview(preview, finished or path, job, of=path.name)
    except OSError as error:
        raise OutputError(
            f"{preview}: the preview cannot be written ({error}); the virtual slide {path} is complete"
        ) from error


@contextlib.contextmanager
def removing_extras(job: Job, path: Path) -> Iterator[None]:
    """Remove the report and the preview again if the body fails before the output has its name."""
    try:
        yield
    except BaseException:
        name, quickhash, preview = path.name, job.slide.info.quickhash, job.options.preview
        with contextlib.suppress(OSError):
            if not os.path.lexists(path) and is_report_of(report_path(path), name, quickhash):
                report_path(path).unlink()
            if not os.path.lexists(path) and preview is not None and is_preview_of(preview, name, quickhash):
                preview.unlink()
        raise


def check_extras(path: Path, source: SlideInfo, options: TranslateOptions) -> None:
    """Refuse a report or a preview that is there and may not be replaced.

    Where the output itself is missing, those of the same output and slide may be: a killed run has left them.

    Raises
    ------
    OutputError
        If there is one, or it could not be written.
    """
    is_missing = not os.path.lexists(path)
    report, preview = report_path(path), options.preview
    may_replace = is_missing and is_report_of(report, path.name, source.quickhash)
    check_output(report, options.overwrite or may_replace, suffixes=(".json",))
    if preview is not None:
        may_replace = is_missing and is_preview_of(preview, path.name, source.quickhash)
        check_output(preview, options.overwrite or may_replace, suffixes=(".png",))
