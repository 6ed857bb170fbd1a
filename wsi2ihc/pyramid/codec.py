"""From the pixels of a tile to its bytes in the file, and the TIFF tags that tell readers how to undo it.

Traps that cost others their colours:

- The tag of a JPEG tile in YCbCr must say YCbCr. tifffile writes it so, although its argument is named "rgb" (that is
  the colour space of the pixels before encoding). Tagged as RGB, OpenSlide and libvips show wrong colours.
- YCbCrSubSampling (1, 1) makes Bio-Formats convert 4:4:4 twice: red reads as white. The decoder takes the factors from
  the JPEG stream anyway, so 4:4:4 is tagged (2, 2). That is also the default of the tag, but it must not be left out:
  libtiff then warns whenever the file is opened, and with it only when pixels are read.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import imagecodecs
import numpy as np

from ..arrays import RGBImage
from .options import PyramidOptions, Subsampling

Encode = Callable[[RGBImage], bytes]
"""From the pixels of a whole tile to its bytes; thread-safe, and free of the GIL while it works."""

DEFLATE_LEVEL = 6
TAGGED_SUBSAMPLING: dict[Subsampling, tuple[int, int]] = {"420": (2, 2), "422": (2, 1), "444": (2, 2)}
"""What tag 530 says for each subsampling of the stream."""


def make_encoder(options: PyramidOptions) -> Encode:
    """The function that encodes tiles as these options want it."""
    if options.compression == "jpeg":
        return partial(_encode_jpeg, quality=options.quality, subsampling=options.subsampling)
    return _encode_deflate


def tiff_compression(options: PyramidOptions) -> dict[str, Any]:
    """Arguments for `tifffile.TiffWriter.write` that describe what the encoder makes."""
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
    # TIFF's predictor 2: each sample less the same sample of the pixel to its left, modulo 256
    differences = np.asarray(imagecodecs.delta_encode(pixels, axis=1))
    return bytes(imagecodecs.deflate_encode(differences.tobytes(), level=DEFLATE_LEVEL))
