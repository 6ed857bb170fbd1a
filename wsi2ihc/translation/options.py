"""How to translate one slide: every choice a user has, checked when it is made."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ..errors import OptionError
from ..geometry import Region
from ..notation import MOST_SEED, MOST_WORKERS, check_bounds
from ..pyramid import PyramidOptions

Precision = Literal["auto", "fp32", "bf16", "fp16"]
Statistics = Literal["trained", "slide"]
Blend = Literal["auto", "exact", "overlap"]
ColourPolicy = Literal["keep", "srgb"]
ReadErrorPolicy = Literal["fail", "glass"]

GIB = 1024**3
SMALLEST_MEMORY_BYTES = GIB
"""Python, the libraries and the buffers of the smallest plan fit in this; less cannot be promised."""


@dataclass(frozen=True, slots=True)
class TranslateOptions:
    """Options of `translate`; the fields are those of the command line.

    region:           what to translate, in level-0 px; None for everything inside the slide's bounds
    device:           "auto", "cpu", "cuda", "cuda:0,1" or "mps"
    precision:        number format of the network; "auto" takes the fastest that the device does well
    batch_size:       windows per call of the network; 0 chooses by device
    workers:          threads that read, encode and reduce; 0 for one per core
    max_memory_bytes: bound for the whole process on the host
    tissue:           "auto", "none" (everything is tissue) or a mask file (GeoJSON, PNG)
    statistics:       "trained" keeps the model's normalisation statistics, "slide" estimates them on this slide
    blend:            "exact" keeps cores, "overlap" blends windows; "auto" is exact where the network is local
    overlap_px:       px that neighbouring windows share when blended; 0 chooses
    core_px:          side of the cells that the slide is divided into; 0 searches for the least work
    pyramid:          how the output is stored
    icc:              "keep" the slide's colours and profile, or convert them to sRGB before translating
    on_read_error:    "fail", or take unreadable places for glass and count them
    seed:             of everything drawn at random (the sample for statistics)
    overwrite:        replace an output that is there
    preview:          PNG to write with source and result side by side, or None
    resume:           keep what is done in a hidden folder beside the output, and go on with what is there
    band_px:          rows of px that are done at a time (`resume`, OME-Zarr); 0 chooses
    """

    region: Region | None = None
    device: str = "auto"
    precision: Precision = "auto"
    batch_size: int = 0
    workers: int = 0
    max_memory_bytes: int = 4 * GIB
    tissue: str | Path = "auto"
    statistics: Statistics = "trained"
    blend: Blend = "auto"
    overlap_px: int = 0
    core_px: int = 0
    pyramid: PyramidOptions = field(default_factory=PyramidOptions)
    icc: ColourPolicy = "keep"
    on_read_error: ReadErrorPolicy = "fail"
    seed: int = 0
    overwrite: bool = False
    preview: Path | None = None
    resume: bool = False
    band_px: int = 0

    def __post_init__(self) -> None:
        _one_of("--precision", self.precision, ("auto", "fp32", "bf16", "fp16"))
        if re.fullmatch(r"auto|cpu|mps|cuda(:\d{1,3}(,\d{1,3})*)?", self.device.strip().lower()) is None:
            raise OptionError(f"--device {self.device!r} is not auto, cpu, cuda, cuda:0,1 or mps")
        _one_of("--statistics", self.statistics, ("trained", "slide"))
        _one_of("--blend", self.blend, ("auto", "exact", "overlap"))
        _one_of("--icc", self.icc, ("keep", "srgb"))
        _one_of("--on-read-error", self.on_read_error, ("fail", "glass"))
        check_bounds(self, {"batch_size": (0, 65_536), "workers": (0, MOST_WORKERS), "seed": (0, MOST_SEED)})
        if not 0 <= self.overlap_px <= 8192:
            raise OptionError(f"--overlap {self.overlap_px} is not between 0 and 8192 px")
        if self.core_px and not 16 <= self.core_px <= 8192:
            raise OptionError(f"--core-size {self.core_px} is not between 16 and 8192 px")
        if self.band_px and not 16 <= self.band_px <= 65536:
            raise OptionError(f"--band-height {self.band_px} is not between 16 and 65536 px")
        if self.max_memory_bytes < SMALLEST_MEMORY_BYTES:
            raise OptionError(f"--max-memory {self.max_memory_bytes:,} bytes is too little: allow at least 1 GiB")
        if self.overlap_px and self.blend == "exact":
            raise OptionError("--overlap has no meaning with --blend exact: nothing is blended")
        if not isinstance(self.region, Region | None):
            raise TypeError(f"a region is a wsi2ihc.geometry.Region(x, y, width, height), not {self.region!r:.80}")
        if self.region is not None and self.region.is_empty:
            raise OptionError(f"--region {self.region} is empty")


def _one_of(option: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise OptionError(f"{option} {value!r} is not one of {', '.join(choices)}")
