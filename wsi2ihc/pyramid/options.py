"""Options of the output file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..errors import OptionError
from ..text import option

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
