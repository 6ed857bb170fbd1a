"""From a paired data set to a report on it: every image is read once, measured, and let go."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wsi2ihc.errors import DatasetError
from wsi2ihc.ordered import ordered_map
from wsi2ihc.progress import Progress, ProgressCallback, silent
from wsi2ihc.runtime import cores

from ..data import Pair, PairedData, assign_groups, find_pairs, read_pair, read_sizes
from ..data.images import room_for
from ..pairing.agreement import Agreement, agreement
from ..reporting.document import Report
from .describing import describe
from .fingerprints import Fingerprint, fingerprint, reduction
from .leaks import Hashes, find_leaks, hash_of
from .looks import Looks, look_at
from .misalignment import ASSUMED_MPP, find_misaligned
from .options import InspectOptions
from .presenting import present
from .results import Inspection
from .strangers import Structure, chance_correlations, structure_of

MOST_THREADS = 8
LEAST_PX = 16
"""Smaller patches hold no structure that could be described or compared."""

SQUARE_OR_SO = 1.25
"""Long side over short side up to which an image passes for a square: most patches are, and two of them side by side
are twice as wide as high."""


@dataclass(frozen=True, slots=True, eq=False)
class _Measured:
    """What is kept of a pair.

    looks:      of the H&E and the IHC
    agreement:  of the two
    structure:  of both, to be compared with strangers; None where there is nothing in it
    hashes:     of their pixels
    print:      of the H&E
    is_square:  whether both are halves of one image that is square or so
    """

    looks: tuple[Looks, Looks]
    agreement: Agreement
    structure: Structure | None
    hashes: Hashes
    print: Fingerprint
    is_square: bool


def inspect_dataset(folder: Path, options: InspectOptions | None = None, progress: ProgressCallback = silent) -> Report:
    """Describe a paired data set, and find what is wrong with it.

    Images of all splits are read, test included: what test shares with the others is what matters most.

    Memory bound: the pairs that are being read in each thread, and 24 to 40 kB a pair.

    Parameters
    ----------
    folder
        In any layout that `find_pairs` knows. Roles and groups need not be known.
    options
        How to do it.
    progress
        Called after each pair.

    Returns
    -------
    Report
        ``data["warnings"]`` is what is wrong, a line each; ``data["counts"]`` the numbers of pairs.

    Raises
    ------
    DatasetError
        If there is no such data set, a file is no image or is damaged, or a patch is too small.
    OptionError
        If options do not fit the data.
    OutputError
        If pictures are wanted and matplotlib is not installed.
    """
    options = options or InspectOptions()
    if options.pictures:
        from ..reporting.plots import require_matplotlib

        require_matplotlib()
    return present(inspect_pairs(folder, options, progress), options)


def inspect_pairs(folder: Path, options: InspectOptions, progress: ProgressCallback = silent) -> Inspection:
    """The findings of `inspect_dataset`, not yet put into words."""
    data = assign_groups(find_pairs(folder, order=options.order), options.group_by)
    data = dataclasses.replace(data, mpp=options.mpp or data.mpp)
    sizes = read_sizes(data.pairs)
    if min(sizes.smallest.width, sizes.smallest.height) < LEAST_PX:
        raise DatasetError(f"{folder} has patches of {sizes} px; nothing can be told of less than {LEAST_PX} px")
    # by the smallest, so that in a data set of several sizes none shrinks to nothing
    factor = reduction(max(sizes.smallest.width, sizes.smallest.height))
    threads = options.workers or min(cores(), MOST_THREADS)
    pool = ThreadPoolExecutor(threads)
    try:
        measured = _measure(data, factor, pool, threads, progress)
        leaks = find_leaks(
            data.pairs, [one.hashes for one in measured], [one.print for one in measured], factor, pool,
            _counting(progress, "comparing patches", "candidate"),
        )  # fmt: skip
    finally:
        pool.shutdown(cancel_futures=True)
    return Inspection(
        data,
        sizes,
        describe(data.pairs, [one.looks for one in measured]),
        leaks,
        find_misaligned([one.agreement for one in measured], chance_correlations([one.structure for one in measured])),
        all(one.is_square for one in measured),
    )


def _measure(
    data: PairedData, factor: int, pool: ThreadPoolExecutor, threads: int, progress: ProgressCallback
) -> list[_Measured]:
    """Read and measure every pair, in order."""
    tell = _counting(progress, "looking at patches", "pair")
    measured = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's about damaged files: an error that names the file follows
        for one in ordered_map(pool, lambda pair: _look(pair, data.mpp, factor), data.pairs, 2 * threads):
            measured.append(one)
            tell(len(measured), len(data.pairs))
    return measured


def _look(pair: Pair, mpp: float | None, factor: int) -> _Measured:
    with room_for(pair):
        return _measured(pair, mpp, factor)


def _measured(pair: Pair, mpp: float | None, factor: int) -> _Measured:
    he, ihc = (np.ascontiguousarray(image) for image in read_pair(pair))
    agreed = agreement(he, ihc, mpp or ASSUMED_MPP)
    height, width = he.shape[0], 2 * he.shape[1]
    return _Measured(
        (look_at(he, mpp), look_at(ihc, mpp)),
        agreed,
        None if agreed.correlation is None else structure_of(he, ihc, mpp or ASSUMED_MPP),
        (hash_of(he), hash_of(ihc)),
        fingerprint(he, factor),
        bool(pair.half) and max(width, height) <= SQUARE_OR_SO * min(width, height),
    )


def _counting(progress: ProgressCallback, stage: str, unit: str) -> Callable[[int, int], None]:
    return lambda done, total: progress(Progress(stage, done, total, unit=unit))
