"""Pixels of pairs: all headers are looked at before training, and one pair is read at a time."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import imagecodecs
import numpy as np
from PIL import Image, TiffImagePlugin

from wsi2ihc.arrays import RGBImage
from wsi2ihc.errors import DatasetError
from wsi2ihc.geometry import Size

from .files import same_images
from .pairs import Pair

THREADS = 8
"""That look at files: they mostly wait for the disk, or for the network behind it, or decode without Python's lock."""

_PNG_DEPTH_AT = 24
"""Where a PNG file has its bits per channel: in the header chunk, which is the first (PNG specification, 11.2.1)."""

_MODES = {
    "1": "is black and white",
    "L": "is grey",
    "LA": "is grey with alpha",
    "P": "has a palette",
    "PA": "has a palette",
    "RGBA": "has an alpha channel",
    "RGBa": "has an alpha channel",
    "RGBX": "has a fourth channel",
    "CMYK": "is CMYK",
}


@dataclass(frozen=True, slots=True)
class PatchSizes:
    """What `check_images` has seen: the least and the greatest width and height of a patch in px, and how many."""

    smallest: Size
    largest: Size
    patches: int

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
    size = _check_header(pair.he)
    if pair.half:
        return Size(_half_of(pair, size.width), size.height)
    _check_same(pair, size, _check_header(pair.ihc))
    return size


def _check_header(path: Path) -> Size:
    try:
        with path.open("rb") as file:
            image = _open(file, path)
            return Size(*image.size)
    except OSError as error:
        raise DatasetError(f"{path} cannot be read ({error.strerror or error!s:.80})") from error


def _open(file: BinaryIO, path: Path) -> Image.Image:
    """Parse the header of an image, and refuse all but one image of 8-bit RGB."""
    head = file.read(_PNG_DEPTH_AT + 1)
    file.seek(0)
    try:
        image = Image.open(file)
        count = getattr(image, "n_frames", 1)
    except Image.DecompressionBombError as error:
        raise DatasetError(f"{path} is too large for a patch; cut it into patches") from error
    except Exception as error:  # Pillow raises whatever it likes on damaged headers
        if isinstance(error, OSError) and error.errno:  # the disk's
            raise
        raise DatasetError(f"{path} is not an image, or is damaged; replace it, or remove the pair") from error
    if count > 1:
        raise DatasetError(f"{path} holds {count} images; keep one image in a file")
    if problem := _problem(image, head):
        raise DatasetError(f"{path} {problem}; convert it to 8-bit RGB")
    return image


def _problem(image: Image.Image, head: bytes) -> str:
    """What is wrong with the kind of pixels; "" if nothing is.

    Pillow opens PNG and TIFF of 16 bits per channel as mode RGB and drops the lower halves, so the mode is not enough.
    """
    bits = 8
    if image.format == "PNG":
        bits = head[_PNG_DEPTH_AT]
    elif isinstance(image, TiffImagePlugin.TiffImageFile):
        stated = image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, 1)
        bits = max(stated) if isinstance(stated, tuple) else int(stated)
    if bits > 8:
        return f"has {bits} bits per channel"
    if image.mode != "RGB":
        return _MODES.get(image.mode, f"is of the kind {image.mode}")
    return "has an alpha channel" if "transparency" in image.info else ""


def read_pair(pair: Pair) -> tuple[RGBImage, RGBImage]:
    """Decode a pair: H&E and IHC. The two may be views of one array.

    Raises
    ------
    DatasetError
        If a file is gone, damaged or truncated, is no single 8-bit RGB image, or the sizes differ.
    """
    he = read_image(pair.he)
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


def read_image(path: Path) -> RGBImage:
    """Decode one image as it is stored.

    PNG goes through libpng, in three quarters of the time that Pillow takes; all else through Pillow, since the JPEG
    decoders that are a fifth faster take a truncated file for a whole one. An orientation in EXIF is ignored: scanners
    write none, and where a tool left one in one file of a pair only, to follow it would part the two images.

    Raises
    ------
    DatasetError
        If the file is gone, damaged or truncated, or is no single 8-bit RGB image.
    """
    try:
        data = path.read_bytes()
        with _open(io.BytesIO(data), path) as image:
            pixels = imagecodecs.png_decode(data) if image.format == "PNG" else np.asarray(image)
    except DatasetError:
        raise
    except Exception as error:  # decoders raise whatever they like on damaged data
        raise DatasetError(f"{path} cannot be decoded ({error!s:.80}); replace it, or remove the pair") from error
    return np.asarray(pixels, np.uint8)
