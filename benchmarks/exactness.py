"""Tiled against whole, at any core size and any shift of the grid; seams, and whether the figure would show them."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from benchmarks.harness import Context, Row
from benchmarks.networks import checkpoint, tissue
from wsi2ihc.arrays import RGBBatch, RGBImage
from wsi2ihc.generator.model import Generator, make_translator
from wsi2ihc.generator.protocol import Translator
from wsi2ihc.generator.registry import load_generator
from wsi2ihc.geometry import Region, Size, ceil_to
from wsi2ihc.plan import Layout, Plan, TissueGrid, plan_windows
from wsi2ihc.translation.blending import cut_cores
from wsi2ihc.translation.reading import read_windows
from wsi2ihc.translation.seams import SeamFigures, SeamMeter
from wsi2ihc.translation.stages import FinishedCore
from wsi2ihc.translation.translating import DeviceClock, translate_windows

GLASS = (243, 243, 243)
TILINGS = (
    (64, (0, 0)), (100, (0, 0)), (256, (0, 0)), (256, (4, 0)), (256, (36, 52)), (300, (0, 8)), (444, (128, 4)),
    (640, (0, 0)),
)  # fmt: skip
"""Side of the cores, and how far the grid of cells is moved against the picture."""


class Plane:
    """A picture lying in an endless plane of glass."""

    def __init__(self, picture: RGBImage) -> None:
        self.picture = picture
        self.frame = Region(0, 0, picture.shape[1], picture.shape[0])

    def __call__(self, region: Region) -> RGBImage:
        pixels = np.empty((region.height, region.width, 3), dtype=np.uint8)
        pixels[:] = GLASS
        inside = region.intersection(self.frame)
        if not inside.is_empty:
            pixels[inside.slices_in(region)] = self.picture[inside.slices_in(self.frame)]
        return pixels


def measure(context: Context) -> list[Row]:
    side = 300 if context.quick else 700
    picture = tissue(context)[400 : 400 + side, 300 : 300 + side + 52]
    generator = load_generator(checkpoint(context))
    exact = make_translator(generator, "cpu", "fp32", exact=True)
    whole = _whole(picture, exact)
    rows = [_tiled_against_whole(picture, whole, exact), _too_small_a_halo(picture, whole, generator)]
    rows += _seams(context, exact)
    return rows


def _layout(translator: Translator) -> Layout:
    return Layout(translator.halo_px, 0, translator.lattice_px, translator.multiple_px, 10**9)


def _plan(picture: RGBImage, layout: Layout, cell: Size, shift: tuple[int, int] = (0, 0)) -> Plan:
    """All of the picture, with the grid of cells moved against it."""
    extent = Region(-shift[0], -shift[1], picture.shape[1] + shift[0], picture.shape[0] + shift[1])
    everything = TissueGrid(np.ones((1, 1), dtype=np.bool_), (extent.x, extent.y), (extent.width, extent.height))
    return plan_windows(extent, everything, layout, cell)


def _cores(picture: RGBImage, translator: Translator, plan: Plan) -> Iterator[FinishedCore]:
    with ThreadPoolExecutor(1) as executor:
        patches = read_windows(plan.windows, Plane(picture), executor, 2)
        yield from cut_cores(translate_windows(patches, [translator], 1, DeviceClock()))


def _translated(picture: RGBImage, translator: Translator, plan: Plan) -> RGBImage:
    result = np.zeros_like(picture)
    frame = Region(0, 0, picture.shape[1], picture.shape[0])
    for core in _cores(picture, translator, plan):
        part = core.window.core.intersection(frame)
        if not part.is_empty:
            result[part.slices_in(frame)] = core.pixels[part.slices_in(core.window.core)]
    return result


def _whole(picture: RGBImage, translator: Translator) -> RGBImage:
    """One forward pass over the picture in its glass."""
    multiple = translator.multiple_px
    height, width = (ceil_to(length + 2 * translator.halo_px, multiple) for length in picture.shape[:2])
    window = Plane(picture)(Region(-translator.halo_px, -translator.halo_px, width, height))
    return translator(window[np.newaxis])[0][: picture.shape[0], : picture.shape[1]]


def _difference(a: RGBImage, b: RGBImage) -> int:
    return int(np.abs(a.astype(np.int16) - b).max())


def _tiled_against_whole(picture: RGBImage, whole: RGBImage, translator: Translator) -> Row:
    found = {}
    for core, shift in TILINGS:
        plan = _plan(picture, _layout(translator), Size(core, core), shift)
        found[f"core {core}, shift {shift}"] = _difference(_translated(picture, translator, plan), whole)
    worst = max(found.values())
    measured = f"{worst} grey levels over {len(found)} tilings of {picture.shape[1]}×{picture.shape[0]} px of tissue"
    return Row("tiled against whole, ResNet-9 fp32 on CPU: greatest difference", "0", measured, worst == 0, found)


class ShortHalo:
    """The same network, but shown 16 px of context and glass beyond: the control that must fail."""

    halo_px, lattice_px, is_exact, bytes_per_px = 16, 4, True, 0.0

    def __init__(self, translator: Translator) -> None:
        self.translator, self.multiple_px = translator, translator.multiple_px

    def __call__(self, windows: RGBBatch) -> RGBBatch:
        more = self.translator.halo_px - self.halo_px
        grown = np.pad(windows, ((0, 0), (more, more), (more, more), (0, 0)), mode="reflect")
        height, width = (ceil_to(length, self.multiple_px) - length for length in grown.shape[1:3])
        grown = np.pad(grown, ((0, 0), (0, height), (0, width), (0, 0)), mode="edge")
        rows, columns = windows.shape[1] - 2 * self.halo_px, windows.shape[2] - 2 * self.halo_px
        return self.translator(grown)[:, :rows, :columns]


def _too_small_a_halo(picture: RGBImage, whole: RGBImage, generator: Generator) -> Row:
    short = ShortHalo(make_translator(generator, "cpu", "fp32", exact=True))
    difference = _difference(_translated(picture, short, _plan(picture, _layout(short), Size(256, 256))), whole)
    return Row("control: the same with a halo of 16 px", "must show", f"{difference} grey levels", difference > 2)


def _seams(context: Context, exact: Translator) -> list[Row]:
    pixels = tissue(context)
    if context.quick:
        pixels = pixels[1200:2400, 600:1800]
    generator = load_generator(checkpoint(context, norm="instance"))
    per_tile = make_translator(generator, "cpu", "fp32", exact=False)
    figures = {name: _figures(pixels, translator) for name, translator in (("exact", exact), ("per tile", per_tile))}
    clean, control = figures["exact"], figures["per tile"]
    return [
        Row("seam statistic, exact tiling (z)", "|z| ≤ 3", _told(clean), clean.z is not None and abs(clean.z) <= 3),
        Row(
            "control: InstanceNorm per tile, no overlap (z)",
            "far above 3",
            _told(control),
            control.z is not None and control.z > 10,
        ),
    ]


def _figures(pixels: RGBImage, translator: Translator) -> SeamFigures:
    layout = Layout(translator.halo_px, 0, translator.lattice_px, translator.multiple_px, 10**9)
    plan = _plan(pixels, layout, Size(256, 256))
    meter = SeamMeter(plan)
    for _ in meter.watch(_cores(pixels, translator, plan)):
        pass
    return meter.figures()


def _told(figures: SeamFigures) -> str:
    return (
        f"x {figures.z_x:+.2f}, y {figures.z_y:+.2f}; gradient across borders over elsewhere "
        f"{figures.contrast_x:.3f}, {figures.contrast_y:.3f}; {figures.borders} borders"
    )
