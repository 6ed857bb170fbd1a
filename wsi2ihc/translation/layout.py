"""In what pieces: windows as large as the memory allows, shaped as the network needs them."""

from __future__ import annotations

import math
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..arrays import RGB
from ..errors import NoTissueError
from ..generator.protocol import Translator
from ..geometry import Size, ceil_to
from ..plan import Layout, Plan, plan_windows, smallest_window_px
from ..runtime import cores
from .machine import Machine
from .options import GIB, TranslateOptions
from .scene import Scene

LARGEST_WINDOW_PX = 2_600_000
"""More would save little redundant work (a core of 1448 px with a halo of 84 costs 1.25 times its pixels), make the
progress coarse and the first and last window, which nothing overlaps with, long."""

BATCH_OF_SMALL_WINDOWS_PX = 4_000_000
"""With an automatic batch size, a batch on a GPU holds about this many pixels."""

SMALLEST_OVERLAP_PX = 128

OPEN_ROWS_PX = 3_000
"""Height of what is open at once across the slide: a row of cells, the tiles that it touches, and the lower levels."""

WAITING_COPIES = 16
"""About how many windows wait, as bytes, between reading and encoding, for each that the network works on."""


def choose_layout(machine: Machine, options: TranslateOptions, width_px: int) -> Layout:
    """Windows as this translator needs them: with a halo where it is exact, overlapping where it is not."""
    translator, overlap_px = machine.translators[0], 0
    if options.blend == "overlap" or not translator.is_exact:
        unit = 2 * translator.lattice_px
        overlap_px = ceil_to(options.overlap_px or max(SMALLEST_OVERLAP_PX, unit), unit)
    layout = Layout(
        translator.halo_px,
        overlap_px,
        translator.lattice_px,
        translator.multiple_px,
        tile_px=options.pyramid.tile_px,
    )
    # A network that sees far has large windows, however small their cells.
    worthwhile = max(LARGEST_WINDOW_PX, smallest_window_px(layout))
    return replace(layout, max_window_px=min(worthwhile, _affordable_px(machine, options, width_px)))


def _affordable_px(machine: Machine, options: TranslateOptions, width_px: int) -> int:
    """How many px a window may have under the bound for the host's memory, or within what is free on a GPU.

    Of the host's memory, half of what is left beside the process as it stands, and beside the rows of tiles and
    windows that are open across the slide at worst, is for the network; the rest is the allocator's slack.
    """
    batch = max(options.batch_size, 1)
    if machine.memory_bytes is not None:
        return int(max(1, 0.7 * machine.memory_bytes / (machine.bytes_per_px * batch + 1)))
    open_rows_bytes = 3 * width_px * OPEN_ROWS_PX
    left_bytes = options.max_memory_bytes - resident_bytes() - open_rows_bytes
    share = max(left_bytes, GIB // 8) / 2
    return int(max(1, share / (machine.bytes_per_px * batch + 3 * WAITING_COPIES)))


def resident_bytes() -> int:
    """Memory that this process holds now, or has held at most where the system does not say."""
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


def make_plan(scene: Scene, layout: Layout, options: TranslateOptions, name: str, cell: Size | None = None) -> Plan:
    """Plan the windows, in cells of the given size, or as the options and the least work have it.

    Raises
    ------
    NoTissueError
        If the extent holds no tissue.
    """
    plan = plan_windows(scene.extent, scene.covered, layout, cell or chosen_cell(layout, options))
    if not plan.windows or not scene.tissue_px:
        where = "on it" if options.region is None else f"in --region {options.region}"
        raise NoTissueError(f"{name}: no tissue {where}; choose another region, or --tissue none")
    return plan


def chosen_cell(layout: Layout, options: TranslateOptions) -> Size | None:
    """The size of cells that the options ask for, on the lattice; None where it is to be searched for."""
    side = ceil_to(options.core_px, layout.lattice_px)
    return Size(side, side) if side else None


def answer_to_glass(translator: Translator, layout: Layout, glass: RGB) -> RGB:
    """The generator's own answer to this slide's glass: what untranslated area is filled with.

    The mean over whole periods of the lattice, since an upsampling network may answer flat input with a fine pattern.
    """
    side = ceil_to(2 * layout.halo_px + 4 * layout.lattice_px + 64, math.lcm(layout.multiple_px, layout.lattice_px))
    window = np.empty((1, side, side, 3), dtype=np.uint8)
    window[:] = glass
    answer = translator(window)[0]
    period = layout.lattice_px
    inner = answer[answer.shape[0] // 4 :, answer.shape[1] // 4 :]  # away from the padding, where there is any
    rows, columns = (max(period, length // 2 // period * period) for length in inner.shape[:2])
    mean = inner[:rows, :columns].reshape(-1, 3).mean(axis=0)
    return tuple(int(value) for value in np.rint(mean))  # type: ignore[return-value]


def default_workers() -> int:
    """Cores that this process may use, 32 at most: more threads than that only wait for the disk."""
    return min(cores(), 32)


def batch_size(options: TranslateOptions, plan: Plan, on_gpu: bool) -> int:
    """Windows per call: as asked for, else one on a CPU and some four megapixels on a GPU."""
    if options.batch_size:
        return options.batch_size
    if not on_gpu:
        return 1
    return max(1, BATCH_OF_SMALL_WINDOWS_PX * len(plan.windows) // max(plan.window_px, 1))
