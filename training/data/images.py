"""Pixels of pairs: all headers are looked at before training, and one pair is read at a time."""

from __future__ import annotations

import io
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import imagecodecs
import numpy as np
from PIL import Image, UnidentifiedImageError

from ...arrays import RGBImage
from ...errors import DatasetError
from ...geometry import Size
from .records import Pair

_THREADS = 8
"""That look at headers: they mostly wait for the disk, or for the network behind it."""

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_BITS_PER_SAMPLE = 258  # the TIFF tag
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


def check_images(pairs: Iterable[Pair], *, crop_px: int, multiple: int) -> PatchSizes:
    """Look at the headers of all pairs, so that training does not stop hours later at one bad file.

    Parameters
    ----------
    pairs:
        of train and of validation. Those of role test are not opened: nothing of a test set is read in training.
    crop_px:
        side of the square crops
    multiple:
        what sizes have to be multiples of for the network; whole patches are cut to it

    Raises
    ------
    DatasetError
        If a file is no 8-bit RGB image, the two sizes of a pair differ, or a patch is smaller than the crop.
    """
    opened = sorted((pair for pair in pairs if pair.role != "test"), key=lambda pair: pair.he)
    if not opened:
        raise DatasetError("there are no pairs to look at")
    with ThreadPoolExecutor(_THREADS) as pool:
        sizes = list(pool.map(_check_pair, opened))
    least = max(crop_px, multiple)
    for pair, size in zip(opened, sizes, strict=True):
        if min(size.width, size.height) < least:
            raise DatasetError(
                f"{pair.he}: a patch of {size} px is smaller than the crop of {least}; lower --crop-size"
            )
    widths, heights = [size.width for size in sizes], [size.height for size in sizes]
    return PatchSizes(Size(min(widths), min(heights)), Size(max(widths), max(heights)), len(opened))


def _check_pair(pair: Pair) -> Size:
    size = _check_header(pair.he)
    if pair.half:
        if size.width % 2:
            raise DatasetError(f"{pair.he} is {size.width} px wide: two images side by side have an even width")
        return Size(size.width // 2, size.height)
    if (other := _check_header(pair.ihc)) != size:
        raise DatasetError(f"{pair.he} has {size} px, but {pair.ihc} {other}; both images of a pair have one size")
    return size


def _check_header(path: Path) -> Size:
    try:
        with Image.open(path) as image:
            problem = _problem(image)
            size = Size(*image.size)
    except UnidentifiedImageError as error:
        raise DatasetError(f"{path} is not an image (or damaged); remove the pair, or replace the file") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DatasetError(f"{path} cannot be read ({error!s:.80})") from error
    if problem:
        raise DatasetError(f"{path} {problem}; convert it to 8-bit RGB")
    return size


def _problem(image: Image.Image) -> str:
    """What is wrong with the kind of pixels; "" if nothing is.

    Pillow opens PNG and TIFF of 16 bits per channel as mode RGB, and drops half of the bits, so the mode is not enough.
    """
    if _bits(image) > 8 or image.mode.startswith(("I", "F")):
        return f"has {max(_bits(image), 16)} bits per channel"
    if image.mode != "RGB":
        return _MODES.get(image.mode, f"is of the kind {image.mode}")
    return "has an alpha channel" if "transparency" in image.info else ""


def _bits(image: Image.Image) -> int:
    if image.format == "TIFF":
        bits = image.tag_v2.get(_BITS_PER_SAMPLE, 1)  # type: ignore[attr-defined]
        return max(bits) if isinstance(bits, tuple) else int(bits)
    if image.format == "PNG":
        # the raw mode, as in "RGB;16B"
        return 16 if any("16" in str(tile[3]) for tile in getattr(image, "tile", ())) else 8
    return 8


def read_pair(pair: Pair) -> tuple[RGBImage, RGBImage]:
    """Decode a pair: H&E and IHC.

    Raises
    ------
    DatasetError
        If a file is gone, damaged or truncated, is no 8-bit RGB image, or the sizes differ.
    """
    he = _read(pair.he)
    if pair.half:
        middle = he.shape[1] // 2
        if he.shape[1] % 2:
            raise DatasetError(f"{pair.he} is {he.shape[1]} px wide: two images side by side have an even width")
        left, right = he[:, :middle], he[:, middle:]
        return (left, right) if pair.half == "left" else (right, left)
    ihc = _read(pair.ihc)
    if he.shape != ihc.shape:
        raise DatasetError(f"{pair.he} and {pair.ihc} differ in size; both images of a pair have one size")
    return he, ihc


def _read(path: Path) -> RGBImage:
    """Decode one image as it is stored.

    PNG goes through libpng (two thirds of the time that Pillow takes); the rest through Pillow, since the faster JPEG
    decoders take truncated files for whole ones. An orientation in EXIF is ignored: no scanner writes one, and if a
    tool left it in one file of a pair, following it would turn one image against the other.
    """
    try:
        data = path.read_bytes()
        if data.startswith(_PNG_SIGNATURE):
            pixels = imagecodecs.png_decode(data)
        else:
            with Image.open(io.BytesIO(data)) as image:
                if problem := _problem(image):
                    raise DatasetError(f"{path} {problem}; convert it to 8-bit RGB")
                pixels = np.asarray(image)
    except DatasetError:
        raise
    except Exception as error:  # decoders raise whatever they like on damaged data
        raise DatasetError(f"{path} cannot be decoded ({error!s:.80}); replace it, or remove the pair") from error
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
        raise DatasetError(f"{path} is no 8-bit RGB image; convert it to 8-bit RGB")
    return np.asarray(pixels, np.uint8)
