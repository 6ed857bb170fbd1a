"""Figures of a registration: the right pixels in the right fields, and text that fits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from make_slides import halves, texture, write_slide

from wsi2ihc.geometry import Size
from wsi2ihc.registration.figures import (
    CELLS,
    KEPT,
    REASONS,
    PatchMark,
    checkerboard,
    deformation_figure,
    figure_mpp,
    kept_and_rejected,
    thumbnail,
)
from wsi2ihc.registration.transform import LocalField, SlideFrame, Transform, affine, identity
from wsi2ihc.slide import Slide, open_slide

WIDTH, HEIGHT = 480, 300
DARK, LIGHT = (30, 60, 90), (220, 200, 180)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("figures")


def plain_slide(path: Path, color: tuple[int, int, int], size: tuple[int, int], mpp: float = 2.0) -> Slide:
    pixels = np.broadcast_to(np.array(color, np.uint8), (size[1], size[0], 3)).copy()
    return open_slide(write_slide(path, pixels, style="aperio", compression="deflate", tile=64, mpp=mpp))


def close(pixels: npt.NDArray[np.uint8], color: tuple[int, int, int], levels: int = 2) -> npt.NDArray[np.bool_]:
    return np.asarray((np.abs(pixels.astype(int) - color) <= levels).all(axis=-1))


@pytest.mark.parametrize(
    ("sizes", "mpps", "expected"),
    [
        ([(12_000, 6_000)], [0.5], 5.0),
        ([(6_000, 12_000)], [0.5], 5.0),
        ([(800, 600)], [0.5], 0.5),  # nothing is enlarged
        ([(12_000, 6_000), (900, 900)], [0.5, 7.0], 7.0),
        ([(300_000, 90_000)], [0.25], 50.0),
    ],
)
def test_the_resolution_of_a_figure(sizes: list[tuple[int, int]], mpps: list[float], expected: float) -> None:
    frames = [SlideFrame("x", Size(*size), (mpp, mpp)) for size, mpp in zip(sizes, mpps, strict=True)]
    assert figure_mpp(frames) == pytest.approx(expected)


def test_a_thumbnail_is_the_slide(folder: Path) -> None:
    pixels = texture(400, 240, seed=1)
    path = write_slide(folder / "t.svs", halves(pixels, 2), style="aperio", compression="deflate", tile=64, mpp=0.5)
    with open_slide(path) as slide:
        assert np.array_equal(thumbnail(slide, 0.5), pixels)
        half = thumbnail(slide, 1.0)
    assert half.shape == (120, 200, 3)
    assert np.abs(half.astype(int) - halves(pixels, 2)[1]).mean() < 3


def test_the_fields_of_a_checkerboard_come_in_turn(folder: Path) -> None:
    with (
        plain_slide(folder / "a.svs", DARK, (WIDTH, HEIGHT)) as fixed,
        plain_slide(folder / "b.svs", LIGHT, (WIDTH, HEIGHT)) as moving,
    ):
        board = checkerboard(fixed, moving, identity())
    assert board.shape[1] == WIDTH
    assert board.shape[0] > HEIGHT
    side = WIDTH // CELLS
    for row in range(HEIGHT // side):
        for column in range(CELLS):
            field = board[row * side : (row + 1) * side, column * side : (column + 1) * side]
            assert close(field, DARK if (row + column) % 2 == 0 else LIGHT).all()


def test_outside_of_the_moving_slide_is_the_fill(folder: Path) -> None:
    with (
        plain_slide(folder / "c.svs", DARK, (WIDTH, HEIGHT)) as fixed,
        plain_slide(folder / "d.svs", LIGHT, (WIDTH, HEIGHT)) as moving,
    ):
        away = affine([[1, 0, 10_000], [0, 1, 0]])
        board = checkerboard(fixed, moving, away, fill=(1, 2, 3))
        before = checkerboard(fixed, moving, None, fill=(1, 2, 3))
    side = WIDTH // CELLS
    assert close(board[:side, side : 2 * side], (1, 2, 3), 0).all()
    assert close(before[:side, side : 2 * side], LIGHT).all()


def test_after_registration_structures_go_on_across_fields(folder: Path) -> None:
    pixels = texture(WIDTH, HEIGHT, seed=3)
    moved = np.roll(pixels, (13, -9), axis=(0, 1))
    paths = [
        write_slide(folder / name, image, style="aperio", compression="deflate", tile=64, mpp=1.0)
        for name, image in (("e.svs", pixels), ("f.svs", moved))
    ]
    with open_slide(paths[0]) as fixed, open_slide(paths[1]) as moving:
        board = checkerboard(fixed, moving, affine([[1, 0, -9], [0, 1, 13]]))
        before = checkerboard(fixed, moving, None)
    inside = (slice(20, HEIGHT - 20), slice(20, WIDTH - 20))
    assert np.array_equal(board[:HEIGHT][inside], pixels[inside])
    assert np.abs(before[:HEIGHT][inside].astype(int) - pixels[inside]).mean() > 5


def test_a_slide_is_shown_at_the_size_asked_for(folder: Path) -> None:
    with (
        plain_slide(folder / "g.svs", DARK, (WIDTH, HEIGHT)) as fixed,
        plain_slide(folder / "h.svs", LIGHT, (120, 90), mpp=4.0) as moving,
    ):
        assert checkerboard(fixed, moving, None, longest_px=200).shape[1] == 200
        # the moving slide has no finer px than 4 µm
        assert checkerboard(fixed, moving, None).shape[1] == 240


def test_colors_of_the_deformation_follow_its_length() -> None:
    overview = np.full((200, 300, 3), 128, np.uint8)
    coefficients = np.zeros((8, 8, 2))
    coefficients[3, 5] = (40, 0)
    turned = np.array([[0.0, -1.0, 500.0], [1.0, 0.0, 20.0]])
    figure = deformation_figure(Transform(turned, LocalField((0, 0), 100, coefficients)), overview, 2.0)
    assert figure.shape[0] > 200

    def level(y: int, x: int) -> float:
        # green only grows along the colors
        return float(np.median(figure[y - 3 : y + 4, x - 3 : x + 4, 1]))

    # control point (3, 5) lies at 500, 300 µm: px 250, 150
    assert level(150, 250) > level(150, 215) > level(40, 40)
    lines = (figure[:200] > 225).all(axis=-1)
    assert 0.02 < lines.mean() < 0.3


def test_without_a_field_the_figure_is_gray_with_a_note() -> None:
    overview = texture(300, 200, seed=2)
    figure = deformation_figure(identity(), overview, 2.0)
    assert (figure[:200].max(axis=-1) == figure[:200].min(axis=-1)).all()
    assert (figure[200:] < 128).any()


def test_patches_are_outlined_in_the_color_of_their_reason() -> None:
    overview = np.full((240, 400, 3), 255, np.uint8)
    patches = [PatchMark(100, 100, 200), PatchMark(300, 100, 200, "fold"), PatchMark(700, 300, 200, "unheard of")]
    figure = kept_and_rejected(overview, 5.0, patches)
    assert close(figure[20:60, 20:60], KEPT).sum() >= 4 * 30
    assert close(figure[20:60, 60:100], REASONS["fold"]).sum() >= 4 * 30
    # neighbors do not draw over each other, and nothing is drawn elsewhere
    assert not close(figure[20:60, 20:60], REASONS["fold"]).any()
    assert (figure[:18] == 255).all()
    assert (figure[110:240] == 255).all()
    foot = figure[240:]
    for color in (KEPT, REASONS["fold"]):
        assert close(foot, color, 0).sum() == 16 * 16
    assert not close(foot, REASONS["pen"], 0).any()


@pytest.mark.parametrize("tissue", [(225, 140, 185), (150, 90, 160), (190, 60, 110), (245, 243, 244)])
def test_patches_differ_from_tissue_and_from_each_other(tissue: tuple[int, int, int]) -> None:
    overview = np.full((100, 100, 3), tissue, np.uint8)
    inside = [
        kept_and_rejected(overview, 1.0, [PatchMark(10, 10, 80, reason)])[50, 50].astype(int)
        for reason in ("", *REASONS)
    ]
    for number, color in enumerate([np.array(tissue), *inside]):
        for other in inside[number:]:
            assert np.linalg.norm(color - other) > 15


def test_a_scale_in_micrometres() -> None:
    overview = np.full((60, 600, 3), 255, np.uint8)
    foot = kept_and_rejected(overview, 1.0, [])[60:, 500:]
    with_u = (foot < 128).any(axis=-1)
    assert with_u.any()
    # the stem of µ reaches further down than any digit or m
    assert 3 <= np.flatnonzero(with_u.any(axis=1)).max() - np.flatnonzero(with_u[:, -20:].any(axis=1)).max() <= 6


@pytest.mark.parametrize("side_um", [1, 10, 40])
def test_patches_too_small_for_an_outline_still_show(side_um: float) -> None:
    overview = np.full((100, 100, 3), 255, np.uint8)
    figure = kept_and_rejected(overview, 10.0, [PatchMark(500, 500, side_um, "blur")])
    assert (figure[50, 50] != 255).any()


@pytest.mark.parametrize("width", [40, 120, 1200])
def test_any_width_has_room_for_its_foot(width: int) -> None:
    overview = np.full((30, width, 3), 200, np.uint8)
    patches = [PatchMark(0, 0, 10, reason) for reason in ("", *REASONS)]
    figure = kept_and_rejected(overview, 1.0, patches)
    assert figure.shape[1] == width
    assert np.array_equal(figure[25:30, width // 2 :], overview[25:30, width // 2 :])
