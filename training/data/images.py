"""Pixels of pairs: all headers are looked at before training, and one pair is read at a time."""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from wsi2ihc.arrays import RGBImage
from wsi2ihc.errors import DatasetError
from wsi2ihc.geometry import Size

from .files import same_images
from .image_file import read_image, read_size
from .pairs import Pair

THREADS = 8
"""That look at files: they mostly wait for the disk, or for the network behind it, or decode without Python's lock."""

MOST_DECODED_BYTES = 1 << 30
"""Of the pairs that threads of one process hold at once; a larger pair is held alone."""

_BYTES_PER_PX = 12
"""While an image is decoded: the decoder's own copy, the coefficients of progressive JPEG, and the array."""


@dataclass(frozen=True, slots=True)
class PatchSizes:
    """What `check_images` has seen: the least and the greatest width and height of a patch in px, and how many."""

    smallest: Size
    largest: Size
    patches: int

    @property
    def at_once(self) -> int:
        """How many pairs of the largest size may be held decoded, at least one."""
        return max(1, MOST_DECODED_BYTES // (2 * self.largest.area_px * _BYTES_PER_PX))

    def __str__(self) -> str:
        same = self.smallest == self.largest
        return str(self.smallest) if same else f"{self.smallest} to {self.largest}"


def check_images(pairs: Iterable[Pair], *, crop_px: int) -> PatchSizes:
    """Look at the headers of all pairs, so that training does not stop hours later at one bad file.

    Parameters
    ----------
    pairs:
        of train and of validation. Those of role test are not opened: nothing of a test set is read in training.
    crop_px:
        side of the square crops

    Raises
    ------
    DatasetError
        If a file is no 8-bit RGB image, the two sizes of a pair differ, or a patch is smaller than the crop.
    """
    opened = pairs_to_open(pairs)
    sizes = _sizes_of(opened)
    for pair, size in zip(opened, sizes, strict=True):
        if min(size.width, size.height) < crop_px:
            raise DatasetError(
                f"{pair.he}: a patch of {size} px is smaller than the crop of {crop_px}; lower --crop-size"
            )
    return _summed_up(sizes)


def read_sizes(pairs: Iterable[Pair]) -> PatchSizes:
    """Look at the headers of pairs of any role, at least one.

    Raises
    ------
    DatasetError
        If a file is no 8-bit RGB image, or the two sizes of a pair differ.
    """
    return _summed_up(_sizes_of(list(pairs)))


def _sizes_of(pairs: list[Pair]) -> list[Size]:
    if same := same_images([(pair.he, pair.ihc) for pair in pairs if not pair.half]):
        raise DatasetError(f"the H&E and the IHC images are the same ({same[0]} and {same[1]} are copies); put the "
                           "images of both stains where they belong")  # fmt: skip
    with warnings.catch_warnings(), ThreadPoolExecutor(THREADS) as pool:
        warnings.simplefilter("ignore")  # Pillow's about damaged files: an error that names the file follows
        return list(pool.map(_check_pair, pairs))


def _summed_up(sizes: list[Size]) -> PatchSizes:
    widths, heights = [size.width for size in sizes], [size.height for size in sizes]
    return PatchSizes(Size(min(widths), min(heights)), Size(max(widths), max(heights)), len(sizes))


def pairs_to_open(pairs: Iterable[Pair]) -> list[Pair]:
    """The pairs of train and validation, each once, by path. Those of test stay closed.

    Raises
    ------
    DatasetError
        If there are none.
    """
    opened = sorted({pair for pair in pairs if pair.role != "test"}, key=lambda pair: (pair.he, pair.ihc))
    if not opened:
        raise DatasetError("there are no pairs to look at")
    return opened


def _check_pair(pair: Pair) -> Size:
    size = read_size(pair.he, images=2 if pair.half else 1)
    if pair.half:
        return Size(_half_of(pair, size.width), size.height)
    _check_same(pair, size, read_size(pair.ihc))
    return size


class _Room:
    """An amount that threads share; each waits until what it needs is there, or until it is alone."""

    def __init__(self, amount: int) -> None:
        self._amount, self._used, self._changed = amount, 0, threading.Condition()

    @contextlib.contextmanager
    def taken(self, amount: int) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._used or self._used + amount <= self._amount)
            self._used += amount
        try:
            yield
        finally:
            with self._changed:
                self._used -= amount
                self._changed.notify_all()


_room = _Room(MOST_DECODED_BYTES)


@contextlib.contextmanager
def room_for(pair: Pair) -> Iterator[None]:
    """Wait until a pair can be decoded beside those that other threads hold; around all work on its pixels.

    Raises
    ------
    DatasetError
        If its headers cannot be read, as for `check_images`.
    """
    with _room.taken(2 * _check_pair(pair).area_px * _BYTES_PER_PX):
        yield


def read_pair(pair: Pair) -> tuple[RGBImage, RGBImage]:
    """Decode a pair: H&E and IHC. The two may be views of one array.

    Raises
    ------
    DatasetError
        If a file is gone, damaged or truncated, is no single 8-bit RGB image, or the sizes differ.
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
