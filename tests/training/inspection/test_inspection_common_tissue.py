"""Patches whose common tissue is known."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from make_fields import PATCH_PX, patch, turned_rgb

from wsi2ihc.demo import synthetic_tissue
from wsi2ihc.training.inspection.common_tissue import Common, common_share, find_common
from wsi2ihc.training.inspection.fingerprints import fingerprint, turn_matrix


@pytest.fixture(scope="module")
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as threads:
        yield threads


def common(pool: ThreadPoolExecutor, *images: np.ndarray, factor: int = 1) -> list[Common]:
    return find_common([fingerprint(image, factor) for image in images], factor, pool)


@pytest.mark.parametrize("turn", range(8))
def test_turned_and_shifted(pool: ThreadPoolExecutor, turn: int) -> None:
    first, second = patch(0, 0)[0], patch(60, 25)[0]
    (found,) = common(pool, turned_rgb(first, turn), second)
    inverse = turn_matrix(turn).T
    assert np.array_equal(turn_matrix(found.turn), inverse)
    assert found.shift_px == pytest.approx((-60, -25), abs=1)
    assert found.share == pytest.approx((PATCH_PX - 60) * (PATCH_PX - 25) / PATCH_PX**2, abs=0.01)
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
    ids=["compressed", "out of focus", "darker", "turned by half a degree", "mirrored, soft and compressed"],
)
def test_scanned_again(pool: ThreadPoolExecutor, scanned: Callable[[np.ndarray], np.ndarray]) -> None:
    image = patch(20, 30)[0]
    (found,) = common(pool, image, np.ascontiguousarray(scanned(image)))
    assert found.share > 0.95
    assert found.correlation > 0.6


def test_tissue_that_is_merely_alike(pool: ThreadPoolExecutor) -> None:
    """Neither other cells drawn in the same way, nor neighbours without a common part, nor another mucosa."""
    fields = [patch(0, 0, seed)[0] for seed in range(4)]
    neighbours = [patch(PATCH_PX, 0)[0], patch(0, PATCH_PX)[0], patch(PATCH_PX, PATCH_PX)[0]]
    mucosa = [synthetic_tissue(PATCH_PX, PATCH_PX, seed) for seed in range(3)]
    assert common(pool, *fields, *neighbours, *mucosa) == []


def test_real_shapes_of_the_demo(pool: ThreadPoolExecutor) -> None:
    tissue = synthetic_tissue(640, 512, 5)
    (found,) = common(pool, tissue[:512, :512], np.ascontiguousarray(tissue[:, 128:]), factor=1)
    assert found.shift_px == pytest.approx((-128, 0), abs=1)
    (found,) = common(pool, tissue[:512, :512], np.ascontiguousarray(tissue[:, 128:]), factor=2)
    assert found.shift_px == pytest.approx((-128, 0), abs=1.5)
    assert found.share == pytest.approx(0.75, abs=0.01)


def test_patches_of_two_sizes(pool: ThreadPoolExecutor) -> None:
    whole, part = patch(0, 0, side_px=256)[0], patch(50, 60, side_px=128)[0]
    (found,) = common(pool, whole, part)
    assert found.share == pytest.approx(1.0, abs=0.01)
    assert found.correlation > 0.9
    (again,) = common(pool, part, whole)
    assert again.shift_px == pytest.approx((-found.shift_px[0], -found.shift_px[1]), abs=0.5)


def test_share_is_that_of_the_masks() -> None:
    random = np.random.default_rng(0)
    first, second = (fingerprint(np.full((*size, 3), 255, np.uint8), 1) for size in ((40, 60), (50, 30)))
    for turn in range(8):
        shift = random.integers(-40, 40, 2)
        plane, moving = np.zeros((200, 200), bool), np.zeros((200, 200), bool)
        plane[75:125, 85:115] = True
        rows, columns = (60, 40) if turn & 4 else (40, 60)
        top, left = 100 + shift[1] - rows // 2, 100 + shift[0] - columns // 2
        moving[top : top + rows, left : left + columns] = True
        share = common_share(first, second, turn, (float(shift[0]), float(shift[1])))
        assert share == pytest.approx((plane & moving).sum() / 1500), (turn, shift)


def test_progress_counts_candidates(pool: ThreadPoolExecutor) -> None:
    seen: list[tuple[int, int]] = []
    prints = [fingerprint(patch(x, 0)[0], 1) for x in (0, 30, 60)]
    found = find_common(prints, 1, pool, lambda done, of: seen.append((done, of)))
    assert [(one.first, one.second) for one in found] == [(0, 1), (0, 2), (1, 2)]
    assert seen == [(1, 3), (2, 3), (3, 3)]
