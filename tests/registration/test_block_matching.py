"""Blocks found again."""

from __future__ import annotations

import numpy as np
import pytest

from wsi2ihc.demo.ihc_pair import restain
from wsi2ihc.demo.render import synthetic_tissue
from wsi2ihc.registration import block_matches
from wsi2ihc.registration.block_matches import BlockSize, agreeing, match_blocks
from wsi2ihc.registration.overview import RegistrationView
from wsi2ihc.registration.transform import Transform
from wsi2ihc.slide.readers.image_reader import MemorySlide

SIZE = BlockSize(mpp=1.0, side_px=48, step_px=24, radius_px=8)
BACKGROUND = (243, 243, 245)


@pytest.fixture(scope="module")
def tissue() -> np.ndarray:
    return synthetic_tissue(700, 520, 4)


def view(pixels: np.ndarray) -> RegistrationView:
    return RegistrationView(MemorySlide(pixels, "memory", (1.0, 1.0)), BACKGROUND)


def shift(x_um: float, y_um: float) -> Transform:
    return Transform(np.array([[1, 0, x_um], [0, 1, y_um]]))


@pytest.mark.parametrize(("x_um", "y_um"), [(0.0, 0.0), (3.0, -5.0), (-2.5, 1.25)])
def test_a_known_shift_is_found(tissue: np.ndarray, x_um: float, y_um: float) -> None:
    """Blocks lie where the transform is wrong by, in the other direction."""
    ihc = restain(tissue, 1, 2.0, mpp=1.0)
    found = match_blocks(view(tissue), view(ihc), shift(x_um, y_um), SIZE)
    assert found.agreement > 0.8
    np.testing.assert_allclose(np.median(found.offsets_um[found.agree], axis=0), (-x_um, -y_um), atol=0.25)


def test_pieces_do_not_matter(tissue: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    def sorted_matches() -> np.ndarray:
        found = match_blocks(view(tissue), view(tissue), shift(2, 1), SIZE)
        rows = np.column_stack([found.points_um, found.offsets_um, found.scores])
        return rows[np.lexsort(rows[:, :2].T)]

    whole = sorted_matches()
    monkeypatch.setattr(block_matches, "_PIECE_PX", 130)
    np.testing.assert_allclose(sorted_matches(), whole, atol=1e-4)
    assert len(whole) > 300


def test_threads_do_not_matter(tissue: np.ndarray) -> None:
    one, several = (match_blocks(view(tissue), view(tissue), shift(1, 1), SIZE, workers=count) for count in (1, 3))
    np.testing.assert_array_equal(one.points_um, several.points_um)
    np.testing.assert_array_equal(one.offsets_um, several.offsets_um)


def test_an_offset_beyond_the_search_range_is_at_its_border(tissue: np.ndarray) -> None:
    found = match_blocks(view(tissue), view(tissue), shift(12, 0), SIZE)
    assert not found.agree[found.at_border].any()
    assert found.at_border.mean() > 0.2
    assert found.agreement < 0.3


def test_background_and_tissue_missing_on_the_other_slide_are_not_matched(tissue: np.ndarray) -> None:
    assert match_blocks(view(np.full_like(tissue, 243)), view(tissue), shift(0, 0), SIZE).count == 0
    assert match_blocks(view(tissue), view(tissue), shift(5000, 0), SIZE).count == 0
    half = match_blocks(view(tissue), view(tissue), shift(350, 0), SIZE)
    assert 0 < half.points_um[:, 0].max() < 400


def test_neighbors_outvote_a_wild_block() -> None:
    line = np.arange(0.0, 600, 60)
    points = np.stack(np.meshgrid(line, line), axis=-1).reshape(-1, 2)
    offsets = np.tile([4.0, -2.0], (len(points), 1))
    offsets[17] = (30, 30)
    agree = agreeing(points, offsets, 3.0)
    assert not agree[17]
    assert agree.sum() == len(points) - 1
    assert not agreeing(points[:5], offsets[:5], 3.0).any(), "too few to vote"
