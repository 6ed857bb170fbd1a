"""Synthetic slides for the tests: small TIFF files in the styles, and with the faults, that scanners produce.

All pixels are computed here; nothing is taken from a real slide. Import it as ``from make_slides import …`` (pytest
puts this folder on the path).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import cv2
import imagecodecs
import numpy as np
import numpy.typing as npt
import PIL.Image
import tifffile

from wsi2ihc.demo import synthetic_tissue
from wsi2ihc.slide import Slide
from wsi2ihc.slide.readers.base import SlideReader
from wsi2ihc.slide.slide_view import SlideView

Image = npt.NDArray[np.uint8]


def texture(width: int, height: int, seed: int = 0) -> Image:
    """(height, width, 3) uint8 with structure at all scales, in purple and pink; no two places are alike."""
    rng = np.random.default_rng(seed)
    image = np.zeros((height, width, 3), np.float32)
    for cell in (97, 23, 5, 1):
        coarse = rng.normal(size=(-(-height // cell) + 1, -(-width // cell) + 1, 3)).astype(np.float32)
        image += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR) * (12 + 2 * cell**0.5)
    return np.clip(image + np.float32([190, 130, 180]), 0, 255).astype(np.uint8)


def tissue_on_background(width: int, height: int, tissue: tuple[int, int, int, int]) -> Image:
    """(height, width, 3) uint8 of background, with one piece of tissue at (x, y, width, height)."""
    image = np.empty((height, width, 3), np.uint8)
    image[:] = 243, 241, 240
    left, top, across, down = tissue
    image[top : top + down, left : left + across] = synthetic_tissue(across, down, seed=3)
    return image


def halves(image: Image, levels: int, factor: int = 2) -> list[Image]:
    """A pyramid by block means; the odd rest is dropped, as Aperio does."""
    pyramid = [image]
    for _ in range(levels - 1):
        last = pyramid[-1]
        height, width = last.shape[0] // factor, last.shape[1] // factor
        blocks = last[: height * factor, : width * factor].reshape(height, factor, width, factor, -1)
        pyramid.append(np.round(blocks.mean((1, 3))).astype(np.uint8))
    return pyramid


_CODES = {
    "deflate": 8,
    "jpeg2000": 33005,
    "jpeg2000-registered": 34712,
    "jpeg2000-ycbcr": 33003,
    "jpegxl": 50002,
    "lzw": 5,
    "packbits": 32773,
    "webp": 50001,
    "zstd": 50000,
}
"""Name → TIFF tag 259; "jpeg" and "none" beside these."""

_BYTE_ENCODERS: dict[str, Callable[[bytes], bytes]] = {
    "deflate": zlib.compress,
    "lzw": imagecodecs.lzw_encode,
    "none": bytes,
    "packbits": imagecodecs.packbits_encode,
    "zstd": imagecodecs.zstd_encode,
}


@dataclass(frozen=True)
class TiffSlide:
    """How to write a slide.

    style:          "generic" or "aperio"
    tile:           side of a tile, or None for strips
    compression:    "jpeg2000" is Aperio's RGB kind; see `_CODES` for the others
    padding:        zeros behind each compressed tile
    predictor:      horizontal differences, for compressions of bytes
    photometric:    of JPEG streams: "ycbcr", or "rgb" as Aperio has it
    subsampling:    of YCbCr: "444", "422" or "420"
    mpp:            stated in Aperio's description, or as resolution tags in px/cm; None: neither
    dpi:            resolution tags in dots per inch, such as 72, instead
    magnification:  Aperio's AppMag
    missing:        tiles (level, row, column) that the file does not hold
    subifds:        lower levels in SubIFDs of the first page
    """

    style: Literal["generic", "aperio"] = "generic"
    tile: int | None = 256
    compression: str = "jpeg"
    padding: int = 0
    predictor: bool = False
    photometric: Literal["ycbcr", "rgb"] = "ycbcr"
    subsampling: str = "420"
    quality: int = 90
    mpp: float | tuple[float, float] | None = 0.5
    dpi: float | None = None
    magnification: float | None = 20
    icc_profile: bytes | None = None
    missing: frozenset[tuple[int, int, int]] = field(default_factory=frozenset)
    subifds: bool = False
    bigtiff: bool = False
    description: str | None = None


def direct_levels(slide: Slide) -> frozenset[int]:
    """Levels whose tiles are decoded straight from the file."""
    reader = slide._slide if isinstance(slide, SlideView) else slide
    assert isinstance(reader, SlideReader)
    return frozenset() if reader._direct is None else reader._direct.levels & frozenset(range(len(slide.info.levels)))


def write_slide(path: Path, pyramid: Image | Sequence[Image], how: TiffSlide | None = None, **changes: Any) -> Path:
    """Write an image, or a pyramid of images (3 or 4 channels; the fourth is alpha, not premultiplied).

    ``changes`` are fields of `TiffSlide`, over those of ``how``.
    """
    how = TiffSlide(**{**(how.__dict__ if how else {}), **changes})
    levels = [pyramid] if isinstance(pyramid, np.ndarray) else list(pyramid)
    with tifffile.TiffWriter(path, bigtiff=how.bigtiff) as tiff:
        for number, level in enumerate(levels):
            options: dict[str, Any] = {"subfiletype": 0 if number == 0 or how.style == "aperio" else 1}
            if how.subifds and number == 0:
                options["subifds"] = len(levels) - 1
            tiff.write(
                _tiles(level, number, how) if how.tile else level,
                shape=level.shape,
                dtype=level.dtype,
                metadata=None,
                description=_description(level, number, how),
                iccprofile=how.icc_profile,
                **_layout(level, how),
                **_resolution(number, levels, how),
                **options,
            )
            if how.style == "aperio" and number == 0:
                _write_thumbnail(tiff, level)
    return path


def _write_thumbnail(tiff: tifffile.TiffWriter, level: Image) -> None:
    """The second page of an Aperio file, in strips; readers count on it."""
    thumbnail = np.ascontiguousarray(level[::8, ::8, :3])
    height, width = thumbnail.shape[:2]
    description = f"Aperio Image Library v11.2.1 \r\n-> {width}x{height} - |AppMag = 20"
    tiff.write(thumbnail, photometric="rgb", rowsperstrip=16, metadata=None, description=description)


def _layout(level: Image, how: TiffSlide) -> dict[str, Any]:
    options: dict[str, Any] = {"photometric": "rgb"}
    if level.shape[2] == 4:
        options["extrasamples"] = ["unassalpha"]
    if how.tile:
        options["tile"] = (how.tile, how.tile)
    else:
        options["rowsperstrip"] = 64
    if how.compression == "jpeg":
        options["compression"] = "jpeg"
        if how.photometric == "ycbcr":
            # Chroma subsampling as TIFF states it; 4:4:4 is left at the default of the tag.
            options["subsampling"] = {"444": (1, 1), "422": (2, 1), "420": (2, 2)}[how.subsampling]
        else:
            options["compressionargs"] = {"outcolorspace": "rgb"}
    elif how.compression != "none":
        options["compression"] = _CODES[how.compression]
        options["predictor"] = how.predictor
    return options


def write_exact(path: Path, image: Image) -> Path:
    """Write an image as an Aperio slide of two levels, whose pixels come back exactly."""
    return write_slide(path, halves(image, 2), style="aperio", compression="deflate", tile=256, mpp=0.5)


def _tiles(level: Image, number: int, how: TiffSlide) -> Iterator[bytes]:
    """Tiles in file order, padded by repeating the edge."""
    side = how.tile
    assert side is not None
    height, width = level.shape[:2]
    for row in range(-(-height // side)):
        for column in range(-(-width // side)):
            if (number, row, column) in how.missing:
                yield b""
                continue
            tile = level[row * side : (row + 1) * side, column * side : (column + 1) * side]
            tile = np.pad(tile, ((0, side - tile.shape[0]), (0, side - tile.shape[1]), (0, 0)), mode="edge")
            yield _encoded(np.ascontiguousarray(tile), how) + bytes(how.padding)


def _encoded(tile: Image, how: TiffSlide) -> bytes:
    if how.compression == "jpeg2000-ycbcr":
        ycbcr = np.asarray(PIL.Image.fromarray(tile).convert("YCbCr"))
        return bytes(imagecodecs.jpeg2k_encode(ycbcr, level=0, reversible=True, codecformat="j2k", mct=False))
    if how.compression.startswith("jpeg2000"):
        return bytes(imagecodecs.jpeg2k_encode(tile, level=60, codecformat="j2k"))
    if how.compression == "webp":
        return bytes(imagecodecs.webp_encode(tile, lossless=True))
    if how.compression == "jpegxl":
        return bytes(imagecodecs.jpegxl_encode(tile, lossless=True))
    if how.compression != "jpeg":
        data = imagecodecs.delta_encode(tile, axis=1).tobytes() if how.predictor else tile.tobytes()
        return bytes(_BYTE_ENCODERS[how.compression](data))
    stream, subsampling = ("RGB", None) if how.photometric == "rgb" else ("YCBCR", how.subsampling)
    return bytes(
        imagecodecs.jpeg8_encode(
            tile, level=how.quality, colorspace="RGB", outcolorspace=stream, subsampling=subsampling
        )
    )


def _description(level: Image, number: int, how: TiffSlide) -> str | None:
    if how.description is not None:
        return how.description if number == 0 else None
    if how.style == "generic":
        return None
    height, width = level.shape[:2]
    parts = [f"Aperio Image Library v11.2.1 \r\n{width}x{height} [0,0 {width}x{height}] (256x256) JPEG/RGB Q=70"]
    if how.magnification is not None:
        parts.append(f"AppMag = {how.magnification:g}")
    if isinstance(how.mpp, float):
        parts.append(f"MPP = {how.mpp:.4f}")
    return "|".join(parts)


def _resolution(number: int, levels: Sequence[Image], how: TiffSlide) -> dict[str, Any]:
    if how.dpi is not None:
        return {"resolution": (how.dpi, how.dpi), "resolutionunit": "INCH"}
    if how.style == "aperio" or how.mpp is None:
        return {"resolutionunit": "NONE"}
    x, y = how.mpp if isinstance(how.mpp, tuple) else (how.mpp, how.mpp)
    scale = levels[number].shape[1] / levels[0].shape[1]
    return {"resolution": (1e4 / x * scale, 1e4 / y * scale), "resolutionunit": "CENTIMETER"}
