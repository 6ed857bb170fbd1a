"""Leakage between splits and groups, and copies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from make_fields import patch

from wsi2ihc.training.data import Pair, Role
from wsi2ihc.training.data.images import hash_of
from wsi2ihc.training.inspection.duplicates import Duplicate, count_by_split, describe_patch, find_duplicates

BACKGROUND = np.full((128, 128, 3), 240, np.uint8)
Images = tuple[np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as threads:
        yield threads


def pair(name: str, role: Role | None = None, group: str | None = None) -> Pair:
    return Pair(name, Path(f"{name}.png"), Path(f"{name}.png"), role=role, group=group)


def duplicates(pool: ThreadPoolExecutor, pairs: Sequence[Pair], images: Sequence[Images]) -> tuple[Duplicate, ...]:
    hashes = [(hash_of(he), hash_of(ihc)) for he, ihc in images]
    return find_duplicates(pairs, hashes, [describe_patch(he, 1) for he, _ in images], 1, pool)


@pytest.mark.parametrize(
    ("one", "other", "between"),
    [
        (("train", "p"), ("test", "q"), "splits"),
        (("train", "p"), ("test", "p"), "splits"),
        (("train", "p"), ("train", "q"), "groups"),
        (("train", "p"), ("train", "p"), ""),
        ((None, "p"), (None, "q"), "groups"),
        ((None, None), (None, None), ""),
        ((None, None), ("train", None), ""),  # what has no role is for training
        ((None, None), ("test", None), "splits"),
        (("train", "p"), ("train", None), ""),
    ],
)
def test_between(
    pool: ThreadPoolExecutor, one: tuple[Role | None, str | None], other: tuple[Role | None, str | None], between: str
) -> None:
    (found,) = duplicates(pool, [pair("a", *one), pair("b", *other)], [patch(0, 0), patch(70, 0)])
    assert (found.first, found.second, found.between, found.kind, found.stains) == (0, 1, between, "overlap", "H&E")


def test_kinds(pool: ThreadPoolExecutor) -> None:
    he, ihc = patch(0, 0)
    images = [(he, ihc), (he, ihc), (np.fliplr(he).copy(), np.fliplr(ihc).copy()), (patch(0, 0, 1)[0], ihc)]
    found = {(one.first, one.second): one for one in duplicates(pool, [pair(name) for name in "abcd"], images)}
    assert {names: (one.kind, one.stains) for names, one in found.items()} == {
        (0, 1): ("same pixels", "H&E and IHC"),
        (0, 2): ("same field", "H&E"),
        (0, 3): ("same pixels", "IHC"),
    }
    assert found[0, 2].orientation == 1
    assert found[0, 2].overlap == pytest.approx(1.0, abs=0.02)
    assert found[0, 1].overlap == found[0, 1].correlation == 1.0


def test_order_of_leakage(pool: ThreadPoolExecutor) -> None:
    pairs = [pair("a", "train", "p"), pair("b", "train", "p"), pair("c", "train", "q"), pair("d", "test", "r")]
    found = duplicates(pool, pairs, [patch(0, 0), patch(8, 0), patch(40, 0), patch(100, 0)])
    assert [one.between for one in found] == ["splits"] * 3 + ["groups"] * 2 + [""]
    shares = [one.overlap for one in found]
    assert shares[:3] == sorted(shares[:3], reverse=True)
    assert count_by_split(pairs, found[:3]) == {"test": 1, "train": 3}
    assert count_by_split([pair(one.name) for one in pairs], found[-1:]) == {"": 2}


def test_copies_are_reported_once_per_split(pool: ThreadPoolExecutor) -> None:
    roles: list[Role] = ["train", "train", "train", "validation", "validation", "test"]
    pairs = [pair(str(number), role) for number, role in enumerate(roles)]
    found = duplicates(pool, pairs, [patch(0, 0)] * 6)
    assert all(one.kind == "same pixels" for one in found)
    links = {(one.first, one.second) for one in found}
    # with the first of train (0), of validation (3) and of test (5)
    assert links == {(0, 1), (0, 2), (0, 3), (0, 4), (0, 5), (1, 3), (2, 3), (3, 4), (3, 5), (1, 5), (2, 5), (4, 5)}
    assert count_by_split(pairs, (one for one in found if one.between == "splits")) == {
        "test": 1, "train": 3, "validation": 2,
    }  # fmt: skip


def test_pairs_without_a_role_are_of_the_training_split(pool: ThreadPoolExecutor) -> None:
    found = duplicates(pool, [pair("a"), pair("b", "train"), pair("c", "train")], [patch(0, 0)] * 3)
    assert {(one.first, one.second) for one in found} == {(0, 1), (0, 2)}


def test_background_is_not_a_copy(pool: ThreadPoolExecutor) -> None:
    assert hash_of(BACKGROUND) is None
    assert duplicates(pool, [pair("a"), pair("b")], [(BACKGROUND, BACKGROUND), (BACKGROUND, BACKGROUND)]) == ()
    tissue = patch(0, 0, side_px=128)[0]
    assert duplicates(pool, [pair("a"), pair("b")], [(tissue, BACKGROUND), (patch(0, 0, 1)[0], BACKGROUND)]) == ()


def test_hash_depends_on_shape() -> None:
    image = patch(0, 0)[0]
    assert hash_of(image) == hash_of(image.copy())
    assert hash_of(image) != hash_of(image.reshape(96, 384, 3))
    other = image.copy()
    other[-1, -1, 2] ^= 1
    assert hash_of(image) != hash_of(other)
