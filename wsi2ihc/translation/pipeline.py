"""Translate one slide: the stages in a row, and the file at their end.

The writer demands: it pulls tiles, which pull cores, which pull translated windows, which pull windows as read. All
Python of the stages runs in the caller's thread; pixels are read, translated, encoded and reduced in pools. Nothing
is ever as large as the slide.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from ..errors import OptionError, OutputError
from ..generator.model import Generator
from ..generator.protocol import Translator
from ..geometry import Region, ceil_to
from ..plan import Plan
from ..progress import Progress, ProgressCallback, silent
from ..pyramid import (
    SUFFIXES,
    ZARR_SUFFIX,
    PyramidOptions,
    Tile,
    check_folder_output,
    check_output,
    is_zarr,
    published,
    validate,
)
from ..pyramid.folders import sync_file
from ..slide import Slide, agreeing_levels
from ..storage import check_name
from .assembling import assemble_tiles
from .background import background_fill
from .blending import blend_overlaps, cut_cores
from .feathering import feather_cores
from .finishing import (
    Work,
    check_extras,
    make_report,
    plan_facts,
    removing_extras,
    report_path,
    write_extras,
    write_image,
)
from .identity import Identity, identity
from .job import Job, Settled
from .layout import batch_size, choose_layout, default_workers, make_plan
from .machine import make_machine
from .options import TranslateOptions
from .plausibility import doubtful_answers
from .reading import read_windows
from .report import TranslateReport
from .scene import set_scene
from .seams import SeamMeter
from .stage_names import CHECKING, TRANSLATING
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

    The file appears under its name only when it is complete and has been read back. This is the one pass, which keeps
    nothing of a run that is interrupted; `wsi2ihc.bands.translate` also knows how to go on, and writes OME-Zarr.

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
    TypeError
        If an argument is of another kind, such as a path in place of an open slide.
    """
    check_arguments(slide, generator, options)
    options = options or TranslateOptions()
    path = Path(output)
    if options.resume or is_zarr(path):
        raise OptionError(f"{path.name}: one pass neither goes on nor writes OME-Zarr; call wsi2ihc.bands.translate")
    check_outputs(slide, path, options)
    job = prepare(slide, generator, options, progress=progress)
    return run(job, path, progress=progress)


def check_arguments(slide: object, generator: object, options: object) -> None:
    """Refuse what callers easily give in place of the arguments of `translate`.

    Raises
    ------
    TypeError
        Saying what is expected.
    """
    if isinstance(slide, str | os.PathLike):
        raise TypeError(f"translate() takes an open slide, not a path: wsi2ihc.open_slide({os.fspath(slide)!r})")
    if not isinstance(generator, Generator):
        given = repr(generator) if isinstance(generator, str) else f"a {type(generator).__name__}"
        raise TypeError(f"translate() takes a generator, not {given}: wsi2ihc.load_generator(NAME_OR_FILE) gives one")
    if options is not None and not isinstance(options, TranslateOptions):
        raise TypeError(f"translate() takes options as wsi2ihc.TranslateOptions, not as a {type(options).__name__}")


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
    check_name(path)
    outputs = [path, report_path(path)]
    if is_zarr(path):
        check_folder_output(path, options.overwrite)
    else:
        check_output(path, options.overwrite, suffixes=(*SUFFIXES, ZARR_SUFFIX))
    check_extras(path, slide.info, options)
    if options.preview is not None:
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


def prepare(
    slide: Slide,
    generator: Generator,
    options: TranslateOptions,
    *,
    translators: Sequence[Translator] | None = None,
    settled: Settled | None = None,
    known_identity: Identity | None = None,
    progress: ProgressCallback = silent,
) -> Job:
    """Find the tissue, load the network onto its devices, and plan the windows.

    Parameters
    ----------
    translators
        Replace the generator's own (for measuring the pipeline around them).
    settled
        What another run has found and decided for the same slide, model and options.
    known_identity
        What `identity` gives for these; it is found out if it is None.
    """
    started = time.perf_counter()
    known_identity = known_identity or identity(slide, generator, options)
    progress(Progress("finding tissue"))
    slide = agreeing_levels(slide)
    scene = set_scene(slide, generator.mpp, options, settled.mask if settled else None)
    found = time.perf_counter()
    progress(Progress("loading the model"))
    machine = make_machine(generator, scene, options, translators, settled.statistics if settled else None)
    options = replace(options, pyramid=_fitted(options.pyramid, scene.extent))
    layout = settled.layout if settled else choose_layout(machine, options, scene.extent.width)
    plan = make_plan(scene, layout, options, slide.info.name, settled.cell if settled else None)
    doubts = doubtful_answers(machine, scene, plan, generator.name)
    machine = replace(machine, warnings=(*machine.warnings, *doubts))
    fill = settled.fill if settled else background_fill(machine, scene, plan)
    seconds = {"tissue": found - started, "model": time.perf_counter() - found}
    workers = options.workers or default_workers()
    return Job(
        slide, generator, options, scene, machine, layout, plan, fill, workers,
        batch_size(options, plan, machine.on_gpu), seconds, known_identity,
    )  # fmt: skip


def _fitted(pyramid: PyramidOptions, extent: Region) -> PyramidOptions:
    """Tiles no larger than the image needs: libvips refuses much larger ones."""
    return replace(pyramid, tile_px=min(pyramid.tile_px, ceil_to(max(extent.width, extent.height), 16)))


def run(job: Job, path: Path, *, progress: ProgressCallback = silent) -> TranslateReport:
    """Do a prepared translation, in one pass into an OME-TIFF."""
    started = time.perf_counter()
    clock = DeviceClock()
    meter = SeamMeter(job.plan) if job.can_have_seams else None
    with (
        removing_extras(job, path),
        published(path, overwrite=job.options.overwrite) as partial,
        ThreadPoolExecutor(job.workers, thread_name_prefix="pixels") as executor,
    ):
        tiles = finished_tiles(job, executor, clock, meter, progress)
        occupied = job.plan.occupied_tiles(job.options.pyramid.tile_px)
        written = write_image(job, partial, tiles, occupied, executor, path.name)
        progress(Progress(CHECKING))
        validate(partial, written.levels, openslide_compatible=job.options.pyramid.openslide_compatible)
        seams = meter.figures() if meter else None
        plan = plan_facts([job.plan], [job.plan])
        run_s = time.perf_counter() - started
        work = Work(plan, seams, clock.busy_s, run_s, len(job.scene.damaged_places))
        report = make_report(job, path.name, written, work)
        sync_file(partial)  # which may take long: the report and the image are to appear together
        problem = extras_problem(job, path, report, partial, progress)
    if problem is not None:
        raise problem
    return report


def extras_problem(
    job: Job, path: Path, report: TranslateReport, finished: Path, progress: ProgressCallback = silent
) -> OutputError | None:
    """Write the report and the preview before the output gets its name; what went wrong with them, or None.

    The output is published all the same.

    Raises
    ------
    OutputExistsError
        If the output has appeared meanwhile and may not be replaced: then these are those of another run.
    """
    check = check_folder_output if is_zarr(path) else check_output
    check(path, job.options.overwrite)
    try:
        write_extras(job, path, report, progress, finished=finished)
    except OutputError as error:
        return error
    return None


def finished_tiles(
    job: Job, executor: Executor, clock: DeviceClock, meter: SeamMeter | None, progress: ProgressCallback = silent
) -> Iterator[Tile]:
    """The stages in a row: windows → pixels → answers → cores → tiles of the output."""
    cores = counted(translated_cores(job, job.plan, executor, clock), progress, job.plan.window_px)
    return tiles_of_cores(job, cores, job.plan, executor, meter)


def translated_cores(job: Job, plan: Plan, executor: Executor, clock: DeviceClock) -> Iterator[FinishedCore]:
    """The first stages: windows of a plan, the job's own or that of a part → pixels → answers → cores."""
    patches = read_windows(plan.windows, job.scene.reader, executor, ahead=2 * job.workers + 2 * job.batch_size)
    answers = translate_windows(patches, job.machine.translators, job.batch_size, clock)
    return blend_overlaps(answers, plan) if plan.layout.overlap_px else cut_cores(answers)


def tiles_of_cores(
    job: Job, cores: Iterator[FinishedCore], plan: Plan, executor: Executor, meter: SeamMeter | None
) -> Iterator[Tile]:
    """The last stages: cores of a plan are measured and fade into the fill → tiles of what the plan shows."""
    if meter is not None:
        cores = meter.watch(cores)
    if not job.scene.mask.pixels.all():
        cores = feather_cores(cores, job.scene.fade, job.fill, executor, ahead=job.workers + 1)
    return assemble_tiles(cores, plan, job.options.pyramid.tile_px, job.fill)


def counted(
    cores: Iterator[FinishedCore], progress: ProgressCallback, total_px: int, done_px: int = 0
) -> Iterator[FinishedCore]:
    """Pass cores on and tell how many px of windows are done, of ``total_px``."""
    progress(Progress(TRANSLATING, done_px, total_px))
    for core in cores:
        done_px += core.window.region.area_px
        progress(Progress(TRANSLATING, done_px, total_px))
        yield core
