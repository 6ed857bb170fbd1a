"""Stages between reading and writing: order, memory bounds, blending, feathering, assembly, seam metrics."""

from __future__ import annotations

import json
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import cv2
import numpy as np
import pytest

from wsi2ihc.concurrency import ordered_map
from wsi2ihc.geometry import Region, RGBBatch, RGBImage, Size
from wsi2ihc.translation.blend import FEATHER_UM, blend_overlaps, feather_cores, make_fade
from wsi2ihc.translation.seams import SeamMeter, SeamMetrics, ShadeStatistics
from wsi2ihc.translation.stages import (
    DeviceClock,
    FinishedCore,
    TranslatedWindow,
    WindowPixels,
    assemble_tiles,
    batched,
    crop_cores,
    translate_windows,
)
from wsi2ihc.translation.windows import Plan, TissueGrid, WindowLayout, plan_windows

BACKGROUND = (240, 241, 242)


class Invert:
    """Exact pixelwise translator that records its calls."""

    halo_px, stride_px, multiple_px, is_exact, bytes_per_px = 0, 1, 1, True, 0.0

    def __init__(self, delay_s: float = 0.0) -> None:
        self.shapes: list[tuple[int, ...]] = []
        self.delay_s = delay_s
        self.threads: set[int] = set()

    def __call__(self, windows: RGBBatch) -> RGBBatch:
        self.shapes.append(windows.shape)
        self.threads.add(threading.get_ident())
        time.sleep(self.delay_s)
        return 255 - windows


def make_plan(shape: tuple[int, int], layout: WindowLayout, core_size: Size, share: float = 1.0, seed: int = 0) -> Plan:
    pixels = np.random.default_rng(seed).random((-(-shape[0] // 64), -(-shape[1] // 64))) < share
    return plan_windows(Region(0, 0, shape[1], shape[0]), TissueGrid(pixels, (0, 0), (64, 64)), layout, core_size)


def random_image(shape: tuple[int, int], seed: int = 1) -> RGBImage:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)


def windows_of(image: RGBImage, plan: Plan) -> Iterator[WindowPixels]:
    pad = 600
    around = np.pad(image, ((pad, pad), (pad, pad), (0, 0)), mode="edge")
    frame = Region(-pad, -pad, around.shape[1], around.shape[0])
    for window in plan.windows:
        yield WindowPixels(window, around[window.region.slices_in(frame)])


def outputs_of(image: RGBImage, plan: Plan) -> Iterator[TranslatedWindow]:
    for patch in windows_of(image, plan):
        window = patch.window
        inner = window.output_region.slices_in(window.region)
        yield TranslatedWindow(window, patch.pixels[window.core.slices_in(window.region)], patch.pixels[inner])


def test_ordered_map_keeps_order_and_bound() -> None:
    started = []

    def slow(number: int) -> int:
        started.append(number)
        time.sleep(0.002 * (number % 3))
        return number

    with ThreadPoolExecutor(4) as executor:
        results = ordered_map(executor, slow, range(50), ahead=6)
        for expected in range(50):
            assert next(results) == expected
            assert len(started) <= expected + 1 + 6
        assert next(results, None) is None


def test_ordered_map_raises_the_first_failure_and_stops() -> None:
    started = []

    def fail_at_three(number: int) -> int:
        started.append(number)
        if number >= 3:
            raise ValueError(f"broken at {number}")
        return number

    with ThreadPoolExecutor(1) as executor:
        results = ordered_map(executor, fail_at_three, range(1000), ahead=4)
        with pytest.raises(ValueError, match="broken at 3"):
            list(results)
    assert len(started) < 12


def test_batches_hold_equal_shapes_only() -> None:
    plan = make_plan((512, 700), WindowLayout(), Size(256, 256))
    batches = list(batched(windows_of(random_image((512, 700)), plan), 4))
    assert [patch.window.index for batch in batches for patch in batch] == list(range(len(plan.windows)))
    assert all(len({patch.pixels.shape for patch in batch}) == 1 and len(batch) <= 4 for batch in batches)
    assert max(len(batch) for batch in batches) == 2


def test_two_devices_keep_the_order_and_both_work() -> None:
    image = random_image((640, 640))
    plan = make_plan((640, 640), WindowLayout(), Size(128, 128))
    devices, clock = [Invert(0.003), Invert(0.001)], DeviceClock()
    outputs = list(translate_windows(windows_of(image, plan), devices, 2, clock))
    assert [output.window.index for output in outputs] == list(range(25))
    assert all(device.shapes for device in devices)
    for output in outputs:
        np.testing.assert_array_equal(output.pixels, 255 - output.source)
    assert clock.busy_s > 0.02


@pytest.mark.parametrize("share", [1.0, 0.4])
@pytest.mark.parametrize("tile_px", [64, 96, 256])
def test_cropped_and_assembled_cores_equal_the_image(share: float, tile_px: int) -> None:
    image = random_image((500, 610))
    plan = make_plan((500, 610), WindowLayout(halo_px=8, stride_px=4, multiple_px=16), Size(192, 128), share)
    tiles = list(assemble_tiles(crop_cores(outputs_of(image, plan)), plan, tile_px, BACKGROUND))
    expected = np.full((500, 610, 3), BACKGROUND, dtype=np.uint8)
    for window in plan.windows:
        rows, columns = window.core.slices_in(plan.extent)
        expected[rows, columns] = image[rows, columns]
    occupied = plan.occupied_tiles(tile_px)
    assert sorted((tile.row, tile.column) for tile in tiles) == [tuple(index) for index in np.argwhere(occupied)]
    for tile in tiles:
        part = expected[tile.row * tile_px :, tile.column * tile_px :][:tile_px, :tile_px]
        np.testing.assert_array_equal(tile.pixels[: part.shape[0], : part.shape[1]], part)


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_blending_a_local_translation_changes_nothing(share: float) -> None:
    image = random_image((500, 610))
    layout = WindowLayout(overlap_px=64, stride_px=4, multiple_px=4)
    plan = make_plan((500, 610), layout, Size(128, 96), share)
    cores = list(blend_overlaps(outputs_of(image, plan), plan))
    assert sorted(core.window.index for core in cores) == list(range(len(plan.windows)))
    for core in cores:
        np.testing.assert_array_equal(core.pixels, image[core.window.core.slices_in(plan.extent)])
        np.testing.assert_array_equal(core.source, core.pixels)


def test_blending_changes_linearly_between_windows() -> None:
    plan = make_plan((92, 256), WindowLayout(overlap_px=64, stride_px=4, multiple_px=4), Size(128, 128))
    outputs = [
        TranslatedWindow(
            window,
            np.zeros((window.core.height, window.core.width, 3), dtype=np.uint8),
            np.full((window.output_region.height, window.output_region.width, 3), 100 * window.column, dtype=np.uint8),
        )
        for window in plan.windows
    ]
    assert [window.core.x for window in plan.windows] == [0, 92, 220]
    row = np.concatenate([core.pixels for core in blend_overlaps(outputs, plan)], axis=1)[64, :, 0].astype(int)
    assert row[:60].max() == 0
    np.testing.assert_allclose(row[60:124], (np.arange(64) + 0.5) / 64 * 100, atol=0.5)
    assert (row[124:188] == 100).all()
    np.testing.assert_allclose(row[188:252], 100 + (np.arange(64) + 0.5) / 64 * 100, atol=0.5)
    assert (row[252:] == 200).all()


def feathered(image: RGBImage, core_size: Size, tissue: TissueGrid) -> RGBImage:
    """Return the feathered output of the identity model."""
    fade = make_fade(tissue, (0.5, 0.5))
    extent = Region(0, 0, image.shape[1], image.shape[0])
    plan, result = plan_windows(extent, fade.covered, WindowLayout(), core_size), np.full_like(image, BACKGROUND)
    with ThreadPoolExecutor(2) as executor:
        for core in feather_cores(crop_cores(outputs_of(image, plan)), fade, BACKGROUND, executor, 3):
            result[core.window.core.slices_in(extent)] = core.pixels
    return result


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_blending_holds_two_rows_of_outputs_and_no_windows(share: float) -> None:
    image = random_image((700, 610))
    plan = make_plan((700, 610), WindowLayout(overlap_px=64, stride_px=4, multiple_px=4), Size(96, 96), share)
    windows: list[weakref.ref[RGBImage]] = []
    outputs: list[weakref.ref[RGBImage]] = []

    def watched() -> Iterator[TranslatedWindow]:
        for output in outputs_of(image, plan):
            window, pixels = np.tile(output.source, (2, 2, 1)), output.pixels.copy()
            windows.append(weakref.ref(window))
            outputs.append(weakref.ref(pixels))
            core = output.window.core
            yield TranslatedWindow(output.window, window[: core.height, : core.width], pixels)
            del output, window, pixels

    columns = 1 + max(window.column for window in plan.windows)
    most = 0
    for _ in blend_overlaps(watched(), plan):
        assert sum(window() is not None for window in windows) <= 1
        most = max(most, sum(output() is not None for output in outputs))
    assert columns < most <= 2 * columns + 3


def test_blending_refuses_overlaps_beyond_the_adjacent_core() -> None:
    plan = make_plan((92, 256), WindowLayout(overlap_px=64), Size(32, 32))
    assert list(blend_overlaps([], plan)) == []
    too_wide = replace(plan, layout=WindowLayout(overlap_px=66))
    with pytest.raises(ValueError, match="too small for an overlap of 66"):
        blend_overlaps([], too_wide)


def test_the_translation_is_complete_inside_the_mask_and_fades_outside() -> None:
    pixels = np.zeros((64, 64), dtype=bool)
    pixels[20:40, 20:64] = True
    pixels[50, 50] = True
    tissue = TissueGrid(pixels, (0, 0), (16, 16))
    result = feathered(np.zeros((1024, 1024, 3), dtype=np.uint8), Size(256, 256), tissue)
    inside = pixels.repeat(16, axis=0).repeat(16, axis=1)
    assert result[inside].max() == 0
    profile = result[480, :, 0].astype(int)
    assert (np.diff(profile) <= 0).all()
    assert np.diff(profile).min() > -12  # no step
    assert (profile[: 20 * 16 - int(FEATHER_UM / 0.5) - 3 * 16] == BACKGROUND[0]).all()
    assert profile[1023] == 0  # the border of the slide does not count as a border


@pytest.mark.parametrize("px", [(1.0, 1.0), (7.3, 4.1), (64.0, 200.0)])
def test_every_px_of_a_mask_of_any_resolution_is_fully_translated(px: tuple[float, float]) -> None:
    pixels = np.random.default_rng(3).random((int(300 / px[1]) + 1, int(400 / px[0]) + 1)) < 0.1
    pixels[0, 0] = True
    result = feathered(np.zeros((300, 400, 3), dtype=np.uint8), Size(128, 128), TissueGrid(pixels, (0, 0), px))
    rows, columns = (np.arange(300) + 0.5) // px[1], (np.arange(400) + 0.5) // px[0]
    inside = pixels[np.ix_(rows.astype(int), columns.astype(int))]
    assert result[inside].max() == 0


def test_feathering_does_not_depend_on_the_core_size() -> None:
    pixels = np.random.default_rng(2).random((40, 50)) < 0.01
    tissue = TissueGrid(pixels, (-3.3, -5.7), (12.7, 13.9))
    image = random_image((500, 600))
    results = [feathered(image, core_size, tissue) for core_size in (Size(64, 64), Size(100, 164), Size(600, 500))]
    assert (results[0] == BACKGROUND).all(axis=2).any()
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


def noisy(shape: tuple[int, int], seed: int) -> RGBImage:
    """Correlated noise, similar to tissue."""
    rng = np.random.default_rng(seed)
    coarse = rng.normal(128, 40, (shape[0] // 4 + 2, shape[1] // 4 + 2, 3))
    fine = np.repeat(np.repeat(coarse, 4, axis=0), 4, axis=1)[: shape[0], : shape[1]]
    return np.clip(fine + rng.normal(0, 8, (*shape, 3)), 0, 255).astype(np.uint8)


def seam_z(result: RGBImage, source: RGBImage, plan: Plan) -> float:
    meter = SeamMeter(plan)
    for window in plan.windows:
        place = window.core.slices_in(plan.extent)
        meter.add(FinishedCore(window, source[place], result[place]))
    z = meter.metrics().z
    assert z is not None
    return z


def test_seam_score_is_low_without_seams_and_high_with_them() -> None:
    source = noisy((1500, 1700), 0)
    plan = make_plan((1500, 1700), WindowLayout(), Size(256, 192))
    clean = 255 - source
    assert abs(seam_z(clean, source, plan)) <= 1e-6  # the same differences
    rng = np.random.default_rng(5)
    jittered = np.clip(clean + rng.normal(0, 3, clean.shape), 0, 255).astype(np.uint8)
    assert abs(seam_z(jittered, source, plan)) <= 3
    stepped = clean.astype(int)
    for window in plan.windows:
        stepped[window.core.slices_in(plan.extent)] += rng.integers(-6, 7)
    assert seam_z(np.clip(stepped, 0, 255).astype(np.uint8), source, plan) > 6


def test_seam_score_is_none_without_borders() -> None:
    plan = make_plan((100, 100), WindowLayout(), Size(128, 128))
    meter = SeamMeter(plan)
    image = noisy((100, 100), 3)
    meter.add(FinishedCore(plan.windows[0], image, image))
    assert meter.metrics().z is None
    assert meter.metrics().borders == 0


def octaves(shape: tuple[int, int], seed: int) -> RGBImage:
    """Noise on scales from nuclei to glands, as in tissue."""
    rng, image = np.random.default_rng(seed), np.full((*shape, 3), 170, np.float32)
    for step in (4, 16, 64, 256):
        coarse = rng.normal(0, 16, (shape[0] // step + 2, shape[1] // step + 2, 3)).astype(np.float32)
        image += cv2.resize(coarse, (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC)
    return np.clip(image, 0, 255).astype(np.uint8)


def shaded(overlap_px: int, strength: float, core_size: int = 320) -> SeamMetrics:
    """Return the metrics of a translation with a random shade in every window."""
    image, rng = octaves((1300, 1400), 4), np.random.default_rng(1)
    plan = make_plan((1300, 1400), WindowLayout(overlap_px=overlap_px), Size(core_size, core_size))
    meter = SeamMeter(plan)

    def outputs() -> Iterator[TranslatedWindow]:
        for output in outputs_of(image, plan):
            pixels = 255 * (output.pixels / 255.0) ** 1.5 + rng.normal(0, strength, 3)
            yield TranslatedWindow(output.window, output.source, np.clip(np.rint(pixels), 0, 255).astype(np.uint8))

    for core in blend_overlaps(outputs(), plan) if overlap_px else crop_cores(outputs()):
        meter.add(core)
    return meter.metrics()


@pytest.mark.parametrize("overlap_px", [0, 64, 128])
def test_windows_of_different_shade_are_detected_without_edges(overlap_px: int) -> None:
    even, uneven = shaded(overlap_px, 0), shaded(overlap_px, 4)
    assert even.shade_z is not None
    assert uneven.shade_z is not None
    assert uneven.shade_step is not None
    assert even.shade_z < 3
    assert uneven.shade_z > 6
    assert 2 < uneven.shade_step < 9
    if overlap_px:
        assert uneven.z is not None
        assert abs(uneven.z) < 3  # edges alone do not show it


@pytest.mark.parametrize("overlap_px", [0, 32, 64, 96, 128])
def test_shade_step_leaves_out_the_whole_overlap(overlap_px: int) -> None:
    """Cores of 512 px have strips of 32 px, of which half an overlap is not always a multiple."""
    image = 110 + octaves((1100, 1600), 4) // 8
    plan = make_plan((1100, 1600), WindowLayout(overlap_px=overlap_px), Size(512, 512))
    meter = SeamMeter(plan)

    def outputs() -> Iterator[TranslatedWindow]:
        for output in outputs_of(image, plan):
            shade = 4 if (output.window.row + output.window.column) % 2 else -4
            yield TranslatedWindow(output.window, output.source, (output.pixels.astype(int) + shade).astype(np.uint8))

    for core in blend_overlaps(outputs(), plan) if overlap_px else crop_cores(outputs()):
        meter.add(core)
    at_ends = (
        overlap_px / 512
    )  # part of a strip that fades into neighbors along the border, which halves the step there
    assert meter.metrics().shade_step == pytest.approx(8 * (1 - at_ends / 2), rel=0.01)


def test_shades_of_cores_without_neighbors_are_not_kept() -> None:
    source = octaves((1000, 1000), 2)
    plan = make_plan((1000, 1000), WindowLayout(), Size(128, 128))
    meter = SeamMeter(plan)
    for window in plan.windows:
        if (window.row + window.column) % 2:
            place = window.core.slices_in(plan.extent)
            meter.add(FinishedCore(window, source[place], source[place]))
    shades = meter.statistics().shades
    assert shades.along_x.pairs[0] == shades.along_y.pairs[0] == 0
    assert shades.along_x.pairs[1:].sum() > 0
    assert max(len(meter._shades._left), len(meter._shades._above)) <= 8, "one for each row and column"


def test_shade_statistics_are_additive_and_survive_json() -> None:
    source = octaves((1000, 1000), 2)
    plan = make_plan((1000, 1000), WindowLayout(), Size(256, 256))
    result, meters = (255 - source), [SeamMeter(plan) for _ in range(3)]
    for window in plan.windows:
        place = window.core.slices_in(plan.extent)
        for meter in (meters[0], meters[1 + (window.row >= 2)]):
            meter.add(FinishedCore(window, source[place], result[place]))
    whole, *parts = (meter.statistics().shades for meter in meters)
    both = ShadeStatistics.from_json(json.loads(json.dumps(parts[0].to_json()))) + parts[1]
    np.testing.assert_allclose(both.along_x.products, whole.along_x.products)
    assert both.along_y.pairs[0] == whole.along_y.pairs[0] - 4  # borders between the bands
