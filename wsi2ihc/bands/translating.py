"""`translate`: in one pass, or by way of bands, as the options and the output's name ask for."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from ..errors import OutputError, OutputExistsError
from ..files import read_json, sha256_of
from ..generator.model import Generator
from ..progress import ProgressCallback, silent
from ..pyramid import check_output, is_zarr
from ..pyramid.folders import tree_bytes
from ..slide import Slide
from ..translation import pipeline
from ..translation.finishing import draw_preview, report_path
from ..translation.identity import Identity, fingerprint, identity
from ..translation.options import TranslateOptions
from ..translation.report import TranslateReport, is_stored_as
from .places import count_done, discard_store, store_path

_log = logging.getLogger(__name__)


def translate(
    slide: Slide,
    generator: Generator,
    output: str | os.PathLike[str],
    options: TranslateOptions | None = None,
    *,
    progress: ProgressCallback = silent,
) -> TranslateReport:
    """Translate ``slide`` with ``generator`` into the virtual slide ``output``, and a JSON report beside it.

    An OME-TIFF is made in one pass. With ``options.resume`` it is made by way of a store beside it, in which a later
    run goes on, and other processes take part. An OME-Zarr always grows in such a store. The output appears under its
    name only when it is complete and has been read back.

    Parameters
    ----------
    slide
        An open slide (`wsi2ihc.open_slide`).
    generator
        A generator (`wsi2ihc.load_generator`).
    output
        Path that ends in ``.ome.tiff``, ``.ome.tif`` or ``.ome.zarr``, in a folder that exists.
    options
        All other choices; the defaults suit most slides.
    progress
        Called from this thread, often.

    Returns
    -------
    TranslateReport
        With ``options.resume``, that of the process that made the output; also if it was made before, as it is asked
        for now.

    Raises
    ------
    Wsi2IhcError
        One of its leaves, with one line that says what is wrong, where, and what to do.
    TypeError
        If an argument is of another kind, such as a path in place of an open slide.
    """
    pipeline.check_arguments(slide, generator, options)
    options, path = options or TranslateOptions(), Path(output)
    if options.resume:
        return _resume(slide, generator, path, options, progress)
    if (done := count_done(path)) is not None:
        _log.warning("%d finished bands of an earlier run are not used without --resume, and are removed when this run "
                     "is complete (%s)", done, store_path(path))  # fmt: skip
    if is_zarr(path):
        made = _by_bands(slide, generator, path, options, progress)
        if made is None:
            raise OutputError(f"{path}: what was made of it was removed by another run: run again")
        report = made
    else:
        report = pipeline.translate(slide, generator, path, options, progress=progress)
    discard_store(path)
    return report


def finished_report(output: Path, options: TranslateOptions, known_identity: Identity) -> TranslateReport | None:
    """The report of an output that is there and is what is asked for: of this identity, and stored so. Else None.

    The output is read as a whole for its SHA-256: what was overwritten since it was written is not finished.
    """
    try:
        report = TranslateReport.from_json(read_json(report_path(output)))
        output_bytes = tree_bytes(output) if output.is_dir() else output.stat().st_size
        is_same = report.fingerprint == fingerprint(known_identity) and report.output_bytes == output_bytes
        is_same = is_same and is_stored_as(report.options["pyramid"], output, options.pyramid)
        return report if is_same and report.output_sha256 == sha256_of(output) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _resume(
    slide: Slide, generator: Generator, path: Path, options: TranslateOptions, progress: ProgressCallback
) -> TranslateReport:
    known_identity, preview = identity(slide, generator, options), options.preview
    try:
        report = _by_bands(slide, generator, path, options, progress, known_identity)
    except OutputExistsError:
        report = finished_report(path, options, known_identity)
        if report is None:
            raise OutputExistsError(
                f"output {path} is already there, and is not what this run would have written: it was changed, "
                "or comes from another slide, model or option; choose another name, or allow it with --overwrite"
            ) from None
        _log.info("%s is complete already", path)
    report = report or finished_report(path, options, known_identity)
    if report is None:
        raise OutputError(f"{store_path(path)} was removed by another run: run again")
    if preview is not None and not preview.exists():  # another run has made the output
        check_output(preview, overwrite=False, suffixes=(".png",))
        job = pipeline.prepare(slide, generator, options, known_identity=known_identity, progress=progress)
        draw_preview(job, preview, path, progress)
    discard_store(path)
    return report


def _by_bands(
    slide: Slide,
    generator: Generator,
    path: Path,
    options: TranslateOptions,
    progress: ProgressCallback,
    known_identity: Identity | None = None,
) -> TranslateReport | None:
    from .opening import open_store
    from .running import complete

    with open_store(slide, generator, path, options, known_identity=known_identity, progress=progress) as store:
        try:
            return complete(store, progress=progress)
        except BaseException as error:
            if options.resume and (done := count_done(path)):
                error.add_note(f"Bands that are done are kept ({done}): the same command goes on with them.")
            raise
