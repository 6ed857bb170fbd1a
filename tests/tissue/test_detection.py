"""Finding tissue on painted overviews, and on real thumbnails if available."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from tissue_synthetic import (
    BACKGROUND,
    EOSIN,
    HE,
    HEMATOXYLIN,
    MPP,
    PENS,
    SHAPE,
    bare_background,
    disc,
    he_blob,
    inked,
    stained,
    to_image,
)

from wsi2ihc.geometry import RGB, BoolImage, RGBImage
from wsi2ihc.tissue import find_tissue


def found_share(tissue: BoolImage, where: BoolImage) -> float:
    """Fraction of ``where`` that was detected."""
    return np.count_nonzero(tissue & where) / np.count_nonzero(where)


def distance_um(where: BoolImage) -> np.ndarray:
    """µm from each px to the nearest of ``where``."""
    return cv2.distanceTransform((~where).view(np.uint8), cv2.DIST_L2, 5) * MPP


@pytest.mark.parametrize(
    "background", [(255, 255, 255), (240, 238, 241), (219, 219, 219), (201, 197, 203), (182, 180, 181), (228, 231, 224)]
)
def test_tissue_is_found_on_background_of_any_gray_and_the_background_is_measured(background: RGB) -> None:
    overview, where = he_blob(background)
    tissue, measured, warnings = find_tissue(overview, MPP)
    assert found_share(tissue, where) == 1.0
    assert distance_um(where)[tissue].max() <= 150  # margin, closing and blocks of 16 µm
    assert np.abs(np.subtract(measured, background)).max() <= 1
    assert warnings == ()


@pytest.mark.parametrize("strength", [1.0, 0.4, 0.15])
def test_faint_tissue_is_found(strength: float) -> None:
    overview, where = he_blob(strength=strength)
    assert found_share(find_tissue(overview, MPP).tissue, where) == 1.0


@pytest.mark.parametrize("dye", [HEMATOXYLIN, EOSIN])
def test_a_single_dye_is_enough(dye: tuple[float, float, float]) -> None:
    where = disc(SHAPE, (250, 200), 60)
    overview = to_image(stained(bare_background(), where, {dye: 0.12}))
    assert found_share(find_tissue(overview, MPP).tissue, where) == 1.0


def test_fat_beside_tissue_is_found_with_its_empty_cells() -> None:
    """Membranes 8 µm wide and 64 µm apart, so pale that none of them is certain."""
    solid, fat = disc(SHAPE, (130, 200), 60), disc(SHAPE, (290, 200), 110)
    y, x = np.mgrid[0 : SHAPE[0], 0 : SHAPE[1]]
    membranes = fat & ~solid & ((x % 8 == 0) | (y % 8 == 0))
    light = stained(bare_background(), solid, HE)
    light = stained(light, membranes, {EOSIN: 0.05})
    assert found_share(find_tissue(to_image(light), MPP).tissue, fat) >= 0.99


@pytest.mark.parametrize("color", PENS)
def test_pens_are_excluded_and_tissue_is_kept(color: str) -> None:
    where = disc(SHAPE, (250, 200), 90)
    ring = disc(SHAPE, (250, 200), 150) & ~disc(SHAPE, (250, 200), 115)
    overview = to_image(inked(stained(bare_background(), where, HE), ring, PENS[color]))
    tissue = find_tissue(overview, MPP).tissue
    assert found_share(tissue, where) == 1.0
    assert found_share(tissue, ring) <= 0.02


@pytest.mark.parametrize("color", PENS)
def test_pen_marks_alone_are_not_tissue_and_cause_a_warning(color: str) -> None:
    stroke = np.zeros(SHAPE, np.bool_)
    stroke[150:190, 60:440] = True
    tissue, _, warnings = find_tissue(to_image(inked(bare_background(), stroke, PENS[color])), MPP)
    assert found_share(tissue, stroke) == 0.0
    assert len(warnings) == 1
    assert "pen marks" in warnings[0]


def test_only_the_pen_mark_is_excluded_where_it_crosses_tissue() -> None:
    where, stroke = disc(SHAPE, (250, 200), 100), np.zeros(SHAPE, np.bool_)
    stroke[190:225, 20:480] = True
    overview = to_image(inked(stained(bare_background(), where, HE), stroke, PENS["green"]))
    tissue = find_tissue(overview, MPP).tissue
    beside = where & (distance_um(stroke) > 100)
    assert found_share(tissue, beside) == 1.0
    assert found_share(tissue, stroke & ~where) <= 0.02
    assert not (tissue & (distance_um(stroke) < 48)).any()  # where the translation fades into the background


def test_blood_within_tissue_is_kept_although_it_has_the_color_of_red_ink() -> None:
    where, blood = disc(SHAPE, (250, 200), 120), disc(SHAPE, (250, 200), 35)
    light = stained(bare_background(), where, HE)
    overview = to_image(np.where(blood[..., np.newaxis], PENS["red"], light))
    assert found_share(find_tissue(overview, MPP).tissue, where) == 1.0


def test_gray_things_are_no_tissue() -> None:
    light = bare_background()
    light[:, 60:63] *= 0.4  # the coverslip's edge
    light[300:360, 200:420] *= 0.85  # a shadow
    light[:40] = 3  # never illuminated
    light[disc(SHAPE, (400, 150), 4)] *= 0.3  # dust
    assert not find_tissue(to_image(light), MPP).tissue.any()


@pytest.mark.parametrize("noise", [0.0, 1.0, 3.0])
def test_bare_background_is_empty(noise: float) -> None:
    tissue, background, warnings = find_tissue(to_image(bare_background(noise=noise)), MPP)
    assert not tissue.any()
    assert np.abs(np.subtract(background, BACKGROUND)).max() <= 1
    assert warnings == ()


def test_uneven_light_is_no_tissue() -> None:
    y, x = np.mgrid[-1 : 1 : SHAPE[0] * 1j, -1 : 1 : SHAPE[1] * 1j]
    fall_off = 1 - 0.08 * (x * x + y * y)[..., np.newaxis] * np.array((1.0, 1.05, 1.0))
    assert not find_tissue(to_image(bare_background() * fall_off), MPP).tissue.any()


@pytest.mark.parametrize("gray", [0, 60, 128, 190, 255])
def test_a_constant_image_has_no_tissue(gray: int) -> None:
    assert not find_tissue(np.full((90, 70, 3), gray, np.uint8), MPP).tissue.any()


def test_tissue_that_fills_the_frame_is_all_found_and_background_is_inferred() -> None:
    light = stained(bare_background(), np.ones(SHAPE, np.bool_), {HEMATOXYLIN: 0.1, EOSIN: 0.35})
    tissue, background, warnings = find_tissue(to_image(light), MPP)
    assert tissue.mean() >= 0.999
    assert background[0] == background[1] == background[2]
    assert 220 <= background[0] <= 245
    assert any("no clear background" in warning for warning in warnings)


def test_scanned_background_counts_and_not_the_white_that_was_never_scanned() -> None:
    background = (214, 212, 216)
    overview, where = he_blob(background)
    overview[:, :120] = 255
    overview[330:] = 255
    tissue, measured, _ = find_tissue(overview, MPP)
    assert np.abs(np.subtract(measured, background)).max() <= 1
    assert found_share(tissue, where) == 1.0
    assert not tissue[350:].any()


def test_missing_areas_shown_black_are_no_tissue() -> None:
    overview, where = he_blob()
    tissue = find_tissue(cv2.copyMakeBorder(overview, 60, 60, 60, 60, cv2.BORDER_CONSTANT), MPP).tissue
    assert found_share(tissue[60:-60, 60:-60], where) == 1.0
    assert not tissue[:40].any()
    assert not tissue[:, -40:].any()


@pytest.mark.parametrize(("radius_px", "kept"), [(1, False), (6, True)])
def test_specks_are_dropped_and_fragments_kept(radius_px: int, kept: bool) -> None:
    overview = to_image(stained(bare_background(), disc(SHAPE, (100, 100), radius_px), {EOSIN: 0.3}))
    assert find_tissue(overview, MPP).tissue.any() == kept


@pytest.mark.parametrize(("radius_px", "filled"), [(20, True), (70, False)])
def test_small_holes_are_filled_and_large_ones_stay(radius_px: int, filled: bool) -> None:
    where = disc(SHAPE, (250, 200), 150) & ~disc(SHAPE, (250, 200), radius_px)
    tissue = find_tissue(to_image(stained(bare_background(), where, HE)), MPP).tissue
    assert found_share(tissue, where) == 1.0
    assert tissue[200, 250] == filled


@pytest.mark.parametrize("factor", [0.5, 2, 8])
def test_the_result_hardly_depends_on_the_resolution(factor: float) -> None:
    overview, where = he_blob()
    size = (round(SHAPE[1] * factor), round(SHAPE[0] * factor))
    other = cv2.resize(overview, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR)
    tissue = find_tissue(np.asarray(other, np.uint8), MPP / factor).tissue
    assert tissue.shape == (size[1], size[0])
    back = cv2.resize(tissue.view(np.uint8), (SHAPE[1], SHAPE[0]), interpolation=cv2.INTER_NEAREST) > 0
    assert found_share(back, where) == 1.0
    assert distance_um(where)[back].max() <= 200


def test_one_nucleus_on_sixteen_px_is_found() -> None:
    light = stained(bare_background((16, 16)), disc((16, 16), (8, 8), 3), {HEMATOXYLIN: 0.5})
    assert find_tissue(to_image(light), 0.5).tissue.mean() >= 0.9


@settings(max_examples=60, deadline=None)
@given(arrays(np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 40), st.just(3))), st.floats(0.1, 60))
def test_any_image_gives_a_mask_of_its_shape(overview: RGBImage, mpp: float) -> None:
    tissue, background, _ = find_tissue(overview, mpp)
    assert tissue.shape == overview.shape[:2]
    assert tissue.dtype == np.bool_
    assert all(0 <= value <= 255 for value in background)


def test_the_overview_is_not_changed() -> None:
    overview, _ = he_blob()
    before = overview.copy()
    find_tissue(overview, MPP)
    np.testing.assert_array_equal(overview, before)


@pytest.mark.parametrize(
    ("overview", "mpp"),
    [
        (np.zeros((4, 4), np.uint8), 8.0),
        (np.zeros((4, 4, 4), np.uint8), 8.0),
        (np.zeros((0, 4, 3), np.uint8), 8.0),
        (np.zeros((4, 4, 3), np.float32), 8.0),
        (np.zeros((4, 4, 3), np.uint8), 0.0),
        (np.zeros((4, 4, 3), np.uint8), float("nan")),
    ],
)
def test_invalid_overviews_are_refused(overview: np.ndarray, mpp: float) -> None:
    with pytest.raises(ValueError, match=r"overview"):
        find_tissue(overview, mpp)


def thumbnail(dev_data: Path, name: str) -> RGBImage:
    pixels = cv2.imread(str(dev_data / "thumbs" / name), cv2.IMREAD_COLOR)
    assert pixels is not None
    return np.ascontiguousarray(pixels[..., ::-1])


def test_real_tissue_against_a_mask_of_another_program(dev_data: Path) -> None:
    tissue = find_tissue(thumbnail(dev_data, "hs2p-slide.jpg"), 4.03).tissue
    reference = cv2.imread(str(dev_data / "thumbs/hs2p-tissue-mask-auto.tif"), cv2.IMREAD_UNCHANGED)
    assert tissue.mean() <= 1.3 * reference.mean()
    # The reference has specks of noise on the background.
    _, labels, stats, _ = cv2.connectedComponentsWithStats(reference)
    assert found_share(tissue, (stats[:, cv2.CC_STAT_AREA] >= 1000)[labels] & (reference > 0)) == 1.0


def test_real_red_pen_against_its_mask(dev_data: Path) -> None:
    tissue = find_tissue(thumbnail(dev_data, "pen_red.png"), 30.0).tissue
    pen = cv2.imread(str(dev_data / "thumbs/pen_red_penmask.png"), cv2.IMREAD_UNCHANGED) > 0
    assert found_share(tissue, pen) <= 0.35
    assert found_share(tissue, disc(tissue.shape, (240, 250), 120)) >= 0.99  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [
        ("21-rgb.png", 0.35, 0.40),  # very faint
        ("127-rgb.png", 0.07, 0.10),  # tiny, and the slide's edge
        ("424-rgb.png", 0.08, 0.11),
        ("498-rgb.png", 0.60, 0.70),
        ("pink-and-purple-slide.png", 0.50, 0.62),
    ],
)
def test_real_thumbnails(dev_data: Path, name: str, least: float, most: float) -> None:
    assert least <= find_tissue(thumbnail(dev_data, name), 20.0).tissue.mean() <= most


def test_the_edge_of_a_real_slide_is_excluded(dev_data: Path) -> None:
    assert not find_tissue(thumbnail(dev_data, "127-rgb.png"), 20.0).tissue[:150, 250:].any()


@pytest.mark.parametrize(
    ("name", "most"), [("almost-white-1", 0.0), ("no-tissue", 0.0), ("no-tissue2", 0.0), ("no-tissue-line", 0.0)]
)
def test_real_tiles_of_background(dev_data: Path, name: str, most: float) -> None:
    pixels = cv2.imread(str(dev_data / "tiles" / f"{name}.png"), cv2.IMREAD_COLOR)
    assert find_tissue(np.ascontiguousarray(pixels[..., ::-1]), 0.5).tissue.mean() <= most
