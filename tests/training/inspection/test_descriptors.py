"""Local descriptors: codes and orientations."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from make_fields import patch, reoriented_rgb

from wsi2ihc.training.inspection import duplicates
from wsi2ihc.training.inspection.duplicates import (
    CODE_BITS,
    MAX_KEYPOINTS,
    THUMBNAIL_PX,
    describe_patch,
    orientation_matrix,
    reduction,
    relative_orientations,
    reoriented,
)


@pytest.mark.parametrize("orientation", range(8))
def test_reoriented_patch_has_the_same_codes(orientation: int) -> None:
    image = patch(0, 0)[0][:, :160]
    one, other = describe_patch(image, 1), describe_patch(reoriented_rgb(image, orientation), 1)
    assert len(one.codes) > 40
    assert (other.size.width, other.size.height) == (reoriented(image[..., 0], orientation).shape[1::-1])
    at = {tuple(place): number for number, place in enumerate(other.xy.tolist())}
    keypoints = [at.get(tuple(place)) for place in (one.xy @ orientation_matrix(orientation).T).tolist()]
    same = [number for number, place in enumerate(keypoints) if place is not None]
    assert len(same) > 0.95 * len(one.codes)  # extrema of equal height are rare
    matched = [keypoints[number] for number in same]
    codes = other.codes[matched]
    assert np.mean(codes == one.codes[same]) > 0.9  # rounding of sums, where a coefficient is nearly 0
    between = relative_orientations()[
        one.orientations[same], other.orientations[[keypoints[number] for number in same]]
    ]
    assert np.mean(between == orientation) > 0.95


def test_orientation_names() -> None:
    image = np.array([[1, 2, 3], [4, 5, 6]], np.uint8)
    expected = [image, np.fliplr(image), np.flipud(image), np.rot90(image, 2), image.T, np.rot90(image, -1),
                np.rot90(image), np.rot90(image, 2).T]  # fmt: skip
    for orientation, result in enumerate(expected):
        assert np.array_equal(reoriented(image, orientation), result), orientation


def test_descriptor_size_is_bounded() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (512, 512, 3), dtype=np.uint8)
    kept = describe_patch(noise, 1)
    assert len(kept.codes) == len(kept.orientations) == len(kept.xy) == MAX_KEYPOINTS
    assert max(kept.thumbnail.shape) <= THUMBNAIL_PX
    assert int(kept.codes.max()) < 2**CODE_BITS
    assert 10_000 < sum(one.nbytes for one in (kept.codes, kept.orientations, kept.xy, kept.thumbnail)) < 24_000


def test_background_has_no_keypoints() -> None:
    assert len(describe_patch(np.full((128, 128, 3), 240, np.uint8), 1).codes) == 0
    assert len(describe_patch(np.full((16, 300, 3), 240, np.uint8), 1).codes) == 0  # lower than the grid


def test_straight_edges_have_few_keypoints(monkeypatch: pytest.MonkeyPatch) -> None:
    edge = np.full((256, 256, 3), 240, np.uint8)
    cv2.fillPoly(edge, [np.array([[0, 0], [180, 0], [60, 400]])], (20, 20, 20), cv2.LINE_AA)
    few = len(describe_patch(edge, 1).codes)
    monkeypatch.setattr(duplicates, "MAX_ELONGATION", 1e9)
    assert 4 * few < len(describe_patch(edge, 1).codes)


@pytest.mark.parametrize(("longest", "factor"), [(16, 1), (512, 1), (513, 2), (1024, 2), (2000, 4)])
def test_reduction(longest: int, factor: int) -> None:
    assert reduction(longest) == factor


def test_large_patches_are_reduced() -> None:
    image = patch(0, 0)[0]
    kept = describe_patch(image.repeat(2, axis=0).repeat(2, axis=1), 2)
    plain = describe_patch(image, 1)
    assert np.array_equal(kept.codes, plain.codes)
    assert np.array_equal(kept.xy, plain.xy)
    assert np.array_equal(kept.thumbnail, plain.thumbnail)
