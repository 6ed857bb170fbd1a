"""Candidates by votes."""

from __future__ import annotations

import numpy as np
import pytest
from make_fields import patch

from wsi2ihc.geometry import Size
from wsi2ihc.training.inspection import voting
from wsi2ihc.training.inspection.fingerprints import CODE_BITS, Fingerprint, fingerprint
from wsi2ihc.training.inspection.voting import find_candidates

RANDOM = np.random.default_rng(0)
THUMBNAIL = np.zeros((8, 8), np.uint8)


def made_up(codes: np.ndarray, xy: np.ndarray) -> Fingerprint:
    return Fingerprint(codes, np.zeros(len(codes), np.uint8), xy.astype(np.float32), Size(256, 256), THUMBNAIL, 1)


def random_print(count: int = 300) -> Fingerprint:
    codes = RANDOM.integers(0, 2**CODE_BITS, count, dtype=np.uint64)
    return made_up(codes, RANDOM.uniform(-100, 100, (count, 2)))


def moved(one: Fingerprint, shift: tuple[float, float], flipped_bits: int = 0) -> Fingerprint:
    codes = one.codes.copy()
    for number in range(len(codes)):
        for bit in RANDOM.permutation(CODE_BITS)[:flipped_bits]:
            codes[number] ^= np.uint64(1) << np.uint64(bit)
    return made_up(codes, one.xy + np.array(shift))


def test_bits_are_counted() -> None:
    one, other = RANDOM.integers(0, 2**64, (2, 1000), dtype=np.uint64)
    expected = [int(a ^ b).bit_count() for a, b in zip(one.tolist(), other.tolist(), strict=True)]
    assert voting._different_bits(one, other).tolist() == expected


@pytest.mark.parametrize("flipped_bits", [0, 4, 8])
def test_same_codes_vote_for_their_shift(flipped_bits: int) -> None:
    first, stranger = random_print(), random_print()
    second = moved(first, (-31.5, 12.0), flipped_bits)
    (found,) = find_candidates([first, stranger, second])
    assert (found.first, found.second, found.turn) == (0, 2, 0)
    assert found.shift_px == pytest.approx((-31.5, 12.0), abs=1e-3)
    assert found.votes > (280 if flipped_bits == 0 else 10)


def test_codes_that_differ_too_much_do_not_vote() -> None:
    first = random_print()
    assert find_candidates([first, moved(first, (0, 0), voting.MOST_DIFFERENT_BITS + 1)]) == []


def test_votes_for_many_shifts_are_none() -> None:
    first = random_print()
    second = made_up(first.codes, RANDOM.uniform(-100, 100, first.xy.shape))
    assert all(one.votes < 10 for one in find_candidates([first, second]))


def test_many_copies_are_linked() -> None:
    first = random_print(60)
    found = find_candidates([first] * 120)
    assert {one.first for one in found} | {one.second for one in found} == set(range(120))
    assert len(found) <= 120 * voting.NEIGHBOURS


def test_counting_in_parts_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    prints = [fingerprint(patch(x, y)[0], 1) for x in (0, 40, 90) for y in (0, 70)]
    whole = find_candidates(prints)
    assert len(whole) > 8
    monkeypatch.setattr(voting, "PART", 1)
    assert find_candidates(prints) == whole


def test_nothing_to_compare() -> None:
    empty = made_up(np.zeros(0, np.uint64), np.zeros((0, 2)))
    assert find_candidates([]) == find_candidates([empty, empty]) == find_candidates([random_print()]) == []
    assert find_candidates([empty, random_print(1)]) == []
