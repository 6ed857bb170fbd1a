"""Report of a translation, provenance of its output, and the estimate that precedes it."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import system
from ..geometry import RGB, Region, Size
from ..models.registry import Model
from ..pyramid import ImageDescription, PyramidOptions, is_zarr
from .job import TranslationJob
from .options import TranslateOptions
from .output_files import provenance
from .seams import SeamMetrics
from .window_size import resident_bytes
from .windows import Window

DISCLAIMER = "Computed from H&E by a neural network or color model: research use only, not for diagnosis."


@dataclass(frozen=True, slots=True)
class TranslateReport:
    """Report of a finished translation; lengths in px of level 0 of the source or output, times in seconds."""

    source: dict[str, Any]
    model: dict[str, Any]
    options: dict[str, Any]
    output_name: str
    output_size: Size
    output_mpp: tuple[float, float]
    output_levels: tuple[Size, ...]
    output_bytes: int
    output_sha256: str  # hash of the OME-TIFF, or of the files of an OME-Zarr (`wsi2ihc.files.sha256_of`)
    extent: Region
    position_um: tuple[float, float]  # offset of the output from the top left corner of level 0 of the slide
    tissue_share: float
    # classes and names in the mask file, if any: "class", "name", "areas", "ignored"
    annotations: tuple[dict[str, Any], ...]
    background: RGB  # background color of the slide
    fill: RGB  # color of untranslated area
    plan: dict[str, Any]
    device: str
    precision: str
    blend: str
    seams: SeamMetrics | None  # seam metrics; None if the model translates each pixel on its own
    seconds: dict[str, float]  # times by step; "run" and "generator" are sums over all processes
    mpx_per_s: float
    unreadable_regions: int
    warnings: tuple[str, ...]
    versions: dict[str, str]
    fingerprint: str  # hash of everything that determines the pixels (see `translation_fingerprint`)
    created: str

    def to_json(self) -> dict[str, Any]:
        """Convert to a dictionary for `json.dumps`."""
        plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self), default=str))
        if self.seams is not None:
            plain["seams"]["z"] = self.seams.z
        plain["disclaimer"] = DISCLAIMER
        return plain

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> TranslateReport:
        """Invert `to_json`; `KeyError`, `TypeError` or `ValueError` if the values are invalid."""
        seams = values["seams"]
        if seams is not None:
            seams = SeamMetrics(**{one.name: seams[one.name] for one in dataclasses.fields(SeamMetrics)})
        return cls(**{
            **{one.name: values[one.name] for one in dataclasses.fields(cls)},
            "output_size": Size(**values["output_size"]),
            "output_mpp": tuple(values["output_mpp"]),
            "position_um": tuple(values["position_um"]),
            "output_levels": tuple(Size(**size) for size in values["output_levels"]),
            "extent": Region(**values["extent"]),
            "annotations": tuple(values["annotations"]),
            "background": tuple(values["background"]),
            "fill": tuple(values["fill"]),
            "seams": seams,
            "warnings": tuple(values["warnings"]),
        })  # fmt: skip


def versions() -> dict[str, str]:
    """Return the versions of Python and of the installed libraries that affect the output."""
    return system.versions("torch")


def describe_model(generator: Model) -> dict[str, Any]:
    """Describe a generator as JSON values."""
    description: dict[str, Any] = {
        "name": generator.name,
        "version": generator.version,
        "channel": generator.channel_name,
        "stain": generator.stain,
        "mpp": generator.mpp,
        "license": generator.license,
        "description": generator.description,
    }
    if generator.spec is not None:
        description["spec"] = json.loads(generator.spec.to_json())
    return description


def options_for_report(options: TranslateOptions, output: str) -> dict[str, Any]:
    """Return the options that determine an output, as JSON values without paths."""
    plain = dataclasses.asdict(options)
    for name in ("preview", "overwrite", "resume", "band_px"):
        plain.pop(name)
    if plain["tissue"] not in ("auto", "none"):
        plain["tissue"] = Path(plain["tissue"]).suffix.lstrip(".") + " mask"
    plain["pyramid"] = _storage_options(options.pyramid, output)
    return plain


def is_stored_as(known: Mapping[str, Any], output: Path, requested: PyramidOptions) -> bool:
    """Return whether an output with the reported options ``known`` is stored as ``requested``.

    The tile size is ignored: it is part of the fingerprint, and limited for small images.
    """
    return {**known, "tile_px": 0} == {**_storage_options(requested, output.name), "tile_px": 0}


def unused_in_zarr(pyramid: PyramidOptions) -> list[str]:
    """List the chosen command-line options that an OME-Zarr ignores."""
    default = dataclasses.asdict(PyramidOptions(tile_px=pyramid.tile_px))
    chosen = dataclasses.asdict(pyramid).items() - default.items()
    return [f"--{name.replace('_', '-')}" for name in default if name in dict(chosen)]


def _storage_options(pyramid: PyramidOptions, output: str) -> dict[str, Any]:
    """Return the storage options that apply to an output."""
    if is_zarr(Path(output)):
        return {"tile_px": pyramid.tile_px, "compression": "zstd"}
    return dataclasses.asdict(pyramid)


def describe_image(job: TranslationJob, name: str) -> ImageDescription:
    """Describe the output ``name`` of a job."""
    info, grid, extent = job.slide.info, job.prepared.grid, job.plan.extent
    model = describe_model(job.generator)
    entries = {
        "model": model["name"],
        "model version": model["version"],
        "stain": model["stain"] or "",
        "device": job.inference.device,
        "precision": job.inference.precision,
        "blend": job.blend,
    }
    # A coarser working grid corresponds to a weaker objective.
    magnification = None if info.magnification is None else info.magnification / grid.downsample[0]
    return ImageDescription(
        name=name,
        size=extent.size,
        mpp=grid.mpp,
        magnification=magnification,
        channel=job.generator.channel_name,
        description=caption(job),
        position_um=(extent.x * grid.mpp[0], extent.y * grid.mpp[1]) if job.options.region else None,
        provenance=provenance(info, entries, options_for_report(job.options, name), versions(), DISCLAIMER),
    )


def caption(job: TranslationJob) -> str:
    """Describe the result, its slide, and that it is computed, for viewers that show nothing else."""
    generator = job.generator
    return f"{generator.channel_name} of {job.slide.info.name}. {generator.description.removesuffix('.')}. {DISCLAIMER}"


READ_AND_WRITE_PX_PER_S = 60e6
"""Speed of decoding, encoding and reducing together, per core; measured on two cores of a server, JPEG to JPEG."""

BITS_PER_PX = {"jpeg": 2.4, "deflate": 14.0, "zstd": 14.0}
"""Measured on a real field, JPEG at quality 85 and 4:2:2. The lower levels add a third of the pixels of level 0."""


@dataclass(frozen=True, slots=True)
class TranslationEstimate:
    """Estimated effort of a translation: sizes in working px, memory in bytes, time in seconds."""

    model: dict[str, Any]
    width: int
    height: int
    mpp: tuple[float, float]
    tissue_share: float
    windows: int
    core_size: tuple[int, int]
    window_px: int
    kept_px: int
    redundancy: float
    kept_over_tissue: float
    blend: str
    device: str
    precision: str
    fill: tuple[int, int, int]
    memory_bytes: int
    seconds: float
    output_bytes: int
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Convert to a dictionary for `json.dumps`."""
        return dataclasses.asdict(self)


def estimate_translation(job: TranslationJob, output: Path) -> TranslationEstimate:
    """Estimate memory, time and output size of a job. The largest window is translated to measure the speed."""
    compression = _storage_options(job.options.pyramid, output.name)["compression"]
    plan = job.plan
    largest = max(plan.windows, key=lambda window: window.region.area_px)
    per_px_s = _seconds_per_px(job, largest) / len(job.inference.translators)
    others_s = plan.window_px / (READ_AND_WRITE_PX_PER_S * job.workers)
    model_s = per_px_s * plan.window_px
    # The network shares a CPU with reading and writing; on a GPU they run concurrently.
    seconds = max(model_s, others_s) if job.inference.on_gpu else model_s + others_s
    in_flight = 3 * largest.region.area_px * (2 * job.workers + 4 * job.batch_size + 4)
    network = 0 if job.inference.on_gpu else job.batch_size * job.inference.bytes_per_px * largest.region.area_px
    tile_px = job.options.pyramid.tile_px
    open_rows = plan.core_size.height // tile_px + 3
    open_tiles = int(job.plan.occupied_tiles(tile_px).sum(axis=1).max()) * open_rows * 3 * tile_px**2 * 3 // 2
    return TranslationEstimate(
        model=describe_model(job.generator),
        width=plan.extent.width,
        height=plan.extent.height,
        mpp=job.prepared.grid.mpp,
        tissue_share=job.prepared.tissue_px / plan.extent.area_px,
        windows=len(plan.windows),
        core_size=(plan.core_size.width, plan.core_size.height),
        window_px=plan.window_px,
        kept_px=plan.kept_px,
        redundancy=plan.window_px / plan.kept_px,
        kept_over_tissue=plan.kept_px / max(job.prepared.tissue_px, 1.0),
        blend=job.blend,
        device=job.inference.device,
        precision=job.inference.precision,
        fill=job.fill,
        memory_bytes=int(resident_bytes() + in_flight + network + open_tiles),
        seconds=seconds,
        output_bytes=int(plan.kept_px * 4 / 3 * BITS_PER_PX[compression] / 8),
        warnings=job.warnings,
    )


def _seconds_per_px(job: TranslationJob, window: Window) -> float:
    """Measure the time of the generator per px of a window, after a warm-up."""
    pixels = np.empty((1, window.region.height, window.region.width, 3), dtype=np.uint8)
    pixels[:] = job.prepared.mask.background
    translator = job.inference.translators[0]
    best = float("inf")
    for _ in range(2):
        started = time.perf_counter()
        translator(pixels)
        best = min(best, time.perf_counter() - started)
    return best / window.region.area_px
