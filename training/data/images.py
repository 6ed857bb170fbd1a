"""Read image pairs, and check the images of a dataset.

`check_images` and `read_sizes` read headers, `decode_pairs` reads all pixels and looks for duplicates, and
`describe_swapped_stains` checks a few images for the wrong stain. All of them work in threads; `reserved_memory` limits
how many pixels those hold at once.
"""

from __future__ import annotations

import contextlib
import hashlib
import statistics
import threading
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from wsi2ihc.errors import DatasetError
from wsi2ihc.files import same_images
from wsi2ihc.geometry import RGBImage, Size
from wsi2ihc.text import pluralize
from wsi2ihc.tissue import green_excess

from .dataset import Pair, PairedData
from .image_file import read_image, read_size

THREADS = 8
"""Threads that check files: they mostly wait for the disk or the network, or decode without the GIL."""

MAX_DECODED_BYTES = 1 << 30
"""Memory for the pairs that the threads of a process hold at once; a larger pair is held alone."""

_BYTES_PER_PX = 12
"""While an image is decoded: the decoder's own copy, the coefficients of progressive JPEG, and the array."""

_STAINS = ("H&E", "IHC")

_Duplicates: TypeAlias = list[tuple[str, list[Pair]]]
"""Pairs, sorted by path, whose images of one stain have the same pixels; and that stain."""

CHECKED_PAIRS = 8
"""Number of pairs that are checked, evenly spaced."""

_LARGEST_PX = 1024
"""Side of the part of an image that is measured."""

_MAX_IHC_EXCESS, _MIN_HE_EXCESS = 1.5, 1.6
"""Maximum green absorption of IHC, and minimum of H&E, relative to red and blue; `wsi2ihc.tissue.background` has the
measurements. The stains are swapped if the supposed H&E is below the first and the supposed IHC above the second.
"""


@dataclass(frozen=True, slots=True)
class PatchSizes:
    """Minimum and maximum width and height of the patches in px, and their number."""

    smallest: Size
    largest: Size
    patches: int

    @property
    def at_once(self) -> int:
        """Number of pairs of the largest size that fit into `MAX_DECODED_BYTES`, at least one."""
        return max(1, MAX_DECODED_BYTES // (2 * self.largest.area_px * _BYTES_PER_PX))

    def __str__(self) -> str:
        same = self.smallest == self.largest
        return str(self.smallest) if same else f"{self.smallest} to {self.largest}"


def check_images(pairs: Iterable[Pair], *, crop_px: int) -> PatchSizes:
    """Read the headers of all pairs, so that training does not stop hours later at one bad file.

    Test pairs are not opened: training reads nothing of a test set.

    Raises
    ------
    DatasetError
        If a file is not an 8-bit RGB image, the two sizes of a pair differ, or a patch is smaller than the crop.
    """
    opened = pairs_to_open(pairs)
    sizes = _sizes_of(opened)
    for pair, size in zip(opened, sizes, strict=True):
        if min(size.width, size.height) < crop_px:
            raise DatasetError(
                f"{pair.he}: a patch of {size} px is smaller than the crop of {crop_px}; lower --crop-size"
            )
    return _size_range(sizes)


def check_patches(data: PairedData) -> None:
    """Check that a folder that only contains images is a dataset and not, for example, a folder of slides.

    Raises
    ------
    DatasetError
        If none of its images has a readable header of a side-by-side pair.
    """
    if not data.layout.startswith("side by side in the folder"):
        return
    for pair in data.pairs:
        try:
            read_size(pair.he, images=2)
        except DatasetError as error:
            problem = str(error)
        else:
            return
    problem = problem.replace(f"{data.folder}/", "").partition(";")[0]
    raise DatasetError(f"{data.folder} is not a dataset (no pairs.csv, HE/ or IHC/; {problem})")


def read_sizes(pairs: Iterable[Pair]) -> PatchSizes:
    """Read the headers of at least one pair of any role.

    Raises
    ------
    DatasetError
        If a file is not an 8-bit RGB image, or the two sizes of a pair differ.
    """
    return _size_range(_sizes_of(list(pairs)))


def _sizes_of(pairs: list[Pair]) -> list[Size]:
    if same := same_images([(pair.he, pair.ihc) for pair in pairs if not pair.half]):
        raise DatasetError(f"the H&E and the IHC images are the same ({same[0]} and {same[1]} are copies); put the "
                           "images of both stains where they belong")  # fmt: skip
    with warnings.catch_warnings(), ThreadPoolExecutor(THREADS) as pool:
        warnings.simplefilter("ignore")  # of Pillow about damaged files; an error with the file name follows
        return list(pool.map(_check_pair, pairs))


def _size_range(sizes: list[Size]) -> PatchSizes:
    widths, heights = [size.width for size in sizes], [size.height for size in sizes]
    return PatchSizes(Size(min(widths), min(heights)), Size(max(widths), max(heights)), len(sizes))


def pairs_to_open(pairs: Iterable[Pair]) -> list[Pair]:
    """Return the pairs of train and validation, each once, sorted by path. Test pairs stay closed.

    Raises
    ------
    DatasetError
        If there are none.
    """
    opened = sorted({pair for pair in pairs if pair.role != "test"}, key=lambda pair: (pair.he, pair.ihc))
    if not opened:
        raise DatasetError("there are no pairs to check")
    return opened


def _check_pair(pair: Pair) -> Size:
    size = read_size(pair.he, images=2 if pair.half else 1)
    if pair.half:
        return Size(_half_of(pair, size.width), size.height)
    _check_same(pair, size, read_size(pair.ihc))
    return size


class _MemoryBudget:
    """A memory budget shared by threads; each waits until its amount is available, or until nothing else is in use."""

    def __init__(self, amount: int) -> None:
        self._amount, self._used, self._changed = amount, 0, threading.Condition()

    @contextlib.contextmanager
    def reserved(self, amount: int) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._used or self._used + amount <= self._amount)
            self._used += amount
        try:
            yield
        finally:
            with self._changed:
                self._used -= amount
                self._changed.notify_all()


_memory = _MemoryBudget(MAX_DECODED_BYTES)


@contextlib.contextmanager
def reserved_memory(pair: Pair) -> Iterator[None]:
    """Reserve the memory to decode a pair, whose headers are checked; enclose all work on its pixels."""
    with _memory.reserved(2 * _check_pair(pair).area_px * _BYTES_PER_PX):
        yield


def read_pair(pair: Pair) -> tuple[RGBImage, RGBImage]:
    """Decode a pair: H&E and IHC. The two may be views of one array.

    Raises
    ------
    DatasetError
        If a file is missing, damaged or truncated, is not a single 8-bit RGB image, or the sizes differ.
    """
    he = read_image(pair.he, images=2 if pair.half else 1)
    if pair.half:
        width = _half_of(pair, he.shape[1])
        left, right = he[:, :width], he[:, width:]
        return (left, right) if pair.half == "left" else (right, left)
    ihc = read_image(pair.ihc)
    _check_same(pair, _size(he), _size(ihc))
    return he, ihc


def _half_of(pair: Pair, width: int) -> int:
    if width % 2:
        raise DatasetError(f"{pair.he} is {width} px wide, but two images side by side have an even width")
    return width // 2


def _check_same(pair: Pair, he: Size, ihc: Size) -> None:
    if he != ihc:
        raise DatasetError(f"{pair.he} has {he} px, but {pair.ihc} {ihc}; a pair has one size")


def _size(image: RGBImage) -> Size:
    return Size(image.shape[1], image.shape[0])


def decode_pairs(pairs: Iterable[Pair], progress: Callable[[int, int], None] | None = None) -> tuple[str, ...]:
    """Decode every pair of train and validation, and look for duplicate images.

    Headers do not show that a file is truncated, nor do names show that two files are the same image. Only hashes are
    kept, so memory does not grow with the patches. Test pairs are not opened.

    Parameters
    ----------
    progress
        Called with the number of pairs done and the total.

    Returns
    -------
    tuple[str, ...]
        Warnings, one line each: pairs whose H&E and IHC are the same image, images shared by train and validation, and
        duplicates within one of them. Images of a single color (empty background) are not compared.

    Raises
    ------
    DatasetError
        At the first pair by path that cannot be decoded, is not 8-bit RGB, or has images of different sizes; or if both
        images are the same in every pair.
    """
    opened = pairs_to_open(pairs)
    hashes: list[tuple[bytes | None, ...]] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow about damaged files; an error with the file name follows
        pool = ThreadPoolExecutor(THREADS)
        try:
            for done, found in enumerate(pool.map(_hashes_of, opened), 1):
                hashes.append(found)
                if progress:
                    progress(done, len(opened))
        finally:
            pool.shutdown(cancel_futures=True)  # otherwise an interrupt would wait for the whole queue
    identical_stains = [pair for pair, (he, ihc) in zip(opened, hashes, strict=True) if he is not None and he == ihc]
    if len(identical_stains) == len(opened):
        raise DatasetError(
            f"the H&E and the IHC of every pair have the same pixels ({opened[0].he} and all others); "
            "put the images of both stains where they belong"
        )
    duplicates = _find_duplicates(opened, hashes)
    return (*_identical_stains(identical_stains), *_shared(duplicates), *_repeated(duplicates))


def _hashes_of(pair: Pair) -> tuple[bytes | None, ...]:
    with reserved_memory(pair):
        return tuple(hash_of(image) for image in read_pair(pair))


def hash_of(image: RGBImage) -> bytes | None:
    """Return a hash of the pixels; None for an image of a single color, which is empty background."""
    if (image[0] == image[0, 0]).all() and (image == image[0, 0]).all():  # one row is usually enough
        return None
    content = hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16)
    content.update(repr(image.shape).encode())
    return content.digest()


def _find_duplicates(pairs: Sequence[Pair], hashes: Sequence[tuple[bytes | None, ...]]) -> _Duplicates:
    seen: dict[tuple[str, bytes], list[Pair]] = defaultdict(list)
    for pair, own in zip(pairs, hashes, strict=True):
        for stain, content in zip(_STAINS, own, strict=True):
            if content is not None:
                seen[stain, content].append(pair)
    return [(stain, members) for (stain, _), members in seen.items() if len(members) > 1]


def _identical_stains(pairs: Sequence[Pair]) -> Iterator[str]:
    if pairs:
        verb = "has" if len(pairs) == 1 else "have"
        yield (
            f"{len(pairs)} of the pairs {verb} the same pixels in H&E and IHC, first {pairs[0].he}: one of them was "
            "replaced by a copy of the other"
        )


def _shared(duplicates: _Duplicates) -> Iterator[str]:
    """Yield a warning about images in both train and validation."""
    examples: list[str] = []
    shared: set[Pair] = set()
    for stain, members in duplicates:
        train, validation = _of(members, "train"), _of(members, "validation")
        if train and validation:
            examples.append(f"the {stain} of {train[0].he} (train) and of {validation[0].he} (validation)")
            shared.update(validation)
    if shared:
        yield (
            f"{examples[0]} have the same pixels, and images of {pluralize(len(shared), 'validation pair')} in all are "
            "also in train, which makes metrics too optimistic; remove them, or keep them in one group"
        )


def _repeated(duplicates: _Duplicates) -> Iterator[str]:
    """Yield warnings about duplicates within train or validation."""
    for role in ("train", "validation"):
        repeated = {pair for _, members in duplicates for pair in _of(members, role)[1:]}
        if repeated:
            yield f"{pluralize(len(repeated), 'pair')} of {role} with the pixels of an image of another {role} pair"


def _of(pairs: Iterable[Pair], role: str) -> list[Pair]:
    return [pair for pair in pairs if (pair.role or "train") == role]


def describe_swapped_stains(pairs: Sequence[Pair]) -> str:
    """Return, as a clause, why the stains seem to be swapped; "" if they do not. Test pairs are not opened."""
    opened = pairs_to_open(pairs)
    checked = opened[:: -(-len(opened) // CHECKED_PAIRS)]
    found = [tuple(_excess(image) for image in read_pair(pair)) for pair in checked]
    known = [(he, ihc) for he, ihc in found if he is not None and ihc is not None]
    if 2 * len(known) < len(checked):
        return ""
    he, ihc = (statistics.median(values) for values in zip(*known, strict=True))
    if he > _MAX_IHC_EXCESS or ihc < _MIN_HE_EXCESS:
        return ""
    return (
        f"the images used as H&E look like IHC, and their partners like H&E (they absorb green {he:.2f} and "
        f"{ihc:.2f} times as much as red and blue; H&E at least 1.6 times)"
    )


def _excess(image: RGBImage) -> float | None:
    part = np.ascontiguousarray(image[:_LARGEST_PX, :_LARGEST_PX])
    return green_excess(part, np.ones(part.shape[:2], np.bool_))
