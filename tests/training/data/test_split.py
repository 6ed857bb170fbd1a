"""Validation split by groups, reproducibly; no group in two roles."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from make_pairs import kinds_first, rows, side_by_side, splits_first, table

from wsi2ihc.errors import DatasetError, OptionError
from wsi2ihc.training.data import Pair, PairedData, Role, assign_roles, load_data

BY_LETTER = "(?P<slide>[a-z])_"


def data_of(sizes: dict[str, int], role: Role | None = None) -> PairedData:
    """Groups of these sizes."""
    pairs = [(f"{group}_{number}", group) for group, size in sizes.items() for number in range(size)]
    files = [(name, Path("data", f"{name}.png"), group) for name, group in pairs]
    return PairedData(
        Path("data"), "test", tuple(Pair(name, file, file, "left", role, group) for name, file, group in files)
    )


def validation_groups(data: PairedData) -> set[str | None]:
    return {pair.group for pair in data.of("validation")}


@given(
    st.dictionaries(st.text("abc", min_size=1, max_size=4), st.integers(1, 9), min_size=2, max_size=12),
    st.floats(0.01, 0.99),
    st.integers(0, 5),
    st.randoms(use_true_random=False),
)
def test_groups_are_not_split_in_any_order(
    sizes: dict[str, int], share: float, seed: int, shuffler: random.Random
) -> None:
    data = data_of(sizes)
    split = assign_roles(data, validation_share=share, seed=seed)
    train = {pair.group for pair in split.of("train")}
    assert train
    assert validation_groups(split)
    assert not train & validation_groups(split)
    assert len(split.pairs) == len(split.of("train")) + len(split.of("validation"))
    shuffled = list(data.pairs)
    shuffler.shuffle(shuffled)
    again = assign_roles(PairedData(Path("data"), "test", tuple(shuffled)), validation_share=share, seed=seed)
    assert validation_groups(again) == validation_groups(split)


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_small_groups_reach_the_fraction(share: float) -> None:
    split = assign_roles(data_of({str(group): 5 for group in range(100)}), validation_share=share)
    assert len(split.of("validation")) == 500 * share


def test_large_groups_do_not_exceed_the_fraction() -> None:
    for seed in range(10):
        split = assign_roles(data_of({"great": 1000, **{str(group): 5 for group in range(60)}}), seed=seed)
        assert "great" not in validation_groups(split)
        assert len(split.of("validation")) == 130


def test_smallest_group_if_all_are_too_large() -> None:
    assert validation_groups(assign_roles(data_of({"a": 50, "b": 40, "c": 45}), validation_share=0.05)) == {"b"}


def test_split_depends_on_the_seed() -> None:
    data = data_of({str(group): 2 for group in range(30)})
    assert len({frozenset(validation_groups(assign_roles(data, seed=seed))) for seed in range(5)}) == 5


def test_additional_group_does_not_reshuffle_the_others() -> None:
    sizes = {str(group): 4 for group in range(100)}
    first = validation_groups(assign_roles(data_of(sizes)))
    second = validation_groups(assign_roles(data_of({**sizes, "new": 4})))
    assert len(first ^ second) <= 2


def test_test_pairs_stay_test(tmp_path: Path) -> None:
    side_by_side(tmp_path, {"train": ["a_1", "a_2", "b_1"], "test": ["c_1", "d_1"]})
    data = load_data(tmp_path, group_by=BY_LETTER)
    assert [pair.name for pair in data.of("test")] == ["c_1", "d_1"]
    assert validation_groups(data) in ({"a"}, {"b"})


def test_stated_validation_is_kept(tmp_path: Path) -> None:
    data = load_data(kinds_first(tmp_path))
    assert [pair.name for pair in data.of("validation")] == ["v_1", "v_2"]
    assert data.grouped_by == ""


def test_pairs_without_a_role_are_for_training(tmp_path: Path) -> None:
    data = load_data(table(tmp_path, rows({"": ["a"], "val": ["b"], "test": ["c"]})))
    assert [(pair.name, pair.role) for pair in data.pairs] == [("a", "train"), ("b", "validation"), ("c", "test")]


def test_split_by_patch_only_on_request(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = [f"{number:03}" for number in range(40)]
    side_by_side(tmp_path / "one", {"": names})
    with pytest.raises(
        DatasetError, match=r"has no validation pairs, and the group of 000 is unknown: .*--split-by-patch"
    ):
        load_data(tmp_path / "one")
    with caplog.at_level(logging.WARNING):
        data = load_data(tmp_path / "one", split_by_patch=True)
    assert "make metrics too optimistic" in caplog.text
    assert (len(data.of("validation")), data.grouped_by) == (4, "patch")
    (tmp_path / "one").rename(tmp_path / "two")
    assert load_data(tmp_path / "two", split_by_patch=True).fingerprint() == data.fingerprint()
    assert load_data(tmp_path / "two", split_by_patch=True, seed=1).fingerprint() != data.fingerprint()


def test_groups_of_some_pairs_only() -> None:
    data = data_of({"a": 2, "b": 2})
    pairs = (*data.pairs, Pair("odd", Path("odd.png"), Path("odd.png"), "left"))
    with pytest.raises(DatasetError, match="the group of odd is unknown"):
        assign_roles(PairedData(Path("data"), "test", pairs))


def test_single_group() -> None:
    with pytest.raises(DatasetError, match="its training pairs are one group, 'a', which must not be split"):
        assign_roles(data_of({"a": 9}))


@pytest.mark.parametrize(("other", "named"), [("val", "train and validation"), ("test", "train and test")])
def test_group_in_two_roles(tmp_path: Path, other: str, named: str, caplog: pytest.LogCaptureFixture) -> None:
    side_by_side(tmp_path, {"train": ["a_1", "b_1", "c_1"], other: ["a_2", "c_2"]})
    with pytest.raises(DatasetError, match=f"the group 'a' is in {named}, and 1 more"):
        load_data(tmp_path, group_by=BY_LETTER)
    with caplog.at_level(logging.WARNING):
        load_data(tmp_path, group_by=BY_LETTER, split_by_patch=True)
    assert f"the group 'a' is in {named}" in caplog.text


@pytest.mark.parametrize("splits", [{"test": ["a_1"]}, {"val": ["a_1"], "test": ["b_1"]}])
def test_no_training_pairs(tmp_path: Path, splits: dict[str, list[str]]) -> None:
    with pytest.raises(DatasetError, match=r"has no pair for training \(0 for train, \d for validation, 1 for test\)"):
        load_data(side_by_side(tmp_path, splits), split_by_patch=True)


@pytest.mark.parametrize("share", [0.0, 1.0, -1.0, float("nan")])
def test_invalid_fraction(share: float) -> None:
    with pytest.raises(OptionError, match="the validation fraction must lie between 0 and 1"):
        assign_roles(data_of({"a": 1, "b": 1}), validation_share=share)


# description of a dataset


def test_counts(tmp_path: Path) -> None:
    names = {"train": ["00000_train_1+", "00001_train_1+", "00002_train_0"], "test": ["00000_test_3+"]}
    data = load_data(kinds_first(tmp_path, names), split_by_patch=True)
    counts = data.counts()
    assert counts["test"] == {"pairs": 1, "groups": 0, "her2": {"3+": 1}}
    assert counts["train"]["pairs"] + counts["validation"]["pairs"] == 3
    assert load_data(kinds_first(tmp_path / "plain"), group_by=BY_LETTER).counts()["train"] == {"pairs": 7, "groups": 4}


def test_fingerprint_depends_on_the_order(tmp_path: Path) -> None:
    """Batches are drawn by places in it, so a run must not go on after rows were moved."""
    own = rows()
    first = load_data(table(tmp_path, own)).fingerprint()
    assert load_data(table(tmp_path, own)).fingerprint() == first
    assert load_data(table(tmp_path, [own[1], own[0], *own[2:]])).fingerprint() != first


@pytest.mark.parametrize("make", [kinds_first, splits_first, side_by_side])
def test_pairs_are_ordered_by_roles_and_names(tmp_path: Path, make: Callable[..., Path]) -> None:
    shuffled = {"test": ["b", "a"], "val": ["c", "B"], "train": ["z", "a_2", "a_10"]}
    data = load_data(make(tmp_path, shuffled))
    assert [pair.name for pair in data.pairs] == ["a_10", "a_2", "z", "B", "c", "a", "b"]


def test_fingerprint_does_not_depend_on_the_location(tmp_path: Path) -> None:
    prints = {load_data(kinds_first(tmp_path / folder)).fingerprint() for folder in ("one", "two")}
    assert len(prints) == 1
    grouped = load_data(tmp_path / "one", group_by=BY_LETTER).fingerprint()
    (tmp_path / "one" / "HE" / "val" / "v_2.png").unlink()
    (tmp_path / "one" / "IHC" / "val" / "v_2.png").unlink()
    assert len(prints | {grouped, load_data(tmp_path / "one").fingerprint()}) == 3
