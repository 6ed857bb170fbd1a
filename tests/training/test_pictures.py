"""The picture grid: sizes, places and colours of what is in it, and files of pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsi2ihc.arrays import RGB, RGBImage
from wsi2ihc.errors import OutputError
from wsi2ihc.training.pictures import SHOWN_PX, picture_grid, save_png

RED, GREEN, BLUE = (200, 0, 0), (0, 200, 0), (0, 0, 200)


def plain(colour: RGB, height: int = 128, width: int = 128) -> RGBImage:
    return np.full((height, width, 3), colour, dtype=np.uint8)


def box(grid: RGBImage, colour: RGB) -> tuple[int, int, int, int]:
    """Left, top, width, height of the only rectangle of this colour."""
    rows, columns = np.nonzero((grid == colour).all(axis=-1))
    left, top = int(columns.min()), int(rows.min())
    width, height = int(columns.max()) - left + 1, int(rows.max()) - top + 1
    assert len(rows) == width * height
    return left, top, width, height


def test_a_row_has_its_images_side_by_side_as_they_are() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (128, 160, 3), dtype=np.uint8)
    grid = picture_grid([(noise, plain(GREEN, 128, 160), plain(BLUE, 128, 160))])
    left, top, width, height = box(grid, GREEN)
    assert (width, height) == (160, 128)
    gutter = left - 160 - 8
    assert gutter == 8
    np.testing.assert_array_equal(grid[top : top + 128, 8 : 8 + 160], noise)
    assert box(grid, BLUE) == (left + 168, top, 160, 128)
    assert grid.dtype == np.uint8
    assert grid.flags.writeable


def test_rows_follow_each_other_with_white_between() -> None:
    white = plain((255, 255, 255))
    grid = picture_grid([(plain(RED), white, white), (plain(GREEN), white, white)])
    assert box(grid, GREEN)[1] == box(grid, RED)[1] + 128 + 8
    below = box(grid, RED)[1] + 128
    assert (grid[below : below + 8] == 255).all()


def test_labels_are_above_their_columns_and_captions_below_their_rows() -> None:
    row = (plain(RED), plain(GREEN), plain(BLUE))
    grid = picture_grid([row], captions=["00012_test_2+.png"])
    bare = picture_grid([row], labels=("", "", ""))
    left, top, width, height = box(grid, GREEN)
    assert (bare[: box(bare, GREEN)[1]] == 255).all()
    for colour in (RED, GREEN, BLUE):
        column = box(grid, colour)[0]
        head = grid[:top, column : column + width].min(axis=(0, 2))
        assert head.min() < 100
        inked = np.nonzero(head < 128)[0]
        assert abs((inked[0] + inked[-1]) / 2 - width / 2) < 4  # in the middle
    assert grid[top + height :, :left].min() < 100
    assert (grid[top + height :, -100:] == 255).all()


def test_a_caption_that_is_too_long_keeps_to_the_picture() -> None:
    row = (plain(RED),) * 3
    grid = picture_grid([row], captions=["a name without end " * 40])
    assert grid.shape == picture_grid([row], captions=["short"]).shape
    assert (grid[:, -4:] == 255).all()


def test_large_patches_are_averaged_down() -> None:
    checks = np.zeros((1024, 1024, 3), dtype=np.uint8)
    checks[::2, ::2] = checks[1::2, 1::2] = 200
    grid = picture_grid([(checks, plain(GREEN, 1024, 1024), plain(BLUE, 1024, 1024))])
    _, top, width, height = box(grid, GREEN)
    assert (width, height) == (SHOWN_PX, SHOWN_PX)
    assert (grid[top : top + height, 8 : 8 + width] == 100).all()


def test_a_wide_patch_keeps_its_proportions() -> None:
    grid = picture_grid([(plain(RED, 300, 1200), plain(GREEN, 1200, 300), plain(BLUE, 1, 2000))])
    assert box(grid, RED)[2:] == (512, 128)
    assert box(grid, GREEN)[2:] == (128, 512)
    assert box(grid, BLUE)[2:] == (512, 1)


def test_small_patches_are_enlarged_without_new_colours() -> None:
    noise = np.random.default_rng(1).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    grid = picture_grid([(noise, plain(GREEN, 32, 48), plain(BLUE, 32, 48))])
    _, top, width, height = box(grid, GREEN)
    assert (width, height) == (144, 96)
    np.testing.assert_array_equal(grid[top : top + height : 3, 8 : 8 + width : 3], noise)
    tall = (plain(GREEN, 400, 40), plain(RED, 9, 9), plain(BLUE, 9, 9))
    assert box(picture_grid([tall]), GREEN)[2:] == (40, 400)


def test_images_that_are_views_are_taken_too() -> None:
    noise = np.random.default_rng(2).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    turned = np.rot90(noise)[:, ::-1]
    grid = picture_grid([(turned, plain(GREEN), plain(BLUE))])
    top = box(grid, GREEN)[1]
    np.testing.assert_array_equal(grid[top : top + 128, 8:136], turned)


def test_numbers_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="one image per label"):
        picture_grid([])
    with pytest.raises(ValueError, match="one image per label"):
        picture_grid([(plain(RED), plain(RED))])
    with pytest.raises(ValueError, match="one caption per row"):
        picture_grid([(plain(RED),) * 3], captions=["one", "two"])


def test_a_png_replaces_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    noise = np.random.default_rng(3).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    save_png(path, plain(RED))
    save_png(path, noise[:, ::-1])
    with Image.open(path) as image:
        np.testing.assert_array_equal(np.asarray(image), noise[:, ::-1])
    assert list(tmp_path.iterdir()) == [path]


def test_a_png_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="missing"):
        save_png(tmp_path / "missing" / "a.png", plain(RED))
