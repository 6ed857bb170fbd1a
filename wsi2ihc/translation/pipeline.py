"""Translate one slide: the stages in a row, and the file at their end.

The writer demands: it pulls tiles, which pull cores, which pull translated windows, which pull windows as read. All
Python of the stages runs in the caller's thread; pixels are read, translated, encoded and reduced in pools. Nothing
is ever as large as the slide.
"""

from __future__ import annotations

import datetime as dt
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from ..errors import OutputError
from ..generator.model import Generator
from ..generator.protocol import Translator
from ..geometry import Region, ceil_to
from ..plan import Plan
from ..progress import Progress, ProgressCallback, silent
from ..pyramid import PyramidOptions, PyramidReport, Tile, check_output, published, validate, write_pyramid
from ..slide import Slide, srgb_profile
from .assembling import assemble_tiles
from .blending import blend_overlaps, cut_cores
from .feathering import feather_cores
from .job import Job
from .layout import answer_to_glass, batch_size, choose_layout, default_workers, make_plan
from .machine import make_machine
from .options import TranslateOptions
from .preview import write_preview
from .provenance import describe_image
from .reading import read_windows
from .report import TranslateReport, describe_model, options_for_report, versions, write_report
from .scene import set_scene
from .seams import SeamFigures, SeamMeter
from .stages import FinishedCore
from .translating import DeviceClock, translate_windows


def translate(
    slide: Slide,
    generator: Generator,
    output: str | os.PathLike[str],
    options: TranslateOptions | None = None,
    *,
    progress: ProgressCallback = silent,
) -> TranslateReport:
    """Translate ``slide`` with ``generator`` into the pyramidal OME-TIFF ``output``, and a JSON report beside it.

    The file appears under its name only when it is complete and has been read back.

    Parameters
    ----------
    slide
        An open slide (`wsi2ihc.open_slide`).
    generator
        A generator (`wsi2ihc.load_generator`).
    output
        Path that ends in ``.ome.tiff`` or ``.ome.tif``, in a folder that exists.
    options
        All other choices; the defaults suit most slides.
    progress
        Called from this thread, often.

    Raises
    ------
    Wsi2IhcError
        One of its leaves, with one line that says what is wrong, where, and what to do.
    """
    options = options or TranslateOptions()
    path = Path(output)
    check_outputs(slide, path, options)
    job = prepare(slide, generator, options, progress=progress)
    return run(job, path, progress=progress)


def check_outputs(
    slide: Slide, path: Path, options: TranslateOptions, inputs: Sequence[str | os.PathLike[str]] = ()
) -> None:
    """Refuse outputs that could not be written, or would replace an input, before any work.

    ``inputs`` are files beside the slide and the mask that are read, such as the model.

    Raises
    ------
    OutputError
        If a folder is missing or not writable, a suffix is unknown, or a file is there and may not be replaced.
    """
    outputs = [path, report_path(path)]
    check_output(path, options.overwrite)
    check_output(report_path(path), options.overwrite, suffixes=(".json",))
    if options.preview is not None:
        check_output(options.preview, options.overwrite, suffixes=(".png",))
        outputs.append(options.preview)
    check_not_inputs(outputs, [slide.path, options.tissue, *inputs])


def check_not_inputs(outputs: Iterable[Path], inputs: Iterable[str | os.PathLike[str]]) -> None:
    """Refuse an output that is one of the inputs, under whatever name.

    Raises
    ------
    OutputError
        If there is one.
    """
    read = [Path(file) for file in inputs if Path(file).is_file()]
    for output in outputs:
        if output.exists() and any(output.samefile(file) for file in read):
            raise OutputError(f"{output}: this file is also an input; give the output another name")


def report_path(path: Path) -> Path:
    """Where the JSON report of an output goes."""
    return path.with_name(path.name + ".json")


def prepare(
    slide: Slide,
    generator: Generator,
    options: TranslateOptions,
    *,
    translators: Sequence[Translator] | None = None,
    progress: ProgressCallback = silent,
) -> Job:
    """Find the tissue, load the network onto its devices, and plan the windows.

    ``translators`` replaces the generator's own (for measuring the pipeline around them).
    """
    started = time.perf_counter()
    progress(Progress("finding tissue"))
    scene = set_scene(slide, generator.mpp, options)
    found = time.perf_counter()
    progress(Progress("loading the model"))
    machine = make_machine(generator, scene, options, translators)
    options = replace(options, pyramid=_fitted(options.pyramid, scene.extent))
    layout = choose_layout(machine, options, scene.extent.width)
    plan = make_plan(scene, layout, options, slide.info.name)
    fill = answer_to_glass(machine.translators[0], layout, scene.shown_glass)
    seconds = {"tissue": found - started, "model": time.perf_counter() - found}
    workers = options.workers or default_workers()
    return Job(
        slide, generator, options, scene, machine, layout, plan, fill, workers,
        batch_size(options, plan, machine.on_gpu), seconds,
    )  # fmt: skip


def _fitted(pyramid: PyramidOptions, extent: Region) -> PyramidOptions:
    """Tiles no larger than the image needs: libvips refuses much larger ones."""
    return replace(pyramid, tile_px=min(pyramid.tile_px, ceil_to(max(extent.width, extent.height), 16)))


def run(job: Job, path: Path, *, progress: ProgressCallback = silent) -> TranslateReport:
    """Do a prepared translation."""
    started = time.perf_counter()
    clock = DeviceClock()
    # Where no window needs a margin, each pixel is translated by itself, and there is nothing to measure.
    meter = SeamMeter(job.plan) if job.layout.margin_px else None
    with (
        published(path, overwrite=job.options.overwrite) as partial,
        ThreadPoolExecutor(job.workers, thread_name_prefix="pixels") as executor,
    ):
        tiles = finished_tiles(job, executor, clock, meter, progress)
        written = _write(job, partial, tiles, executor, path.name)
        progress(Progress("checking the file"))
        validate(partial, written.levels)
    translated = time.perf_counter()
    report = _report(job, path.name, written, meter.figures() if meter else None, clock, translated - started)
    write_report(report_path(path), report)
    if job.options.preview is not None:
        progress(Progress("drawing the preview"))
        try:
            write_preview(job.options.preview, path, job)
        except OSError as error:
            raise OutputError(
                f"{job.options.preview}: the preview cannot be written ({error}); the virtual slide {path} is complete"
            ) from error
    return report


def finished_tiles(
    job: Job, executor: Executor, clock: DeviceClock, meter: SeamMeter | None, progress: ProgressCallback = silent
) -> Iterator[Tile]:
    """The stages in a row: windows → pixels → answers → cores → tiles of the output."""
    patches = read_windows(job.plan.windows, job.scene.reader, executor, ahead=2 * job.workers + 2 * job.batch_size)
    answers = translate_windows(patches, job.machine.translators, job.batch_size, clock)
    cores = blend_overlaps(answers, job.plan) if job.layout.overlap_px else cut_cores(answers)
    cores = _counted(cores, job.plan, progress)
    if meter is not None:
        cores = meter.watch(cores)
    if not job.scene.mask.pixels.all():
        cores = feather_cores(cores, job.scene.tissue, job.scene.grid.mpp, job.fill, executor, ahead=job.workers + 1)
    return assemble_tiles(cores, job.plan, job.options.pyramid.tile_px, job.fill)


def _counted(cores: Iterator[FinishedCore], plan: Plan, progress: ProgressCallback) -> Iterator[FinishedCore]:
    done, total = 0, plan.window_px
    progress(Progress("translating", done, total))
    for core in cores:
        done += core.window.region.area_px
        progress(Progress("translating", done, total))
        yield core


def _write(job: Job, partial: Path, tiles: Iterator[Tile], executor: Executor, name: str) -> PyramidReport:
    info, grid, extent = job.slide.info, job.scene.grid, job.plan.extent
    profile = info.icc_profile if job.options.icc == "keep" else srgb_profile()
    return write_pyramid(
        partial,
        tiles,
        job.plan.occupied_tiles(job.options.pyramid.tile_px),
        extent.size,
        grid.mpp,
        job.fill,
        job.options.pyramid,
        ome_xml=describe_image(job, name),
        icc_profile=profile,
        executor=executor,
    )


def _report(
    job: Job, name: str, written: PyramidReport, seams: SeamFigures | None, clock: DeviceClock, run_s: float
) -> TranslateReport:
    plan = job.plan
    unreadable = job.scene.damaged_places
    warnings = job.warnings
    if unreadable:
        warnings += (f"{unreadable} places could not be read and were taken for glass",)
    return TranslateReport(
        source=job.slide.info.described(),
        model=describe_model(job.generator),
        options=options_for_report(job.options),
        output_name=name,
        output_size=plan.extent.size,
        output_mpp=job.scene.grid.mpp,
        output_levels=written.levels,
        output_bytes=written.file_bytes,
        extent=plan.extent,
        tissue_share=plan.tissue_px / plan.extent.area_px,
        glass=job.scene.mask.glass,
        fill=job.fill,
        plan={
            "windows": len(plan.windows),
            "cell": [plan.cell.width, plan.cell.height],
            "halo_px": plan.layout.halo_px,
            "overlap_px": plan.layout.overlap_px,
            "kept_px": plan.kept_px,
            "window_px": plan.window_px,
            "tissue_px": round(plan.tissue_px),
        },
        device=job.machine.device,
        precision=job.machine.precision,
        blend=job.blend,
        seams=seams,
        seconds={**job.seconds, "run": run_s, "generator": clock.busy_s},
        mpx_per_s=plan.kept_px / 1e6 / run_s,
        unreadable_regions=unreadable,
        warnings=warnings,
        versions=versions(),
        created=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
    )
