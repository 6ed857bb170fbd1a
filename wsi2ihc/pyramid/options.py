"""How the output is stored: every choice a user has, checked when it is made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..errors import OptionError

Compression = Literal["jpeg", "deflate"]
Subsampling = Literal["420", "422", "444"]

TILE_STEP_PX = 16
"""TIFF 6.0, section 15: sides of tiles are multiples of 16; that is also the largest JPEG block used here (4:2:0)."""
LARGEST_TILE_PX = 4096


@dataclass(frozen=True, slots=True)
class PyramidOptions:
    """Options of `write_pyramid`.

    tile_px:               side of the square tiles, px
    compression:           "jpeg", or "deflate": lossless, with horizontal prediction
    quality:               of JPEG, 1 to 100 on libjpeg's scale
    subsampling:           of JPEG's colour: "420" halves it both ways, "422" across only, "444" keeps it whole
    openslide_compatible:  also chain the lower levels behind the first image, so that OpenSlide finds them; the OME
                           specification forbids it and GDAL then lists each overview twice
    """

    tile_px: int = 512
    compression: Compression = "jpeg"
    quality: int = 85
    subsampling: Subsampling = "422"
    openslide_compatible: bool = False

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
