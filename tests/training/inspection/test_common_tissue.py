"""Detection of common tissue in patches with known overlap."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from make_fields import PATCH_PX, patch, reoriented_rgb

from wsi2ihc.demo import synthetic_tissue
from wsi2ihc.training.inspection.duplicates import (
    CommonTissue,
    describe_patch,
    find_common_tissue,
    orientation_matrix,
    overlap_fraction,
)


@pytest.fixture(scope="module")
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as threads:
        yield threads


def common(pool: ThreadPoolExecutor, *images: np.ndarray, factor: int = 1) -> list[CommonTissue]:
    return find_common_tissue([describe_patch(image, factor) for image in images], factor, pool)


@pytest.mark.parametrize("orientation", range(8))
def test_reoriented_and_shifted_patches(pool: ThreadPoolExecutor, orientation: int) -> None:
    first, second = patch(0, 0)[0], patch(60, 25)[0]
    (found,) = common(pool, reoriented_rgb(first, orientation), second)
    inverse = orientation_matrix(orientation).T
    assert np.array_equal(orientation_matrix(found.orientation), inverse)
    assert found.shift_px == pytest.approx((-60, -25), abs=1)
    assert found.overlap == pytest.approx((PATCH_PX - 60) * (PATCH_PX - 25) / PATCH_PX**2, abs=0.01)
    assert found.correlation > 0.9


def compressed(image: np.ndarray) -> np.ndarray:
    return np.asarray(cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 40])[1], cv2.IMREAD_COLOR))


@pytest.mark.parametrize(
    "scanned",
    [
        compressed,
        lambda image: cv2.GaussianBlur(image, (0, 0), 1.5),
        lambda image: (255 * (image / 255) ** 1.4).astype(np.uint8),
        lambda image: cv2.warpAffine(image, np.array([[1, 0.01, 0.4], [-0.01, 1, 0.3]]), image.shape[1::-1]),
        lambda image: compressed(cv2.GaussianBlur(np.flipud(image), (0, 0), 0.8)),
    ],
    ids=["compressed", "out of focus", "darker", "reoriented by half a degree", "mirrored, soft and compressed"],
)
def test_second_scan_of_the_same_tissue(pool: ThreadPoolExecutor, scanned: Callable[[np.ndarray], np.ndarray]) -> None:
    image = patch(20, 30)[0]
    (found,) = common(pool, image, np.ascontiguousarray(scanned(image)))
    assert found.overlap > 0.95
    assert found.correlation > 0.6


def test_similar_tissue_is_not_a_duplicate(pool: ThreadPoolExecutor) -> None:
    """Other cells, adjacent patches and other mucosa are not duplicates."""
    fields = [patch(0, 0, seed)[0] for seed in range(4)]
    neighbors = [patch(PATCH_PX, 0)[0], patch(0, PATCH_PX)[0], patch(PATCH_PX, PATCH_PX)[0]]
    mucosa = [synthetic_tissue(PATCH_PX, PATCH_PX, seed) for seed in range(3)]
    assert common(pool, *fields, *neighbors, *mucosa) == []


def test_tissue_of_the_demo(pool: ThreadPoolExecutor) -> None:
    tissue = synthetic_tissue(640, 512, 5)
    (found,) = common(pool, tissue[:512, :512], np.ascontiguousarray(tissue[:, 128:]), factor=1)
    assert found.shift_px == pytest.approx((-128, 0), abs=1)
    (found,) = common(pool, tissue[:512, :512], np.ascontiguousarray(tissue[:, 128:]), factor=2)
    assert found.shift_px == pytest.approx((-128, 0), abs=1.5)
    assert found.overlap == pytest.approx(0.75, abs=0.01)


def test_patches_of_two_sizes(pool: ThreadPoolExecutor) -> None:
    whole, part = patch(0, 0, side_px=256)[0], patch(50, 60, side_px=128)[0]
    (found,) = common(pool, whole, part)
    assert found.overlap == pytest.approx(1.0, abs=0.01)
    assert found.correlation > 0.9
    (again,) = common(pool, part, whole)
    assert again.shift_px == pytest.approx((-found.shift_px[0], -found.shift_px[1]), abs=0.5)


def test_overlap_fraction_equals_that_of_masks() -> None:
    random = np.random.default_rng(0)
    first, second = (describe_patch(np.full((*size, 3), 255, np.uint8), 1) for size in ((40, 60), (50, 30)))
    for orientation in range(8):
        shift = random.integers(-40, 40, 2)
        plane, moving = np.zeros((200, 200), bool), np.zeros((200, 200), bool)
        plane[75:125, 85:115] = True
        rows, columns = (60, 40) if orientation & 4 else (40, 60)
        top, left = 100 + shift[1] - rows // 2, 100 + shift[0] - columns // 2
        moving[top : top + rows, left : left + columns] = True
        share = overlap_fraction(first, second, orientation, (float(shift[0]), float(shift[1])))
        assert share == pytest.approx((plane & moving).sum() / 1500), (orientation, shift)


def test_progress_counts_candidates(pool: ThreadPoolExecutor) -> None:
    seen: list[tuple[int, int]] = []
    descriptors = [describe_patch(patch(x, 0)[0], 1) for x in (0, 30, 60)]
    found = find_common_tissue(descriptors, 1, pool, lambda done, of: seen.append((done, of)))
    assert [(one.first, one.second) for one in found] == [(0, 1), (0, 2), (1, 2)]
    assert seen == [(1, 3), (2, 3), (3, 3)]
