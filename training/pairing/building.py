"""From a manifest to a data set: which pairs have to be cut, a child for each, and the data set of all that are."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from wsi2ihc.errors import DatasetError, SlideNotFoundError
from wsi2ihc.locks import LOCK
from wsi2ihc.progress import Progress, ProgressCallback, silent
from wsi2ihc.runtime import versions

from ..data.table import STATEMENT_NAME
from .anonymous import Folders
from .manifest import Manifest, RowProblem, SlidePair, read_manifest
from .numbering import place_patches
from .one_slide import SlideJob, look_at_pair, make_pair_patches
from .options import PairsOptions
from .places import SPLIT_NAMES, staging_folder
from .records import RECORD_NAME, SlideRecord, read_record
from .running import run_jobs
from .splitting import Splits, assign_splits, split_warnings
from .store import PairsStore, fingerprint_of, open_store
from .summary import BuildReport, FailedPair, Preview, SlideTally
from .table import Statement, rejections


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
    table = read_manifest(manifest)
    splits = assign_splits(table.members, options.shares, options.seed)
    with open_store(folder, options.of_patches) as store:
        before = _time_of(folder / STATEMENT_NAME)
        found = _find_work(store, table, options)
        for slide in found.complete:  # its child may have been killed right after the record
            (store.slide_folder(slide) / LOCK).unlink(missing_ok=True)
        ended = run_jobs(make_pair_patches, found.jobs, options.workers, progress)
        failed = _failures(table, found, ended)
        for failure in failed:
            _clear(store, failure.slide)
        slides = [(pair, record) for pair in table.rows if (record := _record(store, pair, found, failed))]
        progress(Progress("writing the tables"))
        facts = place_patches(store, slides, splits.roles, _statement(table, options, failed))
        is_unchanged = not found.jobs and _time_of(folder / STATEMENT_NAME) == before
        warnings = (*_doubts(splits, slides, options), *_ignored(table))
        report = BuildReport(
            dataset=folder.resolve().name,
            manifest=table.path.name,
            slides=tuple(_tally(pair, record, splits, found) for pair, record in slides),
            failed=failed,
            counts=facts["counts"],
            rejected=facts["rejected"],
            warnings=warnings,
        )
    if not report.kept and not failed:
        raise DatasetError(
            f"no patch was kept ({_reasons(slides)}); look at {folder / 'rejected.csv'}, and relax what is too strict"
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
    table = read_manifest(manifest)
    splits = assign_splits(table.members, options.shares, options.seed)
    found = _find_work(PairsStore(folder, options.of_patches), table, options)
    failed = _failures(table, found, run_jobs(look_at_pair, found.jobs, options.workers, progress))
    bad = {failure.slide for failure in failed}
    good = [pair for pair in table.rows if pair.slide not in bad]
    tallies = tuple(_tally(pair, found.complete.get(pair.slide), splits, found) for pair in good)
    return Preview(tallies, failed, (*split_warnings(splits, good, options.shares), *_ignored(table)))


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class _Found:
    """Which pairs are complete, by the slide's id; which have to be cut; and which cannot even be looked at."""

    complete: Mapping[str, SlideRecord]
    jobs: Sequence[SlideJob]
    failed: Sequence[FailedPair]


def _find_work(store: PairsStore, table: Manifest, options: PairsOptions) -> _Found:
    complete: dict[str, SlideRecord] = {}
    jobs: list[SlideJob] = []
    failed: list[FailedPair] = []
    for pair in table.rows:
        try:
            fingerprint = fingerprint_of(pair)
        except SlideNotFoundError as error:
            failed.append(FailedPair(pair.row, pair.slide, str(error)))
            continue
        if record := store.completed(pair.slide, fingerprint):
            complete[pair.slide] = record
        else:
            jobs.append(SlideJob(pair, fingerprint, store.folder, options))
    return _Found(complete, jobs, failed)


def _failures(table: Manifest, found: _Found, ended: Mapping[str, str]) -> tuple[FailedPair, ...]:
    """All rows that gave nothing, in the manifest's order."""
    problems: dict[int, list[RowProblem]] = defaultdict(list)
    for problem in table.problems:
        problems[problem.row].append(problem)
    failed = [
        FailedPair(row, own[0].slide, "; ".join(problem.message for problem in own)) for row, own in problems.items()
    ]
    failed += found.failed
    failed += [
        FailedPair(job.pair.row, job.pair.slide, ended[job.pair.slide]) for job in found.jobs if ended[job.pair.slide]
    ]
    return tuple(sorted(failed, key=lambda failure: failure.row))


def _clear(store: PairsStore, slide: str) -> None:
    """Remove the patches that a child has written which then failed. Its pictures stay: they may show why."""
    folder = store.slide_folder(slide)
    if not slide or (folder / RECORD_NAME).exists() or not folder.is_dir():
        return
    (folder / LOCK).unlink(missing_ok=True)
    shutil.rmtree(staging_folder(store.folder, slide), ignore_errors=True)
    with contextlib.suppress(OSError):
        folder.rmdir()


def _record(store: PairsStore, pair: SlidePair, found: _Found, failed: Iterable[FailedPair]) -> SlideRecord | None:
    """The record of a pair that is complete by now."""
    if pair.slide in {failure.slide for failure in failed}:
        return None
    return found.complete.get(pair.slide) or read_record(store.slide_folder(pair.slide))


def _statement(table: Manifest, options: PairsOptions, failed: Iterable[FailedPair]) -> Statement:
    """For ``dataset.json``: no times, no folders, and nothing that says how many cores there were."""
    folders = Folders.of(table)
    return Statement(
        mpp=options.mpp,
        patch_px=options.patch_size,
        stain=options.stain,
        licence=options.licence,
        failed=tuple((failure.slide, folders.removed(f"row {failure.row}: {failure.message}")) for failure in failed),
        extra={
            "manifest": {"name": table.path.name, "sha256": table.sha256},
            "seed": options.seed,
            "shares": {name: round(share, 9) for name, share in zip(SPLIT_NAMES.values(), options.shares, strict=True)},
            "options": options.stated,
            "versions": versions(),
        },
    )


def _doubts(splits: Splits, slides: Sequence[tuple[SlidePair, SlideRecord]], options: PairsOptions) -> Iterator[str]:
    """What the slides that are complete leave to be desired, one sentence each."""
    yield from split_warnings(splits, [pair for pair, record in slides if record.kept], options.shares)
    for pair, record in slides:
        if not record.kept:
            reasons = _reasons([(pair, record)])
            yield f"{pair.slide}: no patch was kept ({reasons}); see slides/{pair.slide}/patches.png"
    yield from rejections(slides).warnings
    now = versions()
    if others := {pair.slide: was for pair, record in slides if (was := record.facts.get("versions", now)) != now}:
        slide, was = next(iter(others.items()))
        changed = ", ".join(f"{name} {was.get(name)}" for name in now if was.get(name) != now[name])
        yield (
            f"{len(others)} of {len(slides)} pairs of slides were cut by other versions ({slide}: {changed}); "
            "to have all alike, make the data set anew in another folder"
        )


def _tally(pair: SlidePair, record: SlideRecord | None, splits: Splits, found: _Found) -> SlideTally:
    patches = record.patches if record else ()
    kept = sum(not patch.rejected for patch in patches)
    is_new = pair.slide not in found.complete
    return SlideTally(
        pair.slide, pair.patient, splits.roles[pair.slide], pair.her2, kept, len(patches) - kept, is_new
    )  # fmt: skip


def _reasons(slides: Iterable[tuple[SlidePair, SlideRecord]]) -> str:
    """How many patches were left out for what, in words."""
    counts = Counter(patch.rejected for _, record in slides for patch in record.patches if patch.rejected)
    listed = ", ".join(f"{reason} {count:,}" for reason, count in counts.most_common())
    return f"left out: {listed}" if listed else "there was no place with tissue"


def _ignored(table: Manifest) -> tuple[str, ...]:
    if not table.ignored:
        return ()
    return (f"columns of the manifest that mean nothing here: {', '.join(table.ignored)}",)


def _time_of(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None
