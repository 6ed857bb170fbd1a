"""Window and batch size from the available memory and the receptive field."""

from __future__ import annotations

import math
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..errors import NoTissueError
from ..geometry import RGB, Size, ceil_to
from ..models.model_spec import Translator
from ..system import cores
from .inference_setup import InferenceSetup, PreparedSlide
from .options import GIB, TranslateOptions
from .windows import Plan, WindowLayout, plan_windows, smallest_window_px

LARGEST_WINDOW_PX = 2_600_000
"""Larger windows save little redundant work (a core of 1448 px with a halo of 84 costs 1.25 times its pixels), make
progress coarse, and delay the first and last stages, during which the device is idle."""

BATCH_OF_SMALL_WINDOWS_PX = 4_000_000
"""Approximate pixels of an automatic batch on a GPU."""

SMALLEST_OVERLAP_PX = 128

OPEN_ROWS_PX = 3_000
"""Height of the open rows across the slide: a row of cores, the tiles that it overlaps, and the lower levels."""

WAITING_COPIES = 16
"""Approximate number of windows that wait as uint8 between reading and encoding, for each one in the network."""


def choose_layout(inference: InferenceSetup, options: TranslateOptions, width_px: int) -> WindowLayout:
    """Choose the window layout: with a halo if the translation is exact, else overlapping."""
    translator, overlap_px = inference.translators[0], 0
    if options.blend == "overlap" or not translator.is_exact:
        step = 2 * translator.stride_px
        overlap_px = ceil_to(options.overlap_px or max(SMALLEST_OVERLAP_PX, step), step)
    layout = WindowLayout(
        translator.halo_px,
        overlap_px,
        translator.stride_px,
        translator.multiple_px,
        tile_px=options.pyramid.tile_px,
    )
    # Windows of a network with a large receptive field are large, however small their cores.
    limit = max(LARGEST_WINDOW_PX, smallest_window_px(layout))
    return replace(layout, max_window_px=min(limit, _affordable_px(inference, options, width_px)))


def _affordable_px(inference: InferenceSetup, options: TranslateOptions, width_px: int) -> int:
    """Return the largest window in px within the memory bound of the host, or the free memory of a GPU.

    Host memory is first reduced by the present size of the process and the open rows of tiles and windows. The network
    gets half of the rest, the allocator needs the other half.
    """
    batch = max(options.batch_size, 1)
    if inference.memory_bytes is not None:
        return int(max(1, 0.7 * inference.memory_bytes / (inference.bytes_per_px * batch + 1)))
    open_rows_bytes = 3 * width_px * OPEN_ROWS_PX
    free_bytes = options.max_memory_bytes - resident_bytes() - open_rows_bytes
    network_bytes = max(free_bytes, GIB // 8) / 2
    return int(max(1, network_bytes / (inference.bytes_per_px * batch + 3 * WAITING_COPIES)))


def resident_bytes() -> int:
    """Return the resident memory of this process; its peak where the system does not report the present one."""
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):
        return _peak_bytes()


def _peak_bytes() -> int:
    try:
        import resource
    except ImportError:  # Windows
        return GIB // 2
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def make_plan(
    prepared: PreparedSlide, layout: WindowLayout, options: TranslateOptions, name: str, core_size: Size | None = None
) -> Plan:
    """Plan the windows, with cores of the given size, or else of the requested size or the one with the least work.

    Raises `NoTissueError` if the extent holds no tissue.
    """
    plan = plan_windows(prepared.extent, prepared.covered, layout, core_size or requested_core_size(layout, options))
    if not plan.windows or not prepared.tissue_px:
        where = "on it" if options.region is None else f"in --region {options.region}"
        raise NoTissueError(f"{name}: no tissue {where}; choose another region, or --tissue none")
    return plan


def requested_core_size(layout: WindowLayout, options: TranslateOptions) -> Size | None:
    """Return the core size of the options, rounded up to the stride; None if it is to be searched for."""
    side = ceil_to(options.core_px, layout.stride_px)
    return Size(side, side) if side else None


def background_output(translator: Translator, layout: WindowLayout, background: RGB) -> RGB:
    """Translate a window of background, and return its mean color.

    The mean is taken over whole periods of the stride, since upsampling can add a fine pattern to flat input.
    """
    side = ceil_to(2 * layout.halo_px + 4 * layout.stride_px + 64, math.lcm(layout.multiple_px, layout.stride_px))
    window = np.empty((1, side, side, 3), dtype=np.uint8)
    window[:] = background
    output = translator(window)[0]
    period = layout.stride_px
    inner = output[output.shape[0] // 4 :, output.shape[1] // 4 :]  # away from padding
    rows, columns = (max(period, length // 2 // period * period) for length in inner.shape[:2])
    mean = inner[:rows, :columns].reshape(-1, 3).mean(axis=0)
    return tuple(int(value) for value in np.rint(mean))  # type: ignore[return-value]


def default_workers() -> int:
    """Return the number of usable CPU cores, at most 32: more threads only wait for the disk."""
    return min(cores(), 32)


def batch_size(options: TranslateOptions, plan: Plan, on_gpu: bool) -> int:
    """Return the windows per call: as requested, else one on a CPU and about four megapixels on a GPU."""
    if options.batch_size:
        return options.batch_size
    if not on_gpu:
        return 1
    return max(1, BATCH_OF_SMALL_WINDOWS_PX * len(plan.windows) // max(plan.window_px, 1))
