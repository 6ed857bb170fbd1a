"""Translate a slide, in one pass or resumable in bands.

`translate` checks its arguments and chooses the strategy. In one pass, windows go through the stages straight into an
OME-TIFF. With ``resume``, and for OME-Zarr, bands are translated into a checkpoint folder first (see `resume`).
"""

from __future__ import annotations

import logging
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ..atomic_files import check_output, published, sync_file, tree_bytes
from ..concurrency import Progress, ProgressCallback, silent
from ..errors import OutputError, OutputExistsError
from ..files import read_json, sha256_of
from ..models.registry import Model
from ..pyramid import is_zarr, validate
from ..slide import Slide
from .checkpoint_folder import checkpoint_path, count_done, discard_checkpoint
from .job import TranslationFingerprint, TranslationJob, hash_fingerprint, prepare, translation_fingerprint
from .options import CHECKING, TranslateOptions
from .output import (
    WorkSummary,
    check_outputs,
    draw_preview,
    extras_removed_on_error,
    finished_tiles,
    make_report,
    plan_metadata,
    write_extras_first,
    write_image,
)
from .output_files import report_path
from .report import TranslateReport, is_stored_as
from .resume import complete, open_checkpoint
from .seams import SeamMeter
from .stages import DeviceClock

_log = logging.getLogger(__name__)


def translate(
    slide: Slide,
    generator: Model,
    output: str | os.PathLike[str],
    options: TranslateOptions | None = None,
    *,
    progress: ProgressCallback = silent,
) -> TranslateReport:
    """Translate ``slide`` with ``generator`` into the virtual slide ``output``, and write a JSON report beside it.

    An OME-TIFF is written in one pass. With ``options.resume``, finished bands are kept in a checkpoint folder beside
    the output, from which a later run resumes and which several processes may share. An OME-Zarr is always written
    there first. The output appears under its name only when it is complete and has been read back.

    Parameters
    ----------
    slide
        An open slide (`wsi2ihc.open_slide`).
    generator
        A generator (`wsi2ihc.load_model`).
    output
        Path that ends in ``.ome.tiff``, ``.ome.tif`` or ``.ome.zarr``, in an existing folder.
    options
        All other choices; the defaults suit most slides.
    progress
        Called often, from the calling thread.

    Returns
    -------
    TranslateReport
        With ``options.resume``, the report of the process that wrote the output, even if an earlier run did.

    Raises
    ------
    Wsi2IhcError
        A subclass whose one-line message names the problem, the place and the remedy.
    TypeError
        If an argument has the wrong type, such as a path instead of an open slide.
    """
    _check_arguments(slide, generator, options)
    options, path = options or TranslateOptions(), Path(output)
    if options.resume:
        return _resume(slide, generator, path, options, progress)
    if (done := count_done(path)) is not None:
        _log.warning("%d finished bands of an earlier run are not used without --resume, and are removed when this run "
                     "is complete (%s)", done, checkpoint_path(path))  # fmt: skip
    if is_zarr(path):
        report = _translate_bands(slide, generator, path, options, progress)
        if report is None:
            raise OutputError(f"{path}: its partial result was removed by another run: run again")
    else:
        check_outputs(slide, path, options)
        report = translate_job(prepare(slide, generator, options, progress=progress), path, progress=progress)
    discard_checkpoint(path)
    return report


def _check_arguments(slide: object, generator: object, options: object) -> None:
    """Raise `TypeError` for common mistakes in the arguments of `translate`."""
    if isinstance(slide, str | os.PathLike):
        raise TypeError(f"translate() takes an open slide, not a path: wsi2ihc.open_slide({os.fspath(slide)!r})")
    if not isinstance(generator, Model):
        given = repr(generator) if isinstance(generator, str) else f"a {type(generator).__name__}"
        raise TypeError(f"translate() takes a generator, not {given}: wsi2ihc.load_model(NAME_OR_FILE) gives one")
    if options is not None and not isinstance(options, TranslateOptions):
        raise TypeError(f"translate() takes options as wsi2ihc.TranslateOptions, not as a {type(options).__name__}")


def translate_job(job: TranslationJob, path: Path, *, progress: ProgressCallback = silent) -> TranslateReport:
    """Run a prepared translation in one pass into an OME-TIFF."""
    started = time.perf_counter()
    clock = DeviceClock()
    meter = SeamMeter(job.plan) if job.can_have_seams else None
    with (
        extras_removed_on_error(job, path),
        published(path, overwrite=job.options.overwrite) as partial,
        ThreadPoolExecutor(job.workers, thread_name_prefix="pixels") as executor,
    ):
        tiles = finished_tiles(job, executor, clock, meter, progress)
        occupied = job.plan.occupied_tiles(job.options.pyramid.tile_px)
        written = write_image(job, partial, tiles, occupied, executor, path.name)
        progress(Progress(CHECKING))
        validate(partial, written.levels, openslide_compatible=job.options.pyramid.openslide_compatible)
        work = WorkSummary(
            plan=plan_metadata([job.plan], [job.plan]),
            seams=meter.metrics() if meter else None,
            model_s=clock.busy_s,
            run_s=time.perf_counter() - started,
            unreadable=len(job.prepared.unreadable_areas),
        )
        report = make_report(job, path.name, written, work)
        sync_file(partial)  # may take long; afterwards the report and the image appear together
        problem = write_extras_first(job, path, report, partial, progress)
    if problem is not None:
        raise problem
    return report


def _resume(
    slide: Slide, generator: Model, path: Path, options: TranslateOptions, progress: ProgressCallback
) -> TranslateReport:
    """Finish the output from its checkpoint folder, or return the report of a matching output that is complete."""
    fingerprint, preview = translation_fingerprint(slide, generator, options), options.preview
    try:
        report = _translate_bands(slide, generator, path, options, progress, fingerprint)
    except OutputExistsError:
        report = _finished_report(path, options, fingerprint)
        if report is None:
            raise OutputExistsError(
                f"output {path} already exists and is not the result of this run: it was changed, or comes from "
                "another slide, model or option; choose another name, or allow it with --overwrite"
            ) from None
        _log.info("%s is already complete", path)
    report = report or _finished_report(path, options, fingerprint)
    if report is None:
        raise OutputError(f"{checkpoint_path(path)} was removed by another run: run again")
    if preview is not None and not preview.exists():  # another run wrote the output
        check_output(preview, overwrite=False, suffixes=(".png",))
        job = prepare(slide, generator, options, fingerprint=fingerprint, progress=progress)
        draw_preview(job, preview, path, progress)
    discard_checkpoint(path)
    return report


def _translate_bands(
    slide: Slide,
    generator: Model,
    path: Path,
    options: TranslateOptions,
    progress: ProgressCallback,
    fingerprint: TranslationFingerprint | None = None,
) -> TranslateReport | None:
    """Translate by way of a checkpoint folder; None if another process published the output."""
    with open_checkpoint(slide, generator, path, options, fingerprint=fingerprint, progress=progress) as checkpoint:
        try:
            return complete(checkpoint, progress=progress)
        except BaseException as error:
            if options.resume and (done := count_done(path)):
                error.add_note(f"{done} finished bands are kept: run the same command again to resume.")
            raise


def _finished_report(
    output: Path, options: TranslateOptions, fingerprint: TranslationFingerprint
) -> TranslateReport | None:
    """Read the report of an output if its fingerprint, storage options and SHA-256 match; else None.

    The SHA-256 is computed over the complete output, so that a modified one does not count as finished.
    """
    try:
        report = TranslateReport.from_json(read_json(report_path(output)))
        output_bytes = tree_bytes(output) if output.is_dir() else output.stat().st_size
        matches = (
            report.fingerprint == hash_fingerprint(fingerprint)
            and report.output_bytes == output_bytes
            and is_stored_as(report.options["pyramid"], output, options.pyramid)
            and report.output_sha256 == sha256_of(output)
        )
        return report if matches else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
