"""Image grid: sizes, positions and colors of its content, and PNG files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsi2ihc.errors import OutputError
from wsi2ihc.geometry import RGB, RGBImage
from wsi2ihc.training.image_grid import SHOWN_PX, image_grid_figure, save_png

RED, GREEN, BLUE = (200, 0, 0), (0, 200, 0), (0, 0, 200)


def plain(color: RGB, height: int = 128, width: int = 128) -> RGBImage:
    return np.full((height, width, 3), color, dtype=np.uint8)


def box(grid: RGBImage, color: RGB) -> tuple[int, int, int, int]:
    """Left, top, width, height of the only rectangle of this color."""
    rows, columns = np.nonzero((grid == color).all(axis=-1))
    left, top = int(columns.min()), int(rows.min())
    width, height = int(columns.max()) - left + 1, int(rows.max()) - top + 1
    assert len(rows) == width * height
    return left, top, width, height


def test_images_of_a_row_are_side_by_side() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (128, 160, 3), dtype=np.uint8)
    grid = image_grid_figure([(noise, plain(GREEN, 128, 160), plain(BLUE, 128, 160))])
    left, top, width, height = box(grid, GREEN)
    assert (width, height) == (160, 128)
    gutter = left - 160 - 8
    assert gutter == 8
    np.testing.assert_array_equal(grid[top : top + 128, 8 : 8 + 160], noise)
    assert box(grid, BLUE) == (left + 168, top, 160, 128)
    assert grid.dtype == np.uint8
    assert grid.flags.writeable


def test_rows_are_separated_by_white() -> None:
    white = plain((255, 255, 255))
    grid = image_grid_figure([(plain(RED), white, white), (plain(GREEN), white, white)])
    assert box(grid, GREEN)[1] == box(grid, RED)[1] + 128 + 8
    below = box(grid, RED)[1] + 128
    assert (grid[below : below + 8] == 255).all()


def test_labels_above_columns_and_captions_below_rows() -> None:
    row = (plain(RED), plain(GREEN), plain(BLUE))
    grid = image_grid_figure([row], captions=["00012_test_2+.png"])
    bare = image_grid_figure([row], labels=("", "", ""))
    left, top, width, height = box(grid, GREEN)
    assert (bare[: box(bare, GREEN)[1]] == 255).all()
    for color in (RED, GREEN, BLUE):
        column = box(grid, color)[0]
        head = grid[:top, column : column + width].min(axis=(0, 2))
        assert head.min() < 100
        inked = np.nonzero(head < 128)[0]
        assert abs((inked[0] + inked[-1]) / 2 - width / 2) < 4  # in the middle
    assert grid[top + height :, :left].min() < 100
    assert (grid[top + height :, -100:] == 255).all()


def test_long_caption_is_shortened() -> None:
    row = (plain(RED),) * 3
    grid = image_grid_figure([row], captions=["a name without end " * 40])
    assert grid.shape == image_grid_figure([row], captions=["short"]).shape
    assert (grid[:, -4:] == 255).all()


def test_large_patches_are_reduced_by_averaging() -> None:
    checks = np.zeros((1024, 1024, 3), dtype=np.uint8)
    checks[::2, ::2] = checks[1::2, 1::2] = 200
    grid = image_grid_figure([(checks, plain(GREEN, 1024, 1024), plain(BLUE, 1024, 1024))])
    _, top, width, height = box(grid, GREEN)
    assert (width, height) == (SHOWN_PX, SHOWN_PX)
    assert (grid[top : top + height, 8 : 8 + width] == 100).all()


def test_wide_patch_keeps_its_aspect_ratio() -> None:
    grid = image_grid_figure([(plain(RED, 300, 1200), plain(GREEN, 1200, 300), plain(BLUE, 1, 2000))])
    assert box(grid, RED)[2:] == (512, 128)
    assert box(grid, GREEN)[2:] == (128, 512)
    assert box(grid, BLUE)[2:] == (512, 1)


def test_small_patches_are_enlarged_without_new_colors() -> None:
    noise = np.random.default_rng(1).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    grid = image_grid_figure([(noise, plain(GREEN, 32, 48), plain(BLUE, 32, 48))])
    _, top, width, height = box(grid, GREEN)
    assert (width, height) == (144, 96)
    np.testing.assert_array_equal(grid[top : top + height : 3, 8 : 8 + width : 3], noise)
    tall = (plain(GREEN, 400, 40), plain(RED, 9, 9), plain(BLUE, 9, 9))
    assert box(image_grid_figure([tall]), GREEN)[2:] == (40, 400)


def test_images_may_be_views() -> None:
    noise = np.random.default_rng(2).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    turned = np.rot90(noise)[:, ::-1]
    grid = image_grid_figure([(turned, plain(GREEN), plain(BLUE))])
    top = box(grid, GREEN)[1]
    np.testing.assert_array_equal(grid[top : top + 128, 8:136], turned)


def test_mismatched_numbers_are_an_error() -> None:
    with pytest.raises(ValueError, match="one image per label"):
        image_grid_figure([])
    with pytest.raises(ValueError, match="one image per label"):
        image_grid_figure([(plain(RED), plain(RED))])
    with pytest.raises(ValueError, match="one caption per row"):
        image_grid_figure([(plain(RED),) * 3], captions=["one", "two"])


def test_png_replaces_an_existing_file(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    noise = np.random.default_rng(3).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    save_png(path, plain(RED))
    save_png(path, noise[:, ::-1])
    with Image.open(path) as image:
        np.testing.assert_array_equal(np.asarray(image), noise[:, ::-1])
    assert list(tmp_path.iterdir()) == [path]


def test_unwritable_png_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="missing"):
        save_png(tmp_path / "missing" / "a.png", plain(RED))
