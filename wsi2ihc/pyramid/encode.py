"""Options of the output file, tile compression, and temporary storage for encoded tiles of lower levels."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import imagecodecs
import numpy as np

from ..errors import OptionError
from ..geometry import RGBImage
from ..text import option
from .levels import PyramidLevel

Compression = Literal["jpeg", "deflate"]
Subsampling = Literal["420", "422", "444"]

TILE_STEP_PX = 16
"""Sides of tiles are multiples of 16 (TIFF 6.0, section 15), which is also the largest JPEG block used (4:2:0)."""
LARGEST_TILE_PX = 4096


@dataclass(frozen=True, slots=True)
class PyramidOptions:
    """Options of `write_pyramid`; the text of each field is the help of its command-line option.

    `openslide_compatible` also chains the lower levels behind the first image; GDAL then lists each overview twice.
    """

    tile_px: int = option(512, "Side of the tiles of the output in px.", name="tile_size")
    compression: Compression = option("jpeg", "Compression of the output; deflate is lossless.")
    quality: int = option(85, "JPEG quality.", bounds=(1, 100))
    subsampling: Subsampling = option("422", "Chroma subsampling of JPEG.")
    openslide_compatible: bool = option(
        False, "Let OpenSlide read all levels, although the OME-TIFF specification forbids it."
    )

    def __post_init__(self) -> None:
        if not (TILE_STEP_PX <= self.tile_px <= LARGEST_TILE_PX) or self.tile_px % TILE_STEP_PX:
            raise OptionError(
                f"--tile-size {self.tile_px} cannot be used: "
                f"choose a multiple of {TILE_STEP_PX} from {TILE_STEP_PX} to {LARGEST_TILE_PX}"
            )
        if self.compression not in ("jpeg", "deflate"):
            raise OptionError(f"--compression {self.compression!r} is not one of jpeg, deflate")
        if not 1 <= self.quality <= 100:
            raise OptionError(f"--quality {self.quality} is not between 1 and 100")
        if self.subsampling not in ("420", "422", "444"):
            raise OptionError(f"--subsampling {self.subsampling!r} is not one of 420, 422, 444")


Encode = Callable[[RGBImage], bytes]  # encodes the pixels of a whole tile; thread-safe, and releases the GIL

DEFLATE_LEVEL = 6
TAGGED_SUBSAMPLING: dict[Subsampling, tuple[int, int]] = {"420": (2, 2), "422": (2, 1), "444": (2, 2)}
"""Value of tag 530 for each subsampling of the stream."""


def make_encoder(options: PyramidOptions) -> Encode:
    """Return the function that encodes tiles with these options."""
    if options.compression == "jpeg":
        return partial(_encode_jpeg, quality=options.quality, subsampling=options.subsampling)
    return _encode_deflate


def tiff_compression(options: PyramidOptions) -> dict[str, Any]:
    """Return the arguments of `tifffile.TiffWriter.write` that describe the encoded tiles."""
    if options.compression == "jpeg":
        return {"compression": "jpeg", "subsampling": TAGGED_SUBSAMPLING[options.subsampling]}
    return {"compression": "adobe_deflate", "predictor": 2}


def _encode_jpeg(pixels: RGBImage, quality: int, subsampling: Subsampling) -> bytes:
    return bytes(
        imagecodecs.jpeg8_encode(
            pixels, level=quality, colorspace="RGB", outcolorspace="YCBCR", subsampling=subsampling
        )
    )


def _encode_deflate(pixels: RGBImage) -> bytes:
    # TIFF predictor 2: each sample minus the same sample of the pixel to its left, modulo 256
    differences = np.asarray(imagecodecs.delta_encode(pixels, axis=1))
    return bytes(imagecodecs.deflate_encode(differences.tobytes(), level=DEFLATE_LEVEL))


class TileSpool:
    """Encoded tiles of lower levels in an anonymous temporary file, which is removed even if the process is killed.

    TIFF stores a lower level after level 0, but both are created at the same time. The file is in ``folder``, that of
    the output, which needs room for the same bytes anyway.

    Memory bound: 16 bytes a tile. Disk: about a third of level 0.
    """

    def __init__(self, folder: Path, levels: Sequence[PyramidLevel]) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (closed by close)
        self._lock = threading.Lock()
        self._end = 0
        self._starts = [np.zeros(level.occupied.size if number else 0, np.int64) for number, level in enumerate(levels)]
        self._lengths = [np.zeros_like(starts) for starts in self._starts]

    def put(self, level: int, index: int, data: bytes) -> None:
        """Store one tile, by its index in raster order. Thread-safe."""
        with self._lock:
            self._file.write(data)
            self._starts[level][index] = self._end
            self._lengths[level][index] = len(data)
            self._end += len(data)

    def get(self, level: int, index: int) -> bytes:
        """Return a stored tile. After the first call, no more tiles can be stored.

        Raises `KeyError` if the tile was not stored.
        """
        with self._lock:
            length = int(self._lengths[level][index])
            if not length:
                raise KeyError(f"tile {index} of level {level}")
            self._file.seek(int(self._starts[level][index]))
            return self._file.read(length)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> TileSpool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
