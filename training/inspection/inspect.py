"""Inspect a paired dataset.

Every image is read once, in threads, and reduced to statistics, descriptors and hashes (`_Measurement`). The comparison
of all pairs then works on these alone. `inspect_dataset` returns the findings as a report.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wsi2ihc.concurrency import Progress, ProgressCallback, ordered_map, silent
from wsi2ihc.errors import DatasetError
from wsi2ihc.system import cores

from ..data import Pair, PairedData, assign_groups, find_pairs, read_pair, read_sizes
from ..data.images import check_patches, hash_of, reserved_memory
from ..pairs.quality import Agreement, agreement
from ..reports.document import Report
from .alignment import ASSUMED_MPP, Structure, find_misaligned, null_correlations, structure_of
from .duplicates import Descriptors, Hashes, describe_patch, find_duplicates, reduction
from .findings import Inspection
from .image_stats import ImageStatistics, describe, image_statistics
from .options import InspectOptions
from .report import report_of

MAX_THREADS = 8
MIN_PX = 16
"""Minimum side of a patch; smaller ones have no structure to compare."""

NEARLY_SQUARE = 1.25
"""Maximum aspect ratio of a nearly square image. Most patches are square, and two side by side have a ratio of 2."""


@dataclass(frozen=True, slots=True, eq=False)
class _Measurement:
    """Measurements of a pair."""

    statistics: tuple[ImageStatistics, ImageStatistics]  # statistics of the H&E and the IHC
    agreement: Agreement
    structure: Structure | None  # structure for the comparison with other pairs; None without contrast
    hashes: Hashes
    descriptors: Descriptors  # descriptors of the H&E
    is_square: bool  # whether both are halves of one nearly square image


def inspect_dataset(folder: Path, options: InspectOptions | None = None, progress: ProgressCallback = silent) -> Report:
    """Describe a paired dataset and find its problems.

    Images of all splits are read, including test, since leakage into the test split matters most.

    Memory bound: one pair per thread, and 24 to 40 kB for each pair of the dataset.

    Parameters
    ----------
    folder
        Dataset in any layout that `find_pairs` supports. Roles and groups are optional.
    progress
        Called after each pair.

    Returns
    -------
    Report
        ``data["warnings"]`` lists the problems, ``data["counts"]`` the numbers of pairs.

    Raises
    ------
    DatasetError
        If there is no such dataset, a file is not an image or damaged, or a patch is too small.
    OptionError
        If the options do not match the dataset.
    OutputError
        If figures are requested and matplotlib is not installed.
    """
    options = options or InspectOptions()
    if options.figures:
        from ..reports.plots import require_matplotlib

        require_matplotlib()
    return report_of(inspect_pairs(folder, options, progress), options)


def inspect_pairs(folder: Path, options: InspectOptions, progress: ProgressCallback = silent) -> Inspection:
    """Return the findings for `inspect_dataset`."""
    found = find_pairs(folder, order=options.order)
    check_patches(found)
    data = assign_groups(found, options.group_by)
    data = dataclasses.replace(data, mpp=options.mpp or data.mpp)
    sizes = read_sizes(data.pairs)
    if min(sizes.smallest.width, sizes.smallest.height) < MIN_PX:
        raise DatasetError(f"{folder} has patches of {sizes} px; the minimum is {MIN_PX} px")
    # from the smallest patch, so that all sizes keep enough px
    factor = reduction(max(sizes.smallest.width, sizes.smallest.height))
    threads = options.workers or min(cores(), MAX_THREADS)
    pool = ThreadPoolExecutor(threads)
    try:
        measured = _measure(data, factor, pool, threads, progress)
        duplicates = find_duplicates(
            data.pairs, [one.hashes for one in measured], [one.descriptors for one in measured], factor, pool,
            _counting(progress, "comparing patches", "candidate"),
        )  # fmt: skip
    finally:
        pool.shutdown(cancel_futures=True)
    return Inspection(
        data,
        sizes,
        describe(data.pairs, [one.statistics for one in measured]),
        duplicates,
        find_misaligned([one.agreement for one in measured], null_correlations([one.structure for one in measured])),
        all(one.is_square for one in measured),
    )


def _measure(
    data: PairedData, factor: int, pool: ThreadPoolExecutor, threads: int, progress: ProgressCallback
) -> list[_Measurement]:
    """Read and measure every pair, in order."""
    report_count = _counting(progress, "measuring patches", "pair")
    measured = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns about damaged files before the error that names the file
        for one in ordered_map(pool, lambda pair: _measure_pair(pair, data.mpp, factor), data.pairs, 2 * threads):
            measured.append(one)
            report_count(len(measured), len(data.pairs))
    return measured


def _measure_pair(pair: Pair, mpp: float | None, factor: int) -> _Measurement:
    with reserved_memory(pair):
        he, ihc = (np.ascontiguousarray(image) for image in read_pair(pair))
        agreed = agreement(he, ihc, mpp or ASSUMED_MPP)
        height, width = he.shape[0], 2 * he.shape[1]
        return _Measurement(
            (image_statistics(he, mpp), image_statistics(ihc, mpp)),
            agreed,
            None if agreed.correlation is None else structure_of(he, ihc, mpp or ASSUMED_MPP),
            (hash_of(he), hash_of(ihc)),
            describe_patch(he, factor),
            bool(pair.half) and max(width, height) <= NEARLY_SQUARE * min(width, height),
        )


def _counting(progress: ProgressCallback, stage: str, unit: str) -> Callable[[int, int], None]:
    return lambda done, total: progress(Progress(stage, done, total, unit=unit))
