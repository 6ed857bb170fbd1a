"""Tiled compared with untiled output at several core sizes and grid shifts; seam metrics, with a control that must
fail.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from benchmarks.harness import Context, Row
from benchmarks.networks import checkpoint, tissue
from wsi2ihc.geometry import Region, RGBBatch, RGBImage, Size, ceil_to
from wsi2ihc.models.model_spec import Translator
from wsi2ihc.models.registry import Model, load_model, make_translator
from wsi2ihc.translation.seams import SeamMeter, SeamMetrics
from wsi2ihc.translation.stages import DeviceClock, FinishedCore, crop_cores, read_windows, translate_windows
from wsi2ihc.translation.windows import Plan, TissueGrid, WindowLayout, plan_windows

BACKGROUND = (243, 243, 243)
TILINGS = (
    (64, (0, 0)), (100, (0, 0)), (256, (0, 0)), (256, (4, 0)), (256, (36, 52)), (300, (0, 8)), (444, (128, 4)),
    (640, (0, 0)),
)  # fmt: skip
"""Core sizes, and shifts of the grid relative to the image."""


class Plane:
    """Image in an infinite plane of background."""

    def __init__(self, image: RGBImage) -> None:
        self.image = image
        self.frame = Region(0, 0, image.shape[1], image.shape[0])

    def __call__(self, region: Region) -> RGBImage:
        pixels = np.empty((region.height, region.width, 3), dtype=np.uint8)
        pixels[:] = BACKGROUND
        inside = region.intersection(self.frame)
        if not inside.is_empty:
            pixels[inside.slices_in(region)] = self.image[inside.slices_in(self.frame)]
        return pixels


def measure(context: Context) -> list[Row]:
    side = 300 if context.quick else 700
    image = tissue(context)[400 : 400 + side, 300 : 300 + side + 52]
    generator = load_model(checkpoint(context))
    exact = make_translator(generator, "cpu", "fp32", exact=True)
    whole = _whole(image, exact)
    rows = [_tiled_against_whole(image, whole, exact), _too_small_a_halo(image, whole, generator)]
    rows += _seams(context, exact)
    return rows


def _layout(translator: Translator) -> WindowLayout:
    return WindowLayout(translator.halo_px, 0, translator.stride_px, translator.multiple_px, 10**9)


def _plan(image: RGBImage, layout: WindowLayout, cell: Size, shift: tuple[int, int] = (0, 0)) -> Plan:
    """Return the whole image, with a shifted grid of cores."""
    extent = Region(-shift[0], -shift[1], image.shape[1] + shift[0], image.shape[0] + shift[1])
    everything = TissueGrid(np.ones((1, 1), dtype=np.bool_), (extent.x, extent.y), (extent.width, extent.height))
    return plan_windows(extent, everything, layout, cell)


def _cores(image: RGBImage, translator: Translator, plan: Plan) -> Iterator[FinishedCore]:
    with ThreadPoolExecutor(1) as executor:
        patches = read_windows(plan.windows, Plane(image), executor, 2)
        yield from crop_cores(translate_windows(patches, [translator], 1, DeviceClock()))


def _translated(image: RGBImage, translator: Translator, plan: Plan) -> RGBImage:
    result = np.zeros_like(image)
    frame = Region(0, 0, image.shape[1], image.shape[0])
    for core in _cores(image, translator, plan):
        part = core.window.core.intersection(frame)
        if not part.is_empty:
            result[part.slices_in(frame)] = core.pixels[part.slices_in(core.window.core)]
    return result


def _whole(image: RGBImage, translator: Translator) -> RGBImage:
    """Run one forward pass over the image with its background."""
    multiple = translator.multiple_px
    height, width = (ceil_to(length + 2 * translator.halo_px, multiple) for length in image.shape[:2])
    window = Plane(image)(Region(-translator.halo_px, -translator.halo_px, width, height))
    return translator(window[np.newaxis])[0][: image.shape[0], : image.shape[1]]


def _difference(a: RGBImage, b: RGBImage) -> int:
    return int(np.abs(a.astype(np.int16) - b).max())


def _tiled_against_whole(image: RGBImage, whole: RGBImage, translator: Translator) -> Row:
    found = {}
    for core, shift in TILINGS:
        plan = _plan(image, _layout(translator), Size(core, core), shift)
        found[f"core {core}, shift {shift}"] = _difference(_translated(image, translator, plan), whole)
    worst = max(found.values())
    measured = f"{worst} gray levels over {len(found)} tilings of {image.shape[1]}×{image.shape[0]} px of tissue"
    return Row("tiled against whole, ResNet-9 fp32 on CPU: greatest difference", "0", measured, worst == 0, found)


class ShortHalo:
    """Control that must fail: the same network with 16 px of context and background beyond."""

    halo_px, stride_px, is_exact, bytes_per_px = 16, 4, True, 0.0

    def __init__(self, translator: Translator) -> None:
        self.translator, self.multiple_px = translator, translator.multiple_px

    def __call__(self, windows: RGBBatch) -> RGBBatch:
        more = self.translator.halo_px - self.halo_px
        grown = np.pad(windows, ((0, 0), (more, more), (more, more), (0, 0)), mode="reflect")
        height, width = (ceil_to(length, self.multiple_px) - length for length in grown.shape[1:3])
        grown = np.pad(grown, ((0, 0), (0, height), (0, width), (0, 0)), mode="edge")
        rows, columns = windows.shape[1] - 2 * self.halo_px, windows.shape[2] - 2 * self.halo_px
        return self.translator(grown)[:, :rows, :columns]


def _too_small_a_halo(image: RGBImage, whole: RGBImage, generator: Model) -> Row:
    short = ShortHalo(make_translator(generator, "cpu", "fp32", exact=True))
    difference = _difference(_translated(image, short, _plan(image, _layout(short), Size(256, 256))), whole)
    return Row("control: the same with a halo of 16 px", "must show", f"{difference} gray levels", difference > 2)


def _seams(context: Context, exact: Translator) -> list[Row]:
    pixels = tissue(context)
    if context.quick:
        pixels = pixels[1200:2400, 600:1800]
    generator = load_model(checkpoint(context, norm="instance"))
    per_tile = make_translator(generator, "cpu", "fp32", exact=False)
    figures = {name: _figures(pixels, translator) for name, translator in (("exact", exact), ("per tile", per_tile))}
    clean, control = figures["exact"], figures["per tile"]
    return [
        Row(
            "seam statistic, exact tiling (z)", "|z| ≤ 3", _formatted(clean), clean.z is not None and abs(clean.z) <= 3
        ),
        Row(
            "control: InstanceNorm per tile, no overlap (z)",
            "far above 3",
            _formatted(control),
            control.z is not None and control.z > 10,
        ),
    ]


def _figures(pixels: RGBImage, translator: Translator) -> SeamMetrics:
    layout = WindowLayout(translator.halo_px, 0, translator.stride_px, translator.multiple_px, 10**9)
    plan = _plan(pixels, layout, Size(256, 256))
    meter = SeamMeter(plan)
    for _ in meter.watch(_cores(pixels, translator, plan)):
        pass
    return meter.metrics()


def _formatted(figures: SeamMetrics) -> str:
    return (
        f"x {figures.z_x:+.2f}, y {figures.z_y:+.2f}; gradient across borders over elsewhere "
        f"{figures.contrast_x:.3f}, {figures.contrast_y:.3f}; {figures.borders} borders"
    )
