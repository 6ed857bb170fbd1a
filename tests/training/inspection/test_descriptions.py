"""Counts, means and deviations of each split and level."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from wsi2ihc.training.data import Pair, Role
from wsi2ihc.training.inspection.image_stats import MAX_GROUPS, STATISTICS, ImageStatistics, describe, empty_levels


def pair(role: Role | None = None, her2: str | None = None, group: str | None = None, slide: str | None = None) -> Pair:
    return Pair("a", Path("a.png"), Path("b.png"), role=role, her2=her2, group=group, slide=slide, patient=group)


def statistics(red: float, sharpness: float = 1.0) -> ImageStatistics:
    return ImageStatistics(**dict.fromkeys(STATISTICS, 0.5) | {"red": red, "sharpness": sharpness})


def test_splits_and_levels() -> None:
    pairs = [pair("train", "0", "p"), pair("train", "0", "q"), pair("train", "3+", "r"), pair("test", "0", "s")]
    found = describe(pairs, [(statistics(value), statistics(2 * value)) for value in (10, 14, 20, 40)])
    rows = {(one.split, one.level): one for one in found}
    assert list(rows) == [(split, level) for split in ("train", "test", "all")
                          for level in ("0", "1+", "2+", "3+", "all")]  # fmt: skip
    assert {names: one.pairs for names, one in rows.items() if one.pairs} == {
        ("train", "0"): 2, ("train", "3+"): 1, ("train", "all"): 3, ("test", "0"): 1, ("test", "all"): 1,
        ("all", "0"): 3, ("all", "3+"): 1, ("all", "all"): 4,
    }  # fmt: skip
    one = rows["train", "0"]
    assert (one.groups, one.patients, one.slides) == (2, 2, None)
    assert one.statistics["H&E"]["red"].mean == 12
    assert one.statistics["H&E"]["red"].deviation == pytest.approx(np.std([10, 14], ddof=1))
    assert one.statistics["IHC"]["red"].mean == 24
    alone = rows["test", "0"].statistics["H&E"]["red"]
    assert alone.mean == 40
    assert np.isnan(alone.deviation)
    nothing = rows["test", "2+"]
    assert (nothing.pairs, nothing.groups) == (0, 0)
    assert np.isnan(nothing.statistics["IHC"]["green"].mean)


def test_empty_levels_are_reported() -> None:
    pairs = [pair("train", "0"), pair("test", "1+")]
    found = list(empty_levels(describe(pairs, [(statistics(1), statistics(1))] * 2)))
    assert found[:2] == ["there is no pair of HER2 1+ in train", "there is no pair of HER2 2+ in train"]
    assert len(found) == 6
    assert list(empty_levels(describe([pair(None, "2+")], [(statistics(1), statistics(1))]))) == [
        "all pairs with a known level are HER2 2+"
    ]
    assert list(empty_levels(describe([pair()], [(statistics(1), statistics(1))]))) == []


def test_unknown_roles_and_levels() -> None:
    (one,) = describe(
        [pair(), pair()], [(statistics(1), statistics(1, np.nan)), (statistics(3), statistics(1, np.nan))]
    )
    assert (one.split, one.level, one.pairs, one.groups, one.patients) == ("all", "all", 2, None, None)
    assert np.isnan(one.statistics["IHC"]["sharpness"].mean)
    rows = describe([pair(None), pair("train"), pair("validation")], [(statistics(1), statistics(1))] * 3)
    assert [(row.split, row.pairs) for row in rows] == [("train", 2), ("validation", 1), ("all", 3)]
    levels = {
        row.level for row in describe([pair(None, "low"), pair(None, None)], [(statistics(1), statistics(1))] * 2)
    }
    assert levels == {"0", "1+", "2+", "3+", "low", "all"}


def test_few_groups_or_slides_are_described() -> None:
    def rows(pairs: list[Pair]) -> list[tuple[str, int]]:
        return [
            (one.group, one.pairs)
            for one in describe(pairs, [(statistics(1), statistics(1))] * len(pairs))
            if one.group
        ]

    assert rows([pair(group="q"), pair(group="p"), pair(group="q")]) == [("p", 1), ("q", 2)]
    assert rows([pair(slide="s"), pair(slide="t")]) == [("s", 1), ("t", 1)]
    assert rows([pair(group="p"), pair(group="p")]) == []
    assert rows([pair(group="p", her2="0"), pair(group="q", her2="0")]) == []
    assert len(rows([pair(group=str(number)) for number in range(MAX_GROUPS)])) == MAX_GROUPS
    assert rows([pair(group=str(number)) for number in range(MAX_GROUPS + 1)]) == []
