"""What a prepared translation would do, without doing it."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..plan import Window
from ..pyramid import is_zarr
from .job import Job
from .layout import resident_bytes
from .report import describe_model

READ_AND_WRITE_PX_PER_S = 60e6
"""Decoding, encoding and reducing together, per core; measured on two cores of a server, JPEG to JPEG."""

BITS_PER_PX = {"jpeg": 2.4, "deflate": 14.0, "zstd": 14.0}
"""Measured on one real field, JPEG at quality 85 and 4:2:2. A pyramid has a third more pixels than its level 0."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """An estimate: sizes in working px, memory in bytes, time in seconds."""

    model: dict[str, Any]
    width: int
    height: int
    mpp: tuple[float, float]
    tissue_share: float
    windows: int
    cell: tuple[int, int]
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
        """A dictionary that `json.dumps` takes as it is."""
        return dataclasses.asdict(self)


def forecast(job: Job, output: Path) -> Forecast:
    """Estimate memory, time, and what an output of this name takes; time by translating the largest window once."""
    compression = "zstd" if is_zarr(output) else job.options.pyramid.compression
    plan = job.plan
    largest = max(plan.windows, key=lambda window: window.region.area_px)
    per_px_s = _seconds_per_px(job, largest) / len(job.machine.translators)
    others_s = plan.window_px / (READ_AND_WRITE_PX_PER_S * job.workers)
    generator_s = per_px_s * plan.window_px
    # On a CPU the network and the rest share the cores; on a GPU they run side by side.
    seconds = max(generator_s, others_s) if job.machine.on_gpu else generator_s + others_s
    in_flight = 3 * largest.region.area_px * (2 * job.workers + 4 * job.batch_size + 4)
    network = 0 if job.machine.on_gpu else job.batch_size * job.machine.bytes_per_px * largest.region.area_px
    tile_px = job.options.pyramid.tile_px
    open_rows = plan.cell.height // tile_px + 3
    open_tiles = int(job.plan.occupied_tiles(tile_px).sum(axis=1).max()) * open_rows * 3 * tile_px**2 * 3 // 2
    return Forecast(
        model=describe_model(job.generator),
        width=plan.extent.width,
        height=plan.extent.height,
        mpp=job.scene.grid.mpp,
        tissue_share=job.scene.tissue_px / plan.extent.area_px,
        windows=len(plan.windows),
        cell=(plan.cell.width, plan.cell.height),
        window_px=plan.window_px,
        kept_px=plan.kept_px,
        redundancy=plan.window_px / plan.kept_px,
        kept_over_tissue=plan.kept_px / max(job.scene.tissue_px, 1.0),
        blend=job.blend,
        device=job.machine.device,
        precision=job.machine.precision,
        fill=job.fill,
        memory_bytes=int(resident_bytes() + in_flight + network + open_tiles),
        seconds=seconds,
        output_bytes=int(plan.kept_px * 4 / 3 * BITS_PER_PX[compression] / 8),
        warnings=job.warnings,
    )


def _seconds_per_px(job: Job, window: Window) -> float:
    """The generator's time per px of a window, warm."""
    pixels = np.empty((1, window.region.height, window.region.width, 3), dtype=np.uint8)
    pixels[:] = job.scene.mask.glass
    translator = job.machine.translators[0]
    best = float("inf")
    for _ in range(2):
        started = time.perf_counter()
        translator(pixels)
        best = min(best, time.perf_counter() - started)
    return best / window.region.area_px
