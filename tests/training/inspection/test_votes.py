"""Candidates of duplicate tissue by votes."""

from __future__ import annotations

import numpy as np
import pytest
from make_fields import patch

from wsi2ihc.geometry import Size
from wsi2ihc.training.inspection import duplicates
from wsi2ihc.training.inspection.duplicates import CODE_BITS, Descriptors, describe_patch, find_candidates

RANDOM = np.random.default_rng(0)
THUMBNAIL = np.zeros((8, 8), np.uint8)


def synthetic_descriptors(codes: np.ndarray, xy: np.ndarray) -> Descriptors:
    return Descriptors(codes, np.zeros(len(codes), np.uint8), xy.astype(np.float32), Size(256, 256), THUMBNAIL, 1)


def random_descriptors(count: int = 300) -> Descriptors:
    codes = RANDOM.integers(0, 2**CODE_BITS, count, dtype=np.uint64)
    return synthetic_descriptors(codes, RANDOM.uniform(-100, 100, (count, 2)))


def moved(one: Descriptors, shift: tuple[float, float], flipped_bits: int = 0) -> Descriptors:
    codes = one.codes.copy()
    for number in range(len(codes)):
        for bit in RANDOM.permutation(CODE_BITS)[:flipped_bits]:
            codes[number] ^= np.uint64(1) << np.uint64(bit)
    return synthetic_descriptors(codes, one.xy + np.array(shift))


def test_hamming_distance() -> None:
    one, other = RANDOM.integers(0, 2**64, (2, 1000), dtype=np.uint64)
    expected = [int(a ^ b).bit_count() for a, b in zip(one.tolist(), other.tolist(), strict=True)]
    assert duplicates._different_bits(one, other).tolist() == expected


@pytest.mark.parametrize("flipped_bits", [0, 4, 8])
def test_equal_codes_vote_for_their_shift(flipped_bits: int) -> None:
    first, other = random_descriptors(), random_descriptors()
    second = moved(first, (-31.5, 12.0), flipped_bits)
    (found,) = find_candidates([first, other, second])
    assert (found.first, found.second, found.orientation) == (0, 2, 0)
    assert found.reduced_shift == pytest.approx((-31.5, 12.0), abs=1e-3)
    assert found.votes > (280 if flipped_bits == 0 else 10)


def test_different_codes_do_not_vote() -> None:
    first = random_descriptors()
    assert find_candidates([first, moved(first, (0, 0), duplicates.MAX_DIFFERENT_BITS + 1)]) == []


def test_inconsistent_shifts_are_not_candidates() -> None:
    first = random_descriptors()
    second = synthetic_descriptors(first.codes, RANDOM.uniform(-100, 100, first.xy.shape))
    assert all(one.votes < 10 for one in find_candidates([first, second]))


def test_many_copies_are_linked() -> None:
    first = random_descriptors(60)
    found = find_candidates([first] * 120)
    assert {one.first for one in found} | {one.second for one in found} == set(range(120))
    assert len(found) <= 120 * duplicates.NEIGHBORS


def test_batch_size_does_not_change_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    descriptors = [describe_patch(patch(x, y)[0], 1) for x in (0, 40, 90) for y in (0, 70)]
    whole = find_candidates(descriptors)
    assert len(whole) > 8
    monkeypatch.setattr(duplicates, "BATCH_SIZE", 1)
    assert find_candidates(descriptors) == whole


def test_nothing_to_compare() -> None:
    empty = synthetic_descriptors(np.zeros(0, np.uint64), np.zeros((0, 2)))
    assert find_candidates([]) == find_candidates([empty, empty]) == find_candidates([random_descriptors()]) == []
    assert find_candidates([empty, random_descriptors(1)]) == []
