"""Build a pair dataset.

`build_pairs` reads the manifest, splits the patients, and finds the slide pairs without a complete extraction. Each of
these is processed in a worker process (`process_slide_pair`: check, align, extract, record), which sends its progress.
At last the index of all complete slides is published (`dataset_writer.publish`). `preview_pairs` does the same without
pixels.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2

from wsi2ihc.concurrency import Finished, Progress, ProgressCallback, Send, Work, ordered_map, run_in_processes, silent
from wsi2ihc.errors import DatasetError, OutputError, RegistrationError
from wsi2ihc.registration.figures import PatchMark, figure_mpp, kept_and_rejected, thumbnail
from wsi2ihc.registration.landmarks import MatchedLandmarks
from wsi2ihc.registration.report import BEFORE_NAME, write_figure, write_registration
from wsi2ihc.registration.transform import Transform, frame_of
from wsi2ihc.slide import Slide, agreeing_levels, level_problems
from wsi2ihc.system import cores, versions
from wsi2ihc.text import describe_error, patches

from .dataset_writer import DatasetFolder, open_dataset_folder, publish, slide_lock
from .extract import (
    Alignment,
    ExtractedPatch,
    ExtractionPlan,
    align,
    extract_patches,
    given_alignment,
    given_transform,
    landmarks_of,
    plan_extraction,
    seen_as,
)
from .options import PairsOptions
from .pair_checks import (
    ProgressMessage,
    SlideJob,
    WarningMessage,
    check_different_slides,
    check_slide_pair,
    open_slide_pair,
    preflight_pair,
)
from .pair_manifest import Folders, Manifest, RowProblem, SlidePair, find_duplicate_files, read_manifest
from .patient_split import Splits, assign_splits, split_warnings
from .report import (
    BuildReport,
    FailedPair,
    Preview,
    Slides,
    SlideTally,
    dataset_warnings,
    manifest_warnings,
    rejection_counts,
    removed_slides,
    unavailable,
)
from .slide_record import (
    OVERVIEW_NAME,
    SPLIT_NAMES,
    EncodedPatch,
    SlideRecord,
    SlideWriter,
    encode_patch,
    fingerprint_of,
    read_record,
    row_hash,
)

_PAUSE_S = 0.2
"""Minimum time between two progress messages."""


def process_slide_pair(job: SlideJob, threads: int, send: Send) -> None:
    """Align a pair, extract its patches, and write patches, figures and finally the record.

    Memory: that of registration, or of `extract_patches` and as many encoded patches.

    Raises
    ------
    RegistrationError
        If the slides could not be registered, or have no common landmarks.
    OptionError
        If no patch can be extracted.
    Wsi2IhcError
        If opening, reading or writing fails.
    """
    say = _ProgressThrottle(send)
    pair, options = job.pair, job.options
    cv2.setNumThreads(threads)
    with open_slide_pair(pair) as (he, ihc), slide_lock(job.folder.parent):
        notes = list(check_slide_pair(pair, he, ihc, options))
        transform = given_transform(pair, he, ihc)
        check_different_slides(he, ihc)
        landmarks = landmarks_of(pair, he, ihc)
        notes += [f"{slide.info.name}: {problem}" for slide in (he, ihc) for problem in level_problems(slide)]
        he, ihc = agreeing_levels(he), agreeing_levels(ihc)
        writer = SlideWriter(job.folder, side_by_side=options.side_by_side)
        seen = seen_as(he, options), seen_as(ihc, options)
        alignment = _align(job, *seen, transform, landmarks, threads, say)
        write_registration(writer.registration, *seen, alignment.transform, alignment.metadata)
        if alignment.transform is None:
            before = "/".join((*writer.registration.parts[-4:], BEFORE_NAME))
            raise RegistrationError(
                f"{ihc.info.name} could not be registered to {he.info.name}: {alignment.reason.rstrip('.')}; see "
                f"{before}"
            )
        is_verified = transform is None
        plan = plan_extraction(he, ihc, alignment.transform, options, verified=is_verified, tissue=pair.tissue)
        cv2.setNumThreads(1)  # the following steps use a thread per core themselves
        marks, unreadable = _write_patches(writer, plan, options.side_by_side, threads, say)
        say("drawing", 1.0)
        mpp = figure_mpp((frame_of(he.info),))
        write_figure(writer.registration / OVERVIEW_NAME, kept_and_rejected(thumbnail(seen[0], mpp), mpp, marks))
        notes += plan.notes
        if unreadable:
            notes.append(f"{patches(unreadable)} in unreadable areas of a slide rejected (as outside)")
        notes += alignment.metadata["warnings"]
        metadata = _metadata(he, ihc, alignment, landmarks, notes)
        row = row_hash(pair, options.reading)
        writer.complete(job.fingerprint, plan.mpp[0], options.limits, metadata, row=row, verified=is_verified)


def _align(
    job: SlideJob, he: Slide, ihc: Slide, transform: Transform | None, landmarks: MatchedLandmarks | None, threads: int,
    say: _ProgressThrottle,
) -> Alignment:  # fmt: skip
    if transform is not None:
        return given_alignment(job.pair, transform, landmarks)

    def registering(progress: Progress) -> None:
        say(f"registering, {progress.note}" if progress.note else "registering", progress.done / progress.total)

    return align(he, ihc, job.options.registration, landmarks, threads, registering)


def _write_patches(
    writer: SlideWriter, plan: ExtractionPlan, side_by_side: bool, threads: int, say: _ProgressThrottle
) -> tuple[list[PatchMark], int]:
    """Extract, encode and write patches in raster order; return their positions and the number of unreadable ones."""

    def encoded(patch: ExtractedPatch) -> tuple[ExtractedPatch, EncodedPatch | None]:
        if patch.rejected:
            return patch, None
        return patch, encode_patch(patch.he, patch.ihc, side_by_side=side_by_side)

    marks: list[PatchMark] = []
    unreadable = 0
    say("extracting", 0.0)
    with (
        ThreadPoolExecutor(threads, "encode") as pool,
        contextlib.closing(extract_patches(plan, workers=threads)) as patches,
        contextlib.closing(ordered_map(pool, encoded, patches, threads + 1)) as done,
    ):
        for patch, files in done:
            at_px, at_um = (patch.region.x, patch.region.y), (patch.x_um, patch.y_um)
            writer.add(at_px, at_um, dataclasses.asdict(patch.metrics), rejected=patch.rejected, encoded=files)
            marks.append(PatchMark(*at_um, patch.region.width * plan.mpp[0], patch.rejected))
            unreadable += patch.unreadable
            say.kept += files is not None
            say("extracting", len(marks) / len(plan.regions))
    return marks, unreadable


def _metadata(
    he: Slide, ihc: Slide, alignment: Alignment, landmarks: MatchedLandmarks | None, notes: Sequence[str]
) -> Mapping[str, Any]:
    """Return the metadata for the record: names and metrics, without paths and times."""
    metadata: dict[str, Any] = {
        stain: {"name": slide.info.name, "quickhash": slide.info.quickhash, "mpp": slide.info.mpp}
        for stain, slide in (("he", he), ("ihc", ihc))
    }
    metadata["alignment"] = alignment.summary
    metadata["versions"] = versions()
    metadata["notes"] = list(notes)
    if landmarks is not None and alignment.metadata.get("landmarks"):
        metadata["landmarks"] = alignment.metadata["landmarks"]
    return metadata


class _ProgressThrottle:
    """Send progress to the parent process at a limited rate."""

    def __init__(self, tell: Callable[[object], None]) -> None:
        self.kept = 0
        self._send, self._stage, self._sent_at = tell, "", 0.0

    def __call__(self, stage: str, fraction: float) -> None:
        now = time.monotonic()
        if stage != self._stage or now - self._sent_at >= _PAUSE_S or fraction >= 1:
            self._stage, self._sent_at = stage, now
            self._send(ProgressMessage(stage, fraction, self.kept))


MOST_AT_ONCE = 8
"""Default limit of parallel workers: each needs up to 700 MB; slides stored as plain images also need 3 bytes per px,
and 7 while they are opened."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Outcome:
    """Outcome of a job: failure ("" on success) and warnings, one sentence each."""

    failure: str = ""
    notes: tuple[str, ...] = ()


def run_jobs(
    work: Work, jobs: Sequence[SlideJob], workers: int, progress: ProgressCallback, stage: str
) -> dict[str, Outcome]:
    """Run all jobs in ``workers`` processes (0: number of cores, up to `MOST_AT_ONCE`).

    Progress is reported under the name ``stage``. Returns the outcomes by slide.

    Raises
    ------
    OutputError
        If the dataset cannot be written. The other jobs are then stopped.
    """
    ended: dict[str, Outcome] = {}
    notes: dict[str, list[str]] = defaultdict(list)
    board = _JobProgress([job.pair.slide for job in jobs], progress, stage)
    at_once = min(workers or min(cores(), MOST_AT_ONCE), max(1, len(jobs)))
    messages = run_in_processes(work, jobs, board.slides, at_once)
    with contextlib.closing(messages):
        for number, message in messages:
            slide = board.slides[number]
            if isinstance(message, ProgressMessage):
                board.update(slide, message)
            elif isinstance(message, WarningMessage):
                notes[slide].append(message.text)
            elif isinstance(message, Finished):
                if message.fatal:
                    raise OutputError(message.failure)
                if message.failure:
                    _log.info("%s failed: %s", slide, message.failure)
                ended[slide] = Outcome(message.failure, tuple(notes[slide]))
                board.finish(slide, bool(message.failure))
    return ended


class _JobProgress:
    """Progress of all workers as one line."""

    def __init__(self, slides: Sequence[str], progress: ProgressCallback, stage: str) -> None:
        self.slides = slides
        self._progress, self._stage = progress, stage
        self._running: dict[str, ProgressMessage] = {}
        self._kept: dict[str, int] = {}
        self._done = self._failed = 0

    def update(self, slide: str, message: ProgressMessage) -> None:
        self._running[slide] = message
        self._kept[slide] = message.kept
        self._show()

    def finish(self, slide: str, has_failed: bool) -> None:
        self._running.pop(slide, None)
        self._done += 1
        if has_failed:
            self._failed += 1
            self._kept.pop(slide, None)
        self._show()

    def _show(self) -> None:
        kept = f"{patches(sum(self._kept.values()))} kept" if self._kept else ""
        if len(self.slides) == 1:  # show the progress within the pair
            for slide, message in self._running.items():
                stage, percent = f"{slide}: {message.stage.split(',')[0]}", round(100 * message.fraction)
                self._progress(Progress(stage, percent, 100, unit="step", note=kept if message.kept else ""))
            return
        running = [f"{slide} {message.stage} {message.fraction:.0%}" for slide, message in self._running.items()]
        failed = f"{self._failed} failed" if self._failed else ""
        note = "; ".join(filter(None, (kept, failed, ", ".join(running[:4]), "…" if len(running) > 4 else "")))
        self._progress(Progress(self._stage, self._done, len(self.slides), unit="pair", note=note))


def build_pairs(
    manifest: Path, folder: Path, options: PairsOptions | None = None, progress: ProgressCallback = silent
) -> BuildReport:
    """Build a paired dataset from the slides in a manifest, or resume an earlier build.

    Completed pairs are kept. Each of the others is registered and extracted in its own process; a failed pair is
    reported and does not affect the others. After an interruption, the same call resumes and yields the same files.

    Parameters
    ----------
    folder
        New or empty folder, or a dataset with the same options.
    progress
        Called with the number of completed pairs.

    Returns
    -------
    BuildReport
        Report, including failed rows; all rows may have failed.

    Raises
    ------
    DatasetError
        If the manifest cannot be read, or no patch was kept although no pair failed.
    OptionError
        If an option is invalid.
    OutputExistsError
        If the folder contains something else.
    OutputError
        If it cannot be written, or another run is writing it.
    """
    options = options or PairsOptions()
    started = time.perf_counter()
    table = _read(manifest)
    splits = assign_splits(table.members, options.shares, options.seed)
    with open_dataset_folder(folder, options.of_patches) as dataset:
        found = _find_work(dataset, table, options)
        ended = run_jobs(process_slide_pair, found.jobs, options.workers, progress, "extracting patches")
        for job in found.jobs:
            if ended[job.pair.slide].failure:
                dataset.discard(job.pair.slide, failed=job.folder)
        failed = _failures(table, found, ended)
        slides = _completed_pairs(table, found, failed)
        metadata: Mapping[str, Any] = {}
        is_changed = False
        if slides:
            progress(Progress("writing the tables"))
            metadata, is_changed = publish(dataset, slides, splits, _dataset_metadata(folder, table, options, failed))
        report = BuildReport(
            dataset=folder.resolve().name,
            manifest=table.path.name,
            slides=tuple(_tally(pair, record, splits, found) for pair, record in slides),
            failed=failed,
            counts=metadata.get("counts", {}),
            rejected=metadata.get("rejected", {}),
            warnings=tuple(_warnings(dataset, table, splits, slides, options, found, failed)),
            unchanged=not found.jobs and not is_changed,
            seconds=time.perf_counter() - started,
        )
    if slides and not report.kept and not failed:
        reasons = rejection_counts(record for _, record in slides)
        raise DatasetError(
            f"no patch was kept ({reasons}); see {folder / 'rejected.csv'}, and relax the limits that are too strict"
        )
    return report


def preview_pairs(
    manifest: Path, folder: Path, options: PairsOptions | None = None, progress: ProgressCallback = silent
) -> Preview:
    """Preview `build_pairs`: splits, unusable rows and slides that cannot be opened.

    Nothing is registered or written, and no pixels are read.

    Raises
    ------
    DatasetError
        If the manifest cannot be read.
    OptionError
        If an option is invalid.
    """
    options = options or PairsOptions()
    table = _read(manifest)
    splits = assign_splits(table.members, options.shares, options.seed)
    found = _find_work(DatasetFolder(folder), table, options)
    ended = run_jobs(preflight_pair, found.jobs, options.workers, progress, "checking slides")
    failed = _failures(table, found, ended)
    bad = {failure.slide for failure in failed}
    good = [pair for pair in _pairs(table, found) if pair.slide not in bad]
    tallies = tuple(_tally(pair, found.complete.get(pair.slide), splits, found) for pair in good)
    notes = [f"{slide}: {note}" for slide, outcome in ended.items() if slide not in bad for note in outcome.notes]
    notes += [*split_warnings(splits, good, options.shares), *unavailable(found.unavailable), *manifest_warnings(table)]
    return Preview(tallies, failed, tuple(notes))


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class _Work:
    """Work of a build: records of completed pairs by slide id (``unavailable``: without their files), jobs of the pairs
    to extract, and pairs whose files cannot be accessed.
    """

    complete: Mapping[str, SlideRecord]
    unavailable: Sequence[str]
    jobs: Sequence[SlideJob]
    failed: Sequence[FailedPair]


def _read(manifest: Path) -> Manifest:
    """Read the manifest and reject rows that share a file."""
    table = read_manifest(manifest)
    same = tuple(find_duplicate_files(table.rows))
    bad = {problem.row for problem in same}
    problems = sorted((*table.problems, *same), key=lambda problem: problem.row)
    rows = tuple(pair for pair in table.rows if pair.row not in bad)
    return dataclasses.replace(table, rows=rows, problems=tuple(problems))


def _find_work(dataset: DatasetFolder, table: Manifest, options: PairsOptions) -> _Work:
    """Find completed pairs and the jobs of the others.

    Patches of a row with unavailable files are kept if they were extracted from an equal row, so that a temporarily
    missing disk does not change the dataset.
    """
    complete: dict[str, SlideRecord] = {}
    jobs: list[SlideJob] = []
    failed: list[FailedPair] = []
    unreached_slides: list[str] = []
    for pair in table.unreachable:
        if record := dataset.find(pair.slide, row_hash(pair, options.reading), options.limits):
            complete[pair.slide] = record
            unreached_slides.append(pair.slide)
    for pair in table.rows:
        try:
            fingerprint = fingerprint_of(pair, options.reading)
        except Exception as error:  # any error fails this row only
            failed.append(FailedPair(pair.row, pair.slide, describe_error(error)))
            continue
        if record := dataset.find(pair.slide, fingerprint, options.limits):
            complete[pair.slide] = record
        else:
            extraction = dataset.new_extraction(pair.slide, fingerprint, options.limits)
            jobs.append(SlideJob(pair, fingerprint, extraction, options))
    return _Work(complete, unreached_slides, jobs, failed)


def _pairs(table: Manifest, found: _Work) -> list[SlidePair]:
    """Return the usable pairs in the order of the manifest."""
    kept = [pair for pair in table.unreachable if pair.slide in found.unavailable]
    return sorted((*table.rows, *kept), key=lambda pair: pair.row)


def _failures(table: Manifest, found: _Work, ended: Mapping[str, Outcome]) -> tuple[FailedPair, ...]:
    """Return all failed rows in the order of the manifest."""
    kept = {pair.row for pair in table.unreachable if pair.slide in found.unavailable}
    problems: dict[int, list[RowProblem]] = defaultdict(list)
    for problem in table.problems:
        if problem.row not in kept:
            problems[problem.row].append(problem)
    failed = [
        FailedPair(row, own[0].slide, "; ".join(problem.message for problem in own)) for row, own in problems.items()
    ]
    failed += found.failed
    failed += [
        FailedPair(job.pair.row, job.pair.slide, failure)
        for job in found.jobs
        if (failure := ended[job.pair.slide].failure)
    ]
    return tuple(sorted(failed, key=lambda failure: failure.row))


def _completed_pairs(table: Manifest, found: _Work, failed: Iterable[FailedPair]) -> Slides:
    """Return the completed pairs with their records in the order of the manifest."""
    new = {job.pair.slide: job.folder for job in found.jobs}
    bad = {failure.slide for failure in failed}
    records = (
        (pair, found.complete.get(pair.slide) or read_record(new[pair.slide]))
        for pair in _pairs(table, found)
        if pair.slide not in bad
    )
    return [(pair, record) for pair, record in records if record is not None]


def _dataset_metadata(
    folder: Path, table: Manifest, options: PairsOptions, failed: Iterable[FailedPair]
) -> dict[str, Any]:  # fmt: skip
    """Return the content of ``dataset.json`` except counts, without times, folders and number of workers."""
    folders = Folders.of(table)
    return {
        "mpp": options.mpp,
        "stain": options.stain,
        "license": options.license,
        "name": options.name or folder.resolve().name,
        "patch_px": options.patch_size,
        "failed": [
            {"slide": failure.slide, "reason": folders.removed(f"row {failure.row}: {failure.message}")}
            for failure in failed
        ],
        "manifest": {"name": table.path.name, "sha256": table.sha256},
        "seed": options.seed,
        "shares": {name: round(share, 9) for name, share in zip(SPLIT_NAMES.values(), options.shares, strict=True)},
        "options": options.stated,
        "versions": versions(),
    }


def _warnings(
    dataset: DatasetFolder, table: Manifest, splits: Splits, slides: Slides, options: PairsOptions, found: _Work,
    failed: Iterable[FailedPair],
) -> Iterator[str]:  # fmt: skip
    """Yield all warnings about the dataset."""
    before = dataset.counts
    if not slides:
        if before:
            yield f"no row of the manifest can be used: the dataset is unchanged, with {patches(before.total())}"
        return
    yield from removed_slides(before, {pair.slide for pair, _ in slides}, {failure.slide for failure in failed})
    yield from unavailable(found.unavailable)
    yield from dataset_warnings(dataset.folder, splits, slides, options)
    yield from manifest_warnings(table)


def _tally(pair: SlidePair, record: SlideRecord | None, splits: Splits, found: _Work) -> SlideTally:
    count = len(record.patches) if record else 0
    kept = len(record.kept) if record else 0
    is_new = pair.slide not in found.complete
    return SlideTally(pair.slide, pair.patient, splits[pair.slide], pair.her2, kept, count - kept, is_new)
