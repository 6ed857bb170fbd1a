"""Warped pixels against a direct computation in float64 over the whole array, and against each other."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from make_slides import halves, texture, write_slide

from wsi2ihc.errors import MissingResolutionError, OptionError
from wsi2ihc.geometry import Region, RGBImage
from wsi2ihc.registration import warped_region
from wsi2ihc.registration.transform import LocalField, Transform, affine, identity, moving_grid
from wsi2ihc.registration.warped_region import WarpedPixels, read_warped, warping_grid
from wsi2ihc.slide import Slide, open_slide, read_region, working_grid

FILL = (240, 236, 231)
MPP = 0.5


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slide]:
    """Lossless, with edges as sharp as they come, and a tile that the file does not hold."""
    image = texture(900, 700)
    rng = np.random.default_rng(1)
    image[100:400, 200:600] = rng.choice(np.array([0, 255], np.uint8), (300, 400, 3))
    path = tmp_path_factory.mktemp("warping") / "ihc.tif"
    with open_slide(write_slide(path, halves(image, 2), compression="deflate", tile=128, missing={(0, 4, 1)})) as slide:
        yield slide


def turned(degrees: float, scale: float = 1.0, mirror: bool = False, shift: tuple[float, float] = (0, 0)) -> Transform:
    """A turn about the middle of the slide, and a field of up to some 10 µm."""
    angle = np.deg2rad(degrees)
    matrix = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    if mirror:
        matrix = matrix @ np.diag([-1.0, 1.0])
    middle = np.array([225.0, 175.0])
    coefficients = np.random.default_rng(7).normal(0, 4, (9, 11, 2))
    whole = np.hstack([matrix, (middle - matrix @ middle + shift)[:, None]])
    return Transform(whole, LocalField((-20.0, -15.0), 50.0, coefficients))


def centers(start: int, count: int, mpp: float = MPP) -> npt.NDArray[np.float64]:
    return (np.arange(start, start + count) + 0.5) * mpp


def directly(slide: Slide, transform: Transform, mpp: float, x: npt.ArrayLike, y: npt.ArrayLike) -> RGBImage:
    """Catmull-Rom in float64 over the whole of the moving slide's grid, with plain indexing."""
    grid = warping_grid(slide.info, mpp)
    margin = 12
    whole = read_region(slide, grid, Region(0, 0, grid.size.width, grid.size.height).grown(margin), FILL).astype(float)
    assert slide.info.mpp is not None
    places = moving_grid(transform, x, y) / slide.info.mpp - grid.level0_origin
    places = np.clip(places / grid.downsample - 0.5 + margin, 1, np.array(whole.shape[1::-1]) - 3)
    base = np.floor(places).astype(int)
    t = places - base
    weights = np.stack([(-t + 2 * t**2 - t**3) / 2, (2 - 5 * t**2 + 3 * t**3) / 2, (t + 4 * t**2 - 3 * t**3) / 2,
                        (-(t**2) + t**3) / 2])  # fmt: skip
    total = np.zeros((*places.shape[:2], 3))
    for row in range(4):
        for column in range(4):
            weight = weights[row, ..., 1] * weights[column, ..., 0]
            total += weight[..., None] * whole[base[..., 1] + row - 1, base[..., 0] + column - 1]
    return np.clip(np.rint(total), 0, 255).astype(np.uint8)


def largest_difference(one: RGBImage, other: RGBImage) -> int:
    return int(np.abs(one.astype(int) - other).max())


@pytest.mark.parametrize("mpp", [0.5, 0.46, 0.3, 0.77, 1.0, 2.1])
@pytest.mark.parametrize("transform", [turned(33), turned(-137, 1.07, mirror=True), turned(0), turned(90, 0.93)])
def test_equals_the_whole_array_warped_directly(slide: Slide, transform: Transform, mpp: float) -> None:
    x, y = centers(-40, round(540 / mpp), mpp), centers(-30, round(430 / mpp), mpp)
    if mpp < 0.4:  # the middle is enough, at this size
        x, y = x[:1200], y[100:500]
    warped = read_warped(slide, transform, mpp, x, y, FILL)
    expected = directly(slide, transform, mpp, x, y)
    assert largest_difference(warped.pixels, expected) <= 1
    assert (warped.pixels != expected).mean() < 1e-3
    assert 0.1 < warped.valid.mean() < 1.0


@pytest.fixture(scope="module")
def whole(slide: Slide) -> WarpedPixels:
    return read_warped(slide, turned(33, 1.04), MPP, centers(0, 800), centers(0, 650), FILL)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_window_is_part_of_the_whole(slide: Slide, whole: WarpedPixels, data: st.DataObject) -> None:
    x, y = data.draw(st.integers(0, 799)), data.draw(st.integers(0, 649))
    width, height = data.draw(st.integers(1, 800 - x)), data.draw(st.integers(1, 650 - y))
    part = read_warped(slide, turned(33, 1.04), MPP, centers(x, width), centers(y, height), FILL)
    np.testing.assert_array_equal(part.pixels, whole.pixels[y : y + height, x : x + width])
    np.testing.assert_array_equal(part.valid, whole.valid[y : y + height, x : x + width])


def test_pieces_change_nothing(slide: Slide, whole: WarpedPixels, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("BLOCK_PX", 100), ("LARGEST_BOX_PX", 3000), ("_FETCH_PX", 70)):
        monkeypatch.setattr(warped_region, name, value)
        cut = read_warped(slide, turned(33, 1.04), MPP, centers(0, 800), centers(0, 650), FILL)
        np.testing.assert_array_equal(cut.pixels, whole.pixels)
        np.testing.assert_array_equal(cut.valid, whole.valid)


@pytest.mark.parametrize("mpp", [0.5, 0.77, 1.0, 3.1])
def test_the_identity_has_the_pixels_of_the_slide(slide: Slide, mpp: float) -> None:
    grid = working_grid(slide.info, mpp)
    x, y = centers(-20, 200, grid.mpp[0]), centers(33, 150, grid.mpp[1])
    warped = read_warped(slide, identity(), mpp, x, y, FILL)
    np.testing.assert_array_equal(warped.pixels, read_region(slide, grid, Region(-20, 33, 200, 150), FILL))
    assert not warped.valid[:, :20].any()


@pytest.mark.parametrize(("turn", "matrix"), [(1, [[0, -1, 450], [1, 0, 0]]), (2, [[-1, 0, 450], [0, -1, 350]])])
def test_quarter_turns_have_the_pixels_of_the_slide(slide: Slide, turn: int, matrix: list[list[float]]) -> None:
    sides = (700, 900) if turn == 1 else (900, 700)
    warped = read_warped(slide, affine(matrix), MPP, centers(0, sides[0]), centers(0, sides[1]), FILL)
    level = slide.read_level(0, Region(0, 0, 900, 700), FILL)
    np.testing.assert_array_equal(warped.pixels, np.rot90(level, turn))
    assert warped.valid.all()


def test_the_short_cut_for_whole_px_changes_nothing(slide: Slide, monkeypatch: pytest.MonkeyPatch) -> None:
    shifted = affine([[1, 0, 7.5], [0, 1, -12]])
    quick = read_warped(slide, shifted, MPP, centers(0, 300), centers(0, 200), FILL)
    monkeypatch.setattr(warped_region, "_whole_px", lambda _: None)
    np.testing.assert_array_equal(
        read_warped(slide, shifted, MPP, centers(0, 300), centers(0, 200), FILL).pixels, quick.pixels
    )


def test_places_are_kept(tmp_path: Path) -> None:
    """A bright square comes out where the transform says, whatever the resolutions."""
    image = np.zeros((600, 800, 3), np.uint8)
    image[300:360, 400:500] = 255  # center at (450, 330) px
    with open_slide(write_slide(tmp_path / "p.tif", halves(image, 3), compression="deflate"), mpp=0.5) as slide:
        # moving = fixed turned by a quarter and shifted: (x, y) µm -> (400 - y, x + 20)
        transform = affine([[0, -1, 400], [1, 0, 20]])
        for mpp in (0.3, 0.5, 0.7321, 1.0, 1.9):
            weight = read_warped(
                slide, transform, mpp, centers(0, round(400 / mpp), mpp), centers(0, round(400 / mpp), mpp), (0, 0, 0)
            ).pixels[..., 0].astype(float)  # fmt: skip
            x = (weight.sum(0) * centers(0, weight.shape[1], mpp)).sum() / weight.sum()
            y = (weight.sum(1) * centers(0, weight.shape[0], mpp)).sum() / weight.sum()
            assert (x, y) == pytest.approx((165 - 20, 400 - 225), abs=0.1 * mpp)


def test_validity_is_the_scanned_area(slide: Slide, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = np.array([-1e-9, 0.0, 225, 450.0, 450.0001]), np.array([-1e9, 0.0, 350.0, 350.1])
    valid = read_warped(slide, identity(), MPP, x, y).valid
    np.testing.assert_array_equal(valid, np.outer([0, 1, 1, 0], [0, 1, 1, 1, 0]).astype(bool))
    monkeypatch.setattr(slide, "_info", replace(slide.info, bounds=Region(10, 20, 30, 40)))
    valid = read_warped(slide, identity(), MPP, centers(0, 60), centers(0, 80)).valid
    expected = np.zeros((80, 60), bool)
    expected[20:60, 10:40] = True
    np.testing.assert_array_equal(valid, expected)


def test_outside_nothing_is_read(slide: Slide, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("read")

    monkeypatch.setattr(warped_region, "read_region", fail)
    for shift in ((1e4, 0), (0, -1e4), (1e12, 1e12)):
        warped = read_warped(slide, turned(20, shift=shift), MPP, centers(0, 90), centers(0, 60), FILL)
        assert (warped.pixels == FILL).all()
        assert not warped.valid.any()
    assert read_warped(slide, identity(), MPP, [], centers(0, 5)).pixels.shape == (5, 0, 3)


def test_missing_tiles_are_filled(slide: Slide) -> None:
    warped = read_warped(slide, turned(0), MPP, centers(160, 60), centers(550, 50), (1, 2, 3))
    assert (warped.pixels == (1, 2, 3)).all()
    assert warped.valid.all()


def test_memory_is_bounded_by_the_piece(slide: Slide) -> None:
    """One column and one row far apart, and a transform that spreads 512 px over all of the slide."""
    wide = affine([[40, 3, 0], [-3, 40, 0]])
    read_warped(slide, wide, MPP, centers(0, 5), centers(0, 5))
    tracemalloc.start()
    read_warped(slide, wide, MPP, centers(0, 600), centers(0, 600))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60e6


def test_resolution_is_needed(slide: Slide, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OptionError, match="coarser"):
        read_warped(slide, identity(), 0.1, [0.0], [0.0])
    assert warping_grid(slide.info, 0.2).is_level
    monkeypatch.setattr(slide, "_info", replace(slide.info, mpp=None))
    with pytest.raises(MissingResolutionError):
        read_warped(slide, identity(), MPP, [0.0], [0.0])
