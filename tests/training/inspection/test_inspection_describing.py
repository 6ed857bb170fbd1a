"""Counts, means and deviations of each split and level."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from wsi2ihc.training.data import Pair, Role
from wsi2ihc.training.inspection.describing import MOST_GROUPS, describe, empty_levels
from wsi2ihc.training.inspection.looks import LOOKS, Looks


def pair(role: Role | None = None, her2: str | None = None, group: str | None = None, slide: str | None = None) -> Pair:
    return Pair("a", Path("a.png"), Path("b.png"), role=role, her2=her2, group=group, slide=slide, patient=group)


def looks(red: float, sharpness: float = 1.0) -> Looks:
    return Looks(**dict.fromkeys(LOOKS, 0.5) | {"red": red, "sharpness": sharpness})


def test_splits_and_levels() -> None:
    pairs = [pair("train", "0", "p"), pair("train", "0", "q"), pair("train", "3+", "r"), pair("test", "0", "s")]
    found = describe(pairs, [(looks(value), looks(2 * value)) for value in (10, 14, 20, 40)])
    rows = {(one.split, one.level): one for one in found}
    assert list(rows) == [(split, level) for split in ("train", "test", "all")
                          for level in ("0", "1+", "2+", "3+", "all")]  # fmt: skip
    assert {names: one.pairs for names, one in rows.items() if one.pairs} == {
        ("train", "0"): 2, ("train", "3+"): 1, ("train", "all"): 3, ("test", "0"): 1, ("test", "all"): 1,
        ("all", "0"): 3, ("all", "3+"): 1, ("all", "all"): 4,
    }  # fmt: skip
    one = rows["train", "0"]
    assert (one.groups, one.patients, one.slides) == (2, 2, None)
    assert one.looks["H&E"]["red"].mean == 12
    assert one.looks["H&E"]["red"].deviation == pytest.approx(np.std([10, 14], ddof=1))
    assert one.looks["IHC"]["red"].mean == 24
    alone = rows["test", "0"].looks["H&E"]["red"]
    assert alone.mean == 40
    assert np.isnan(alone.deviation)
    nothing = rows["test", "2+"]
    assert (nothing.pairs, nothing.groups) == (0, 0)
    assert np.isnan(nothing.looks["IHC"]["green"].mean)


def test_empty_levels_are_told() -> None:
    pairs = [pair("train", "0"), pair("test", "1+")]
    found = list(empty_levels(describe(pairs, [(looks(1), looks(1))] * 2)))
    assert found[:2] == ["there is no pair of HER2 1+ in train", "there is no pair of HER2 2+ in train"]
    assert len(found) == 6
    assert list(empty_levels(describe([pair(None, "2+")], [(looks(1), looks(1))]))) == [
        "there is no pair of HER2 0", "there is no pair of HER2 1+", "there is no pair of HER2 3+",
    ]  # fmt: skip
    assert list(empty_levels(describe([pair()], [(looks(1), looks(1))]))) == []


def test_roles_and_levels_that_are_not_known() -> None:
    (one,) = describe([pair(), pair()], [(looks(1), looks(1, np.nan)), (looks(3), looks(1, np.nan))])
    assert (one.split, one.level, one.pairs, one.groups, one.patients) == ("all", "all", 2, None, None)
    assert np.isnan(one.looks["IHC"]["sharpness"].mean)
    rows = describe([pair(None), pair("train"), pair("validation")], [(looks(1), looks(1))] * 3)
    assert [(row.split, row.pairs) for row in rows] == [("train", 2), ("validation", 1), ("all", 3)]
    levels = {row.level for row in describe([pair(None, "low"), pair(None, None)], [(looks(1), looks(1))] * 2)}
    assert levels == {"0", "1+", "2+", "3+", "low", "all"}


def test_groups_or_slides_have_rows_if_there_are_few() -> None:
    def rows(pairs: list[Pair]) -> list[tuple[str, int]]:
        return [(one.group, one.pairs) for one in describe(pairs, [(looks(1), looks(1))] * len(pairs)) if one.group]

    assert rows([pair(group="q"), pair(group="p"), pair(group="q")]) == [("p", 1), ("q", 2)]
    assert rows([pair(slide="s"), pair(slide="t")]) == [("s", 1), ("t", 1)]
    assert rows([pair(group="p"), pair(group="p")]) == []
    assert rows([pair(group="p", her2="0"), pair(group="q", her2="0")]) == []
    assert len(rows([pair(group=str(number)) for number in range(MOST_GROUPS)])) == MOST_GROUPS
    assert rows([pair(group=str(number)) for number in range(MOST_GROUPS + 1)]) == []
