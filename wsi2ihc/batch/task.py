"""One slide of a batch: what a child is told, as JSON, and what makes two tasks the same work."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..files import sha256_of_file
from ..geometry import Region
from ..pyramid import PyramidOptions
from ..runtime import versions
from ..translation.options import SMALLEST_MEMORY_BYTES, TranslateOptions

_WITHOUT_EFFECT = ("device", "workers", "overwrite", "preview", "max_memory_bytes", "batch_size", "band_px",
                   "resume")  # fmt: skip
"""Options that may differ between two runs whose pixels are the same, or are meant to be."""


@dataclass(frozen=True, slots=True)
class SlideTask:
    """What to do with one slide.

    number:   place in the manifest, from 0; the task's name between processes
    slide:    path or URL
    output:   the virtual slide
    model:    name or file
    mpp:      the slide's resolution, where it has to be stated
    options:  of the translation
    source:   what tells the slide from others: base name, quickhash, size in px, when the file was changed
    version:  of the model: SHA-256 of its file, or the name of a built-in
    series:   which image of the file, by its number; None: the largest RGB image (``source`` tells them apart)
    page:     which page of the file
    """

    number: int
    slide: str
    output: Path
    model: str
    mpp: float | None = None
    options: TranslateOptions = field(default_factory=TranslateOptions)
    source: str = ""
    version: str = ""
    series: int | None = None
    page: int | None = None

    @property
    def name(self) -> str:
        """Base name of the output."""
        return self.output.name

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all that the pixels of the output follow from: slide, model, options, program; no devices."""
        defaults = options_to_json(TranslateOptions())
        options = {
            name: value
            for name, value in options_to_json(self.options).items()
            if name not in _WITHOUT_EFFECT and value != defaults[name]  # so that a new option changes nothing
        }
        if self.options.tissue not in ("auto", "none"):
            options["tissue"] = sha256_of_file(Path(self.options.tissue))
        facts: dict[str, Any] = {
            "source": self.source, "mpp": self.mpp, "model": self.version, "options": options,
            "program": versions()["wsi2ihc"],
        }  # fmt: skip
        facts |= {name: value for name, value in (("series", self.series), ("page", self.page)) if value is not None}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """For the pipe to a child."""
        return {
            "number": self.number, "slide": self.slide, "output": str(self.output), "model": self.model,
            "mpp": self.mpp, "options": options_to_json(self.options), "source": self.source, "version": self.version,
            "series": self.series, "page": self.page,
        }  # fmt: skip

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> SlideTask:
        """The inverse of `to_json`."""
        return cls(**{**facts, "output": Path(facts["output"]), "options": options_from_json(facts["options"])})

    def with_share(self, processes: int) -> SlideTask:
        """The same task for one of several processes, which together keep to its bound for memory.

        None gets less than the least that a translation can do with.
        """
        if processes == 1:
            return self
        share = max(SMALLEST_MEMORY_BYTES, self.options.max_memory_bytes // processes)
        return dataclasses.replace(self, options=dataclasses.replace(self.options, max_memory_bytes=share))

    def smaller(self) -> SlideTask:
        """The same task with half the memory: after it has run out."""
        options = dataclasses.replace(
            self.options,
            batch_size=max(1, self.options.batch_size // 2),
            max_memory_bytes=max(SMALLEST_MEMORY_BYTES, self.options.max_memory_bytes // 2),
        )
        return dataclasses.replace(self, options=options)


def options_to_json(options: TranslateOptions) -> dict[str, Any]:
    """Options as JSON values."""
    plain = dataclasses.asdict(options)
    plain["tissue"] = str(options.tissue)
    plain["preview"] = None if options.preview is None else str(options.preview)
    return plain


def options_from_json(facts: Mapping[str, Any]) -> TranslateOptions:
    """The inverse of `options_to_json`."""
    region, preview = facts["region"], facts["preview"]
    return TranslateOptions(**{
        **facts,
        "region": None if region is None else Region(**region),
        "pyramid": PyramidOptions(**facts["pyramid"]),
        "preview": None if preview is None else Path(preview),
    })  # fmt: skip
