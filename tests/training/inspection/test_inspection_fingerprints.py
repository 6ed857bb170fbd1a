"""Codes of places: what they stand, and what turns do to them."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from make_fields import patch, turned_rgb

from wsi2ihc.training.inspection import fingerprints
from wsi2ihc.training.inspection.fingerprints import (
    CODE_BITS,
    MOST_PLACES,
    THUMBNAIL_PX,
    fingerprint,
    reduction,
    turn_matrix,
    turned,
    turns_between,
)


@pytest.mark.parametrize("turn", range(8))
def test_a_turned_patch_has_the_same_codes(turn: int) -> None:
    image = patch(0, 0)[0][:, :160]
    one, other = fingerprint(image, 1), fingerprint(turned_rgb(image, turn), 1)
    assert len(one.codes) > 40
    assert (other.size.width, other.size.height) == (turned(image[..., 0], turn).shape[1::-1])
    at = {tuple(place): number for number, place in enumerate(other.xy.tolist())}
    places = [at.get(tuple(place)) for place in (one.xy @ turn_matrix(turn).T).tolist()]
    same = [number for number, place in enumerate(places) if place is not None]
    assert len(same) > 0.95 * len(one.codes)  # extrema of equal height are rare
    codes = other.codes[[places[number] for number in same]]
    assert np.mean(codes == one.codes[same]) > 0.9  # rounding of sums, where a coefficient is nearly 0
    between = turns_between()[one.turns[same], other.turns[[places[number] for number in same]]]
    assert np.mean(between == turn) > 0.95


def test_turns_do_what_they_are_called() -> None:
    image = np.array([[1, 2, 3], [4, 5, 6]], np.uint8)
    expected = [image, np.fliplr(image), np.flipud(image), np.rot90(image, 2), image.T, np.rot90(image, -1),
                np.rot90(image), np.rot90(image, 2).T]  # fmt: skip
    for turn, result in enumerate(expected):
        assert np.array_equal(turned(image, turn), result), turn


def test_what_is_kept_is_bounded() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (512, 512, 3), dtype=np.uint8)
    kept = fingerprint(noise, 1)
    assert len(kept.codes) == len(kept.turns) == len(kept.xy) == MOST_PLACES
    assert max(kept.thumbnail.shape) <= THUMBNAIL_PX
    assert int(kept.codes.max()) < 2**CODE_BITS
    assert 10_000 < sum(one.nbytes for one in (kept.codes, kept.turns, kept.xy, kept.thumbnail)) < 24_000


def test_glass_has_no_places() -> None:
    assert len(fingerprint(np.full((128, 128, 3), 240, np.uint8), 1).codes) == 0
    assert len(fingerprint(np.full((16, 300, 3), 240, np.uint8), 1).codes) == 0  # lower than the grid


def test_straight_edges_have_few_places(monkeypatch: pytest.MonkeyPatch) -> None:
    edge = np.full((256, 256, 3), 240, np.uint8)
    cv2.fillPoly(edge, [np.array([[0, 0], [180, 0], [60, 400]])], (20, 20, 20), cv2.LINE_AA)
    few = len(fingerprint(edge, 1).codes)
    monkeypatch.setattr(fingerprints, "MOST_ELONGATED", 1e9)
    assert 4 * few < len(fingerprint(edge, 1).codes)


@pytest.mark.parametrize(("longest", "factor"), [(16, 1), (512, 1), (513, 2), (1024, 2), (2000, 4)])
def test_reduction(longest: int, factor: int) -> None:
    assert reduction(longest) == factor


def test_large_patches_are_reduced() -> None:
    image = patch(0, 0)[0]
    kept = fingerprint(image.repeat(2, axis=0).repeat(2, axis=1), 2)
    plain = fingerprint(image, 1)
    assert np.array_equal(kept.codes, plain.codes)
    assert np.array_equal(kept.xy, plain.xy)
    assert np.array_equal(kept.thumbnail, plain.thumbnail)
