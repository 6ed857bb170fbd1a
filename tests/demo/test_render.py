"""The pixels of the synthetic slide: repeatable, seamless, and stained as H&E is."""

from __future__ import annotations

import time

import numpy as np
import numpy.typing as npt
import pytest

from wsi2ihc.demo import synthetic_tissue
from wsi2ihc.demo.histology import Structures
from wsi2ihc.demo.render import BACKGROUND, EOSIN, HEMATOXYLIN, paint, synthetic_structures, transmitted
from wsi2ihc.demo.textures import SIDE_PX, at_region, filled, jittered_grid, packed_radii, polar, texture
from wsi2ihc.geometry import Region, Size

SIZE = Size(2400, 1800)


@pytest.fixture(scope="module")
def structures() -> Structures:
    return synthetic_structures(SIZE, seed=3)


def test_the_same_arguments_give_the_same_pixels_and_another_seed_gives_others() -> None:
    first = synthetic_tissue(500, 300, seed=5)
    assert first.shape == (300, 500, 3)
    assert first.dtype == np.uint8
    assert np.array_equal(first, synthetic_tissue(500, 300, seed=5))
    assert np.abs(first.astype(int) - synthetic_tissue(500, 300, seed=6)).mean() > 5


@pytest.mark.parametrize(("width", "height"), [(1, 1), (7, 300), (256, 256)])
def test_any_size_can_be_made(width: int, height: int) -> None:
    assert synthetic_tissue(width, height, seed=1).shape == (height, width, 3)


@pytest.mark.parametrize("region", [Region(0, 0, 400, 320), Region(613, 411, 391, 277), Region(2100, 1500, 300, 300)])
def test_a_region_equals_the_crop_of_the_slide(structures: Structures, region: Region) -> None:
    around = region.grown(150).intersection(structures.layout.frame)
    rows, columns = region.slices_in(around)
    whole = paint(structures, around)[rows, columns].astype(int)
    # single precision rounds differently where a sum starts elsewhere: one gray level in few pixels
    difference = np.abs(paint(structures, region) - whole)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.01


def test_background_is_off_white_and_nearly_uniform(structures: Structures) -> None:
    corner = paint(structures, Region(0, 0, 128, 128)).astype(float)
    assert np.abs(corner.mean(axis=(0, 1)) - BACKGROUND).max() < 3
    assert 0.3 < corner.std(axis=(0, 1)).max() < 3


def test_slides_have_tissue_background_and_pen_marks(structures: Structures) -> None:
    layout = structures.layout
    assert 0.25 < (layout.tissue_px > 0).mean() < 0.6
    inked = layout.pen > 0.3
    assert 0.01 < inked.mean() < 0.1
    # partly on the tissue, mostly beside it
    assert 0.02 < (layout.tissue_px[inked] > 0).mean() < 0.5


def test_pen_marks_are_green_on_background(structures: Structures) -> None:
    layout = structures.layout
    rows, columns = np.nonzero((layout.pen > 0.4) & (layout.tissue_px < -100))
    middle = len(rows) // 2
    pixels = paint(structures, Region(int(columns[middle]) * 8, int(rows[middle]) * 8, 8, 8)).astype(int)
    red, green, blue = pixels.mean(axis=(0, 1))
    assert green > red + 40
    assert green > blue + 20


def masked_mean(image: npt.NDArray[np.float64], mask: npt.NDArray[np.bool_]) -> float:
    assert mask.sum() > 1000
    return float(image[mask].mean())


def test_nuclei_are_blue_epithelium_purple_and_stroma_pink() -> None:
    structures = synthetic_structures(Size(3000, 2200), seed=1)
    region = Region(700, 500, 900, 500)
    density = -np.log10(np.maximum(paint(structures, region), 1) / np.array(BACKGROUND))
    stains = density @ np.linalg.pinv(np.stack([HEMATOXYLIN, EOSIN]))
    nuclei, glands = filled(structures.nuclei, region) > 128, filled(structures.glands, region) > 128
    hollow = (filled(structures.lumens, region) > 0) | (filled(structures.goblets, region) > 0)
    tissue = np.ones_like(nuclei)
    tissue[paint(structures, region).min(axis=2) > 200] = False
    cytoplasm = glands & ~nuclei & ~hollow
    stroma = tissue & ~glands & ~nuclei
    hematoxylin = {
        name: masked_mean(stains[..., 0], mask)
        for name, mask in {"nuclei": nuclei, "cytoplasm": cytoplasm, "stroma": stroma}.items()
    }
    assert hematoxylin["nuclei"] > 1.8 * hematoxylin["cytoplasm"]
    assert hematoxylin["cytoplasm"] > 1.2 * hematoxylin["stroma"]
    image = paint(structures, region).astype(float)
    assert masked_mean(image[..., 0] - image[..., 2], stroma) > masked_mean(image[..., 0] - image[..., 2], nuclei)


def test_glands_and_nuclei_have_the_sizes_of_real_ones() -> None:
    structures = synthetic_structures(Size(4000, 3000), seed=1)
    mpp = 0.5

    def area_um2(points: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        x, y = points[..., 0].astype(float), points[..., 1].astype(float)
        return np.abs((x * np.roll(y, -1, 1) - y * np.roll(x, -1, 1)).sum(axis=1)) / 2 * mpp**2

    glands = 2 * np.sqrt(area_um2(structures.glands.points) / np.pi)
    assert len(glands) > 20
    assert np.percentile(glands, 10) > 55
    assert np.percentile(glands, 90) < 125
    nuclei = 2 * np.sqrt(area_um2(structures.nuclei.points) / np.pi)
    assert len(nuclei) > 2000
    assert 5 < np.median(nuclei) < 9


def test_light_follows_beer_and_lambert() -> None:
    one, none = np.ones((2, 3), np.float32), np.zeros((2, 3), np.float32)
    once = transmitted(0.3 * one, none, none, none)
    assert np.allclose(transmitted(0.6 * one, none, none, none), once**2, rtol=1e-5)
    both = transmitted(0.3 * one, 0.4 * one, none, none)
    assert np.allclose(both, once * transmitted(none, 0.4 * one, none, none), rtol=1e-5)
    assert np.array_equal(transmitted(none, none, none, none), np.ones((2, 3, 3), np.float32))


def test_textures_repeat_without_an_edge() -> None:
    noise = texture(9, 9, 77)
    assert abs(float(noise.mean())) < 1e-4
    assert float(noise.std()) == pytest.approx(1, abs=1e-4)
    across = at_region(noise, Region(SIDE_PX - 40, 5, 80, 60))
    steps = np.abs(np.diff(across, axis=1)).mean(axis=0)
    assert steps[39] < 1.5 * steps.mean()
    assert np.array_equal(across, at_region(noise, Region(-40, 5 - SIDE_PX, 80, 60)))


def test_packed_cells_leave_their_gap() -> None:
    rng = np.random.default_rng(0)
    centers = jittered_grid(rng, Region(0, 0, 500, 500), 150, 0.2)
    radii = packed_radii(centers, np.full((len(centers), 64), 140.0), np.full(len(centers), 12.0), roundness=6)
    outlines = polar(centers, radii)
    distance = np.linalg.norm(outlines[:, None, :, None] - outlines[None, :, None, :], axis=-1)
    apart = distance.min(axis=(2, 3))
    np.fill_diagonal(apart, np.inf)
    assert apart.min() > 11


def test_a_small_field_is_painted_quickly() -> None:
    synthetic_tissue(64, 64, seed=1)  # the noise textures are made once per process
    started = time.process_time()
    synthetic_tissue(512, 512, seed=1)
    assert time.process_time() - started < 3
