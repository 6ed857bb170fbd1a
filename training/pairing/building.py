"""From a manifest to a data set: which pairs have to be cut, a child for each, and the data set of all that are."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from wsi2ihc.errors import DatasetError
from wsi2ihc.locks import LOCK
from wsi2ihc.progress import Progress, ProgressCallback, silent
from wsi2ihc.runtime import versions
from wsi2ihc.text import describe_error

from ..data.table import STATEMENT_NAME
from .anonymous import Folders
from .doubts import Slides, dataset_doubts, gone, left_out, manifest_doubts, unreached
from .fingerprints import fingerprint_of, row_print_of
from .jobs import SlideJob
from .looking import look_at_pair
from .manifest import Manifest, RowProblem, SlidePair, read_manifest
from .numbering import place_patches
from .one_slide import make_pair_patches
from .options import PairsOptions
from .places import SPLIT_NAMES, attempt_folder, staging_folder
from .records import SlideRecord, read_record
from .running import Outcome, run_jobs
from .same_files import same_slides
from .splitting import Splits, assign_splits, split_warnings
from .store import PairsStore, open_store
from .summary import BuildReport, FailedPair, Preview, SlideTally
from .table import Statement
from .words import patches


def build_pairs(
    manifest: Path, folder: Path, options: PairsOptions | None = None, progress: ProgressCallback = silent
) -> BuildReport:
    """Make a paired data set of the slides in a manifest, or go on with it.

    Pairs that are complete are left as they are. Each of the others is registered and cut in a process of its own; one
    that fails is reported, and the others go on. However this is interrupted, to call it again goes on from there, and
    ends with the same files.

    Parameters
    ----------
    manifest
        See `read_manifest`.
    folder
        Not there, empty, or a data set that was begun with the same options.
    options
        Of patches, splits and registration.
    progress
        Told of pairs that are done.

    Returns
    -------
    BuildReport
        With the rows that failed; there may be nothing else.

    Raises
    ------
    DatasetError
        If the manifest cannot be read, or no pair failed and yet no patch was kept.
    OptionError
        If an option is impossible.
    OutputExistsError
        If the folder holds something else.
    OutputError
        If it cannot be written, or another run is writing it.

    Notes
    -----
    Children are spawned: a program that calls this needs ``if __name__ == "__main__":``.
    """
    options = options or PairsOptions()
    started = time.perf_counter()
    table = _read(manifest)
    splits = assign_splits(table.members, options.shares, options.seed)
    with open_store(folder, options.of_patches) as store:
        before, was = _time_of(folder / STATEMENT_NAME), store.placed_patches
        found = _find_work(store, table, options)
        for slide in found.complete:
            store.settle(slide)
        ended = run_jobs(make_pair_patches, found.jobs, options.workers, progress, "cutting pairs of slides")
        failed = _failures(table, found, ended)
        for failure in failed:
            _clear(store, failure.slide)
        slides = _in_it(store, table, found, failed)
        facts: Mapping[str, Mapping[str, object]] = {}
        if slides:
            progress(Progress("writing the tables"))
            facts = place_patches(store, slides, splits.roles, _statement(folder, table, options, failed))
        is_unchanged = not found.jobs and _time_of(folder / STATEMENT_NAME) == before
        report = BuildReport(
            dataset=folder.resolve().name,
            manifest=table.path.name,
            slides=tuple(_tally(pair, record, splits, found) for pair, record in slides),
            failed=failed,
            counts=facts.get("counts", {}),
            rejected=facts.get("rejected", {}),
            warnings=tuple(_warnings(store, table, splits, slides, options, found, failed, was)),
        )
    if slides and not report.kept and not failed:
        reasons = left_out(record for _, record in slides)
        raise DatasetError(
            f"no patch was kept ({reasons}); look at {folder / 'rejected.csv'}, and relax what is too strict"
        )
    return dataclasses.replace(report, unchanged=is_unchanged, seconds=time.perf_counter() - started)


def preview_pairs(
    manifest: Path, folder: Path, options: PairsOptions | None = None, progress: ProgressCallback = silent
) -> Preview:
    """What `build_pairs` would begin with: splits, rows that cannot be used, slides that cannot be opened.

    No pixels are read, nothing is registered, nothing is written.

    Raises
    ------
    DatasetError
        If the manifest cannot be read.
    OptionError
        If an option is impossible.
    """
    options = options or PairsOptions()
    table = _read(manifest)
    splits = assign_splits(table.members, options.shares, options.seed)
    found = _find_work(PairsStore(folder, options.of_patches), table, options)
    ended = run_jobs(look_at_pair, found.jobs, options.workers, progress, "looking at pairs of slides")
    failed = _failures(table, found, ended)
    bad = {failure.slide for failure in failed}
    good = [pair for pair in _pairs(table, found) if pair.slide not in bad]
    tallies = tuple(_tally(pair, found.complete.get(pair.slide), splits, found) for pair in good)
    notes = [f"{slide}: {note}" for slide, outcome in ended.items() if slide not in bad for note in outcome.notes]
    doubts = (*split_warnings(splits, good, options.shares), *unreached(found.unreached), *manifest_doubts(table))
    return Preview(tallies, failed, (*notes, *doubts))


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class _Found:
    """What there is to do.

    complete:  the records of pairs that need not be cut, by the slide's id
    unreached: those among them whose files are not there now
    jobs:      of the pairs that have to be cut
    failed:    pairs that cannot even be looked at
    """

    complete: Mapping[str, SlideRecord]
    unreached: Sequence[str]
    jobs: Sequence[SlideJob]
    failed: Sequence[FailedPair]


def _read(manifest: Path) -> Manifest:
    """The manifest, less rows that share a file."""
    table = read_manifest(manifest)
    same = tuple(same_slides(table.rows))
    bad = {problem.row for problem in same}
    problems = sorted((*table.problems, *same), key=lambda problem: problem.row)
    rows = tuple(pair for pair in table.rows if pair.row not in bad)
    return dataclasses.replace(table, rows=rows, problems=tuple(problems))


def _find_work(store: PairsStore, table: Manifest, options: PairsOptions) -> _Found:
    """What is complete, and what has to be done.

    Patches of a row whose files are not there now stay in the data set, if they were cut from a row that said the same:
    a disk that is missing for a day takes nothing from it, and leaves nobody with half of it.
    """
    complete: dict[str, SlideRecord] = {}
    jobs: list[SlideJob] = []
    failed: list[FailedPair] = []
    unreached_slides: list[str] = []
    for pair in table.unreachable:
        if record := store.kept_from(pair.slide, row_print_of(pair, options.reading)):
            complete[pair.slide] = record
            unreached_slides.append(pair.slide)
    for pair in table.rows:
        try:
            fingerprint = fingerprint_of(pair, options.reading)
        except Exception as error:  # whatever it is, it belongs to this row
            failed.append(FailedPair(pair.row, pair.slide, describe_error(error)))
            continue
        if record := store.completed(pair.slide, fingerprint):
            complete[pair.slide] = record
        else:
            jobs.append(SlideJob(pair, fingerprint, store.folder, options))
    return _Found(complete, unreached_slides, jobs, failed)


def _pairs(table: Manifest, found: _Found) -> list[SlidePair]:
    """The pairs that may be in the data set, in the manifest's order."""
    kept = [pair for pair in table.unreachable if pair.slide in found.unreached]
    return sorted((*table.rows, *kept), key=lambda pair: pair.row)


def _failures(table: Manifest, found: _Found, ended: Mapping[str, Outcome]) -> tuple[FailedPair, ...]:
    """All rows that gave nothing, in the manifest's order."""
    kept = {pair.row for pair in table.unreachable if pair.slide in found.unreached}
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


def _clear(store: PairsStore, slide: str) -> None:
    """Remove the patches that a child has written which then failed. Its pictures stay: they may show why."""
    folder, attempt = store.slide_folder(slide), attempt_folder(store.folder, slide)
    if not slide or not folder.is_dir():
        return
    (folder / LOCK).unlink(missing_ok=True)
    shutil.rmtree(attempt / staging_folder(store.folder, slide).name, ignore_errors=True)
    for empty in (attempt, folder):
        with contextlib.suppress(OSError):
            empty.rmdir()


def _in_it(store: PairsStore, table: Manifest, found: _Found, failed: Iterable[FailedPair]) -> Slides:
    """The pairs that are complete by now, with their records, in the manifest's order."""
    bad = {failure.slide for failure in failed}
    records = (
        (pair, found.complete.get(pair.slide) or read_record(store.slide_folder(pair.slide)))
        for pair in _pairs(table, found)
        if pair.slide not in bad
    )
    return [(pair, record) for pair, record in records if record is not None]


def _statement(folder: Path, table: Manifest, options: PairsOptions, failed: Iterable[FailedPair]) -> Statement:
    """For ``dataset.json``: no times, no folders, and nothing that says how many cores there were."""
    folders = Folders.of(table)
    return Statement(
        mpp=options.mpp,
        patch_px=options.patch_size,
        stain=options.stain,
        licence=options.licence,
        name=options.name or folder.resolve().name,
        failed=tuple((failure.slide, folders.removed(f"row {failure.row}: {failure.message}")) for failure in failed),
        extra={
            "manifest": {"name": table.path.name, "sha256": table.sha256},
            "seed": options.seed,
            "shares": {name: round(share, 9) for name, share in zip(SPLIT_NAMES.values(), options.shares, strict=True)},
            "options": options.stated,
            "versions": versions(),
        },
    )


def _warnings(
    store: PairsStore, table: Manifest, splits: Splits, slides: Slides, options: PairsOptions, found: _Found,
    failed: Iterable[FailedPair], was: Counter[str],
) -> Iterator[str]:  # fmt: skip
    """Everything that people should know."""
    if not slides:
        if was:
            yield f"no row of the manifest can be used: the data set stays as it was, with {patches(was.total())}"
        return
    yield from gone(was, {pair.slide for pair, _ in slides}, {failure.slide for failure in failed})
    yield from unreached(found.unreached)
    yield from dataset_doubts(store, splits, slides, options)
    yield from manifest_doubts(table)


def _tally(pair: SlidePair, record: SlideRecord | None, splits: Splits, found: _Found) -> SlideTally:
    cut = record.patches if record else ()
    kept = sum(not patch.rejected for patch in cut)
    is_new = pair.slide not in found.complete
    return SlideTally(
        pair.slide, pair.patient, splits.roles[pair.slide], pair.her2, kept, len(cut) - kept, is_new
    )  # fmt: skip


def _time_of(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None
