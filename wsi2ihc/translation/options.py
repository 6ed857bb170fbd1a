"""Options of a translation, and the names of its progress stages."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from ..errors import OptionError
from ..geometry import Region
from ..pyramid import PyramidOptions
from ..text import MOST_SEED, MOST_WORKERS, auto_option, check_bounds, flag, option, parse_bytes, parse_region

Precision = Literal["auto", "fp32", "bf16", "fp16"]
Statistics = Literal["trained", "slide"]
Blend = Literal["auto", "exact", "overlap"]
ColorPolicy = Literal["keep", "srgb"]
ReadErrorPolicy = Literal["fail", "background"]

GIB = 1024**3
SMALLEST_MEMORY_BYTES = GIB
"""Smallest bound that holds Python, the libraries and the buffers of the smallest plan."""


@dataclass(frozen=True, slots=True)
class TranslateOptions:
    """Options of `translate`; the text of each field is the help of its command-line option.

    A batch size, number of workers, overlap, core size or band height of 0 means "auto".
    """

    region: Region | None = option(
        None, "Translate only this part of the slide (level-0 px).", parse=parse_region, metavar="X,Y,W,H"
    )
    device: str = option("auto", "auto, cpu, cuda, cuda:0,1 or mps.")
    precision: Precision = option("auto", "Number format of the network; auto is the fastest that the device supports.")
    batch_size: int = auto_option("Windows per call of the network.")
    workers: int = auto_option("Threads that read and encode.")
    max_memory_bytes: int = option(
        4 * GIB, "Memory bound of the process.", name="max_memory", parse=parse_bytes, metavar="SIZE", shown="4G"
    )
    tissue: str | Path = option("auto", "auto, none (translate everything) or a mask file (GeoJSON, PNG).")
    statistics: Statistics = option(
        "trained", "Normalization statistics: of the model, or of this slide (can change the strength of the stain)."
    )
    blend: Blend = option("auto", "Keep exact cores or blend overlapping windows; auto is exact for local networks.")
    overlap_px: int = auto_option("Overlap of neighboring windows in px, when blended.", name="overlap")
    core_px: int = auto_option("Side of the cores that the slide is divided into, in px.", name="core_size")
    pyramid: PyramidOptions = field(default_factory=PyramidOptions)
    icc: ColorPolicy = option(
        "keep", "Keep the colors and profile of the slide, or convert them to sRGB before translating."
    )
    on_read_error: ReadErrorPolicy = option("fail", "Fail, or fill unreadable areas with the background color.")
    seed: int = option(0, "Seed of random sampling.")
    overwrite: bool = option(False, "Replace an existing output.")
    preview: Path | None = option(None, "Also write a PNG with source and result side by side.")
    resume: bool = option(
        False, "Keep finished bands in a hidden folder beside the output and resume from it; processes may share it."
    )
    band_px: int = auto_option("Height of a band in px; at most one is repeated by --resume.", name="band_height")

    def __post_init__(self) -> None:
        choices = {
            "precision": Precision, "statistics": Statistics, "blend": Blend, "icc": ColorPolicy,
            "on_read_error": ReadErrorPolicy,
        }  # fmt: skip
        for name, literal in choices.items():
            if (value := getattr(self, name)) not in get_args(literal):
                raise OptionError(f"{flag(name)} {value!r} is not one of {', '.join(get_args(literal))}")
        if re.fullmatch(r"auto|cpu|mps|cuda(:\d{1,3}(,\d{1,3})*)?", self.device.strip().lower()) is None:
            raise OptionError(f"--device {self.device!r} is not auto, cpu, cuda, cuda:0,1 or mps")
        check_bounds(self, {"batch_size": (0, 65_536), "workers": (0, MOST_WORKERS), "seed": (0, MOST_SEED)})
        if not 0 <= self.overlap_px <= 8192:
            raise OptionError(f"--overlap {self.overlap_px} is not between 0 and 8192 px")
        if self.core_px and not 16 <= self.core_px <= 8192:
            raise OptionError(f"--core-size {self.core_px} is not between 16 and 8192 px")
        if self.band_px and not 16 <= self.band_px <= 65536:
            raise OptionError(f"--band-height {self.band_px} is not between 16 and 65536 px")
        if self.max_memory_bytes < SMALLEST_MEMORY_BYTES:
            raise OptionError(f"--max-memory {self.max_memory_bytes:,} bytes is too small: allow at least 1 GiB")
        if self.overlap_px and self.blend == "exact":
            raise OptionError("--overlap requires blending; remove it or --blend exact")
        if not isinstance(self.region, Region | None):
            raise TypeError(f"a region is a wsi2ihc.geometry.Region(x, y, width, height), not {self.region!r:.80}")
        if self.region is not None and self.region.is_empty:
            raise OptionError(f"--region {self.region} is empty")


TRANSLATING = "translating"
"""Stage in which windows are translated; ``done`` and ``total`` are their px. With bands it alternates with others."""

WRITING = "writing the file"
"""Stage in which finished bands are assembled."""

CHECKING = "checking the file"
"""Stage in which the output is read back."""

WAITING = "waiting for other processes"
"""Stage in which other processes translate the missing bands or assemble the output."""
