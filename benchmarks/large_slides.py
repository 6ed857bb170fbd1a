"""Large slides for benchmarks, created from a small one.

Run before measuring; the files are kept in the work folder and made once.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np


def gigapixel_slide(source: Path, path: Path, *, width: int = 36_000, height: int = 30_000, mpp: float = 0.499) -> Path:
    """Write a tiled-JPEG pyramid of ``width`` × ``height`` px from mirrored, repeated pixels of the source slide.

    256 px tiles, quality 85, each level half the last, as OpenSlide's generic TIFF reader likes.
    """
    if path.exists():
        return path
    small = _rgb(source)
    mirrored = small.join(small.fliphor(), "horizontal").join(
        small.flipver().join(small.flipver().fliphor(), "horizontal"), "vertical"
    )
    across, down = -(-width // mirrored.width), -(-height // mirrored.height)
    large = mirrored.replicate(across, down).crop(0, 0, width, height)
    partial = path.with_suffix(".partial.tif")
    large.tiffsave(
        str(partial), compression="jpeg", Q=85, tile=True, tile_width=256, tile_height=256, pyramid=True,
        bigtiff=True, xres=1000 / mpp, yres=1000 / mpp, resunit="cm",
    )  # fmt: skip
    partial.rename(path)
    return path


def _rgb(source: Path):  # type: ignore[no-untyped-def]
    import openslide
    import pyvips

    with openslide.OpenSlide(str(source)) as slide:
        pixels = np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB"))
    return pyvips.Image.new_from_memory(pixels.tobytes(), pixels.shape[1], pixels.shape[0], 3, "uchar").copy(
        interpretation="srgb"
    )
