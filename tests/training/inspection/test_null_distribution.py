"""Null distribution of the correlation, from mismatched pairs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from make_fields import MPP, patch

from wsi2ihc.training.data import find_pairs, read_pair
from wsi2ihc.training.inspection import alignment
from wsi2ihc.training.inspection.alignment import (
    MAX_STRUCTURE_PX,
    MIN_MISMATCHED_PAIRS,
    Structure,
    null_correlations,
    structure_of,
)
from wsi2ihc.training.pairs.quality import agreement


def normalized(values: np.ndarray) -> np.ndarray:
    values = values - values.mean()
    return (values / np.linalg.norm(values)).astype(np.float16)


def synthetic_pairs(count: int, shape: tuple[int, int] = (24, 24), seed: int = 0) -> list[Structure | None]:
    """Return pairs with a correlation of 0.7 and no correlation with each other."""
    random = np.random.default_rng(seed)
    he, own = random.normal(size=(2, count, *shape))
    return [Structure(normalized(one), normalized(one + other)) for one, other in zip(he, own, strict=True)]


def pair_correlation(one: Structure | None) -> float:
    assert one is not None
    return float(one.he.astype(np.float32).ravel() @ one.ihc.astype(np.float32).ravel())


def test_correlation_equals_that_of_agreement() -> None:
    for seed, shift in ((0, 0), (1, 12), (2, 20)):
        he, ihc = patch(0, 0, seed)[0], patch(shift, 0, seed)[1]
        expected = agreement(he, ihc, MPP).correlation
        assert pair_correlation(structure_of(he, ihc, MPP)) == pytest.approx(expected, abs=0.03)


def test_pairs_without_structure() -> None:
    he, ihc = patch(0, 0)
    assert structure_of(he, np.full_like(ihc, 240), MPP) is None
    assert structure_of(he[:90], ihc[:90], MPP) is None
    assert structure_of(he[:96], ihc[:96], MPP) is not None


@pytest.mark.parametrize(
    ("side_px", "mpp", "shape"), [(192, 0.5, (24, 24)), (448, 1.0, (64, 64)), (192, 4.0, (64, 64))]
)
def test_structure_shape(side_px: int, mpp: float, shape: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (2, side_px, side_px, 3), np.uint8)
    kept = structure_of(*noise, mpp)
    assert kept is not None
    assert (kept.he.shape, kept.he.dtype, max(shape) <= MAX_STRUCTURE_PX) == (shape, np.float16, True)


@pytest.mark.parametrize("count", [MIN_MISMATCHED_PAIRS + 1, 60, 150, 600])
def test_percentile_of_mismatched_pairs(count: int) -> None:
    structures = synthetic_pairs(count)
    chances = np.array(null_correlations(structures), float)
    own = np.array([pair_correlation(one) for one in structures])
    assert (own > chances).all()
    # of normal correlations: 576 samples, and the greatest of so many
    assert np.median(chances) == pytest.approx({10: 1.5, 60: 2.3, 150: 2.4, 600: 2.4}[count] / 24, abs=0.02)


def test_half_of_the_pairs_swapped() -> None:
    right = synthetic_pairs(400)
    partners = np.arange(400)
    partners[:200] = np.roll(partners[:200], 1)
    structures = [
        Structure(one.he, other.ihc)
        for one, number in zip(right, partners, strict=True)
        if one and (other := right[number])
    ]
    chances = np.array(null_correlations(structures), float)
    is_found = np.array([pair_correlation(one) for one in structures]) <= chances
    assert is_found[:200].mean() >= 0.97
    assert not is_found[200:].any()


def test_too_few_pairs_of_one_size() -> None:
    few, others = synthetic_pairs(MIN_MISMATCHED_PAIRS), synthetic_pairs(MIN_MISMATCHED_PAIRS + 1, (24, 30))
    chances = null_correlations([*few, None, *others])
    assert chances[: MIN_MISMATCHED_PAIRS + 1] == [None] * (MIN_MISMATCHED_PAIRS + 1)
    assert None not in chances[MIN_MISMATCHED_PAIRS + 1 :]
    assert null_correlations([]) == []


def test_copies_do_not_count_as_mismatched() -> None:
    """Each pair occurs twice; the IHC of the copy correlates as well."""
    structures = synthetic_pairs(20)
    chances = np.array(null_correlations(structures * 2), float)
    assert (np.array([pair_correlation(one) for one in structures * 2]) > chances).all()


def test_batch_size_does_not_change_results(monkeypatch: pytest.MonkeyPatch) -> None:
    structures = synthetic_pairs(70)
    whole = null_correlations(structures)
    monkeypatch.setattr(alignment, "BATCH_SIZE", 16)
    assert null_correlations(structures) == pytest.approx(whole, abs=1e-6)


def test_real_pairs(dev_data: Path) -> None:
    """Every fifth pair; every second of these with the IHC of another."""
    source = dev_data / "hemit256"
    if not source.is_dir():
        pytest.skip("no real pairs")
    images = [
        tuple(map(np.ascontiguousarray, read_pair(pair)))
        for pair in find_pairs(source).pairs[::5] if "15379_58805" not in pair.name  # its pairs are wrong as they are
    ]  # fmt: skip
    partners = np.arange(len(images))
    partners[::2] = np.roll(partners[::2], 1)
    pairs = [(he, images[number][1]) for (he, _), number in zip(images, partners, strict=True)]
    agreements = [agreement(he, ihc, 0.5).correlation for he, ihc in pairs]
    structures = [
        None if known is None else structure_of(he, ihc, 0.5)
        for known, (he, ihc) in zip(agreements, pairs, strict=True)
    ]
    is_found = [
        known <= chance
        for known, chance in zip(agreements, null_correlations(structures), strict=True)
        if known is not None and chance is not None
    ]
    wrong = [number % 2 == 0 for number, known in enumerate(agreements) if known is not None]
    assert np.mean([found for found, is_wrong in zip(is_found, wrong, strict=True) if is_wrong]) >= 0.96
    assert sum(found for found, is_wrong in zip(is_found, wrong, strict=True) if not is_wrong) <= 3
