"""Patients stay whole, levels are spread evenly, and the order of rows means nothing."""

from __future__ import annotations

import dataclasses
import math
import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wsi2ihc.errors import OptionError
from wsi2ihc.training.data import ROLES, Role
from wsi2ihc.training.data.layouts import LEVELS
from wsi2ihc.training.pairs.pair_manifest import Member, SlidePair, read_manifest
from wsi2ihc.training.pairs.patient_split import Shares, assign_splits, split_warnings

SHARES: Shares = (0.8, 0.1, 0.1)


def row(patient: str, number: int, level: str | None = None, role: Role | None = None) -> SlidePair:
    slide = f"{patient}-{number}"
    return SlidePair(0, patient, slide, Path(f"{slide}_he"), Path(f"{slide}_ihc"), level, role=role)


def rows_of(counts: dict[str | None, int]) -> list[SlidePair]:
    return [row(f"{level}/{number}", 0, level) for level, count in counts.items() for number in range(count)]


def by_patient(pairs: Sequence[SlidePair], roles: dict[str, Role]) -> dict[str, set[Role]]:
    found: dict[str, set[Role]] = defaultdict(set)
    for pair in pairs:
        found[pair.patient].add(roles[pair.slide])
    return found


patients = st.dictionaries(
    st.text("abcdefgh", min_size=1, max_size=3),
    st.tuples(
        st.lists(st.sampled_from([*LEVELS, None]), min_size=1, max_size=3),
        st.sampled_from([None, None, None, *ROLES]),
    ),
    min_size=1,
    max_size=30,
)
shares_of_three = st.tuples(st.integers(1, 20), st.integers(0, 10), st.integers(0, 10)).map(
    lambda parts: tuple(part / sum(parts) for part in parts)
)


@given(patients, shares_of_three, st.integers(0, 9), st.randoms(use_true_random=False))
def test_whole_patients_whatever_the_order(
    drawn: dict[str, tuple[list[str | None], Role | None]], shares: Shares, seed: int, shuffler: random.Random
) -> None:
    pairs = [row(name, at, level, role) for name, (levels, role) in drawn.items() for at, level in enumerate(levels)]
    roles = dict(assign_splits(pairs, shares, seed))
    found = by_patient(pairs, roles)
    assert all(len(one) == 1 for one in found.values())
    assert all(found[name] == {role} for name, (_, role) in drawn.items() if role)
    if any(role is None for _, role in drawn.values()):
        assert {"train"} in found.values()
    shuffled = list(pairs)
    shuffler.shuffle(shuffled)
    assert dict(assign_splits(shuffled, shares, seed)) == roles


@given(
    st.dictionaries(st.sampled_from([*LEVELS, None]), st.integers(1, 60), min_size=1),
    shares_of_three,
    st.integers(0, 3),
)
def test_shares_are_met_per_level_and_overall(counts: dict[str | None, int], shares: Shares, seed: int) -> None:
    pairs = rows_of(counts)
    roles = assign_splits(pairs, shares, seed)
    overall = Counter(roles.values())
    for role, share in zip(ROLES, shares, strict=True):
        # one more if training would have no patient
        assert abs(overall[role] - share * len(pairs)) < 1 + 1e-6
        for level, count in counts.items():
            own = sum(roles[pair.slide] == role for pair in pairs if pair.her2 == level)
            assert abs(own - share * count) < 1 + 1e-6


def test_a_known_split() -> None:
    pairs = rows_of({"0": 10, "1+": 20, "2+": 30, "3+": 40})
    splits = assign_splits(pairs, SHARES)
    assert split_warnings(splits, pairs, SHARES) == ()
    counts = Counter((pair.her2, splits[pair.slide]) for pair in pairs)
    assert counts == {
        **{(level, "train"): 8 * tens for tens, level in enumerate(LEVELS, 1)},
        **{(level, "validation"): tens for tens, level in enumerate(LEVELS, 1)},
        **{(level, "test"): tens for tens, level in enumerate(LEVELS, 1)},
    }


def test_the_seed_matters() -> None:
    pairs = rows_of({"0": 30})
    assert len({tuple(sorted(assign_splits(pairs, SHARES, seed).items())) for seed in range(5)}) == 5


def test_another_patient_moves_few() -> None:
    pairs = rows_of(dict.fromkeys(LEVELS, 25))
    before = assign_splits(pairs, SHARES)
    for number in range(20):
        after = assign_splits([*pairs, row(f"new{number}", 0, "2+")], SHARES)
        assert sum(before[slide] != after[slide] for slide in before) <= 4


def test_a_patient_counts_as_its_highest_level() -> None:
    pairs = [pair for number in range(10) for pair in (row(f"p{number}", 0, "0"), row(f"p{number}", 1, "3+"))]
    pairs += rows_of({"3+": 10})
    roles = assign_splits(pairs, SHARES)
    assert Counter(roles[pair.slide] for pair in pairs if pair.slide.endswith("-0")) == {
        "train": 16,
        "validation": 2,
        "test": 2,
    }


def test_stated_roles_count_into_the_shares() -> None:
    stated = [row(f"t{number}", 0, "1+", "test") for number in range(5)]
    roles = assign_splits([*stated, *rows_of({"1+": 15})], (0.5, 0.25, 0.25))
    assert Counter(roles.values()) == {"train": 10, "validation": 5, "test": 5}
    assert all(roles[pair.slide] == "test" for pair in stated)


def test_a_stated_role_is_that_of_all_slides_of_the_patient() -> None:
    assert set(assign_splits([row("p", 0), row("p", 1, role="test"), row("q", 0)]).items()) == {
        ("p-0", "test"),
        ("p-1", "test"),
        ("q-0", "train"),
    }


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_patients_train(count: int) -> None:
    splits = assign_splits(rows_of({"0": count}), (0.1, 0.45, 0.45))
    assert "train" in splits.values()


def test_the_column_split_is_named_if_it_leaves_a_split_empty() -> None:
    pairs = [dataclasses.replace(pair, role="test") for pair in rows_of({"0": 1, "3+": 1})]
    assert split_warnings(assign_splits(pairs, SHARES), pairs, SHARES) == (
        "train has no patient: the column split of the manifest assigns none",
        "validation has no patient: the column split of the manifest assigns none",
    )


def test_what_stays_empty_is_said() -> None:
    pairs = rows_of({"0": 1, "3+": 1})
    splits = assign_splits(pairs, SHARES)
    assert set(splits.values()) == {"train"}
    assert split_warnings(splits, pairs, SHARES) == (
        "validation has no patient: 2 patients are too few for a fraction of 0.1",
        "test has no patient: 2 patients are too few for a fraction of 0.1",
    )
    pairs = rows_of({"0": 20, "3+": 2})
    splits = assign_splits(pairs, SHARES)
    assert split_warnings(splits, pairs, SHARES) == (
        "validation has no patient of level 3+; there are too few of them",
        "test has no patient of level 3+; there are too few of them",
    )
    pairs = rows_of({"0": 3})
    assert split_warnings(assign_splits(pairs, (1.0, 0.0, 0.0)), pairs, (1.0, 0.0, 0.0)) == ()


def test_what_is_said_follows_from_the_slides_that_are_kept() -> None:
    pairs = rows_of(dict.fromkeys(LEVELS, 10))
    splits = assign_splits(pairs, SHARES)
    assert split_warnings(splits, pairs, SHARES) == ()
    kept = [pair for pair in pairs if splits[pair.slide] != "test"]
    assert split_warnings(splits, kept, SHARES) == ("test has no patient: none of those assigned to it can be used",)
    kept = [pair for pair in pairs if (splits[pair.slide], pair.her2) != ("validation", "2+")]
    assert split_warnings(splits, kept, SHARES) == ("validation has no patient of level 2+; there are too few of them",)
    assert split_warnings(splits, [], SHARES) == ()


@pytest.mark.parametrize("shares", [(0.8, 0.1, 0.2), (0, 0.5, 0.5), (1.2, -0.1, -0.1), (math.nan, 0.5, 0.5), (1,)])
def test_impossible_shares(shares: Shares) -> None:
    with pytest.raises(OptionError, match="add up to 1, with train above 0"):
        assign_splits(rows_of({"0": 3}), shares)


def test_of_two_roles_the_first_counts() -> None:
    assert assign_splits([row("p", 0, role="test"), row("p", 1, role="train")])["p-1"] == "test"


# whole manifests, of which rows fail

BROKEN = (
    {"he_path": "unmounted/he.svs"},
    {"ihc_path": ""},
    {"slide_id": "S0"},
    {"slide_id": "../S"},
    {"he_path": "0_he.svs"},
    {"he_mpp": "250"},
    {"landmarks": "gone.csv;gone.csv"},
    {"transform": "rigid"},
)


@given(st.integers(0, 2**32), st.sampled_from((0.2, 0.5, 1.0)))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_rows_that_fail_move_no_patient(tmp_path: Path, seed: int, share: float) -> None:
    random_ = random.Random(seed)
    rows = []
    for number in range(random_.randint(1, 25)):
        for kind in ("he", "ihc"):
            (tmp_path / f"{number}_{kind}.svs").touch()
        patient = random_.randint(0, 12)
        rows.append({
            "patient_id": f"P{patient}",
            "slide_id": f"S{number}",
            "he_path": f"{number}_he.svs",
            "ihc_path": f"{number}_ihc.svs",
            "her2": random_.choice(["", "0", "1+", "2+", "3+"]),
            "split": "test" if patient == 0 and random_.random() < 0.5 else "",
            "he_mpp": "",
            "landmarks": "",
            "transform": "",
        })  # fmt: skip
    before = roles_of_patients(tmp_path, rows, seed)
    assert before.keys() == {one["patient_id"] for one in rows}
    broken = [one | random_.choice(BROKEN) if random_.random() < share else one for one in rows]
    assert roles_of_patients(tmp_path, broken, seed).items() <= before.items()


def roles_of_patients(folder: Path, rows: Sequence[dict[str, str]], seed: int) -> dict[str, Role]:
    """Of those who have slides that can be used."""
    path = folder / "manifest.csv"
    path.write_text("\n".join([",".join(rows[0]), *(",".join(one.values()) for one in rows)]) + "\n")
    read = read_manifest(path)
    roles = assign_splits(read.members, (0.6, 0.2, 0.2), seed % 5)
    return {pair.patient: roles[pair.slide] for pair in read.rows}


def test_a_stated_split_counts_though_its_row_fails(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    (tmp_path / "b").touch()
    path = tmp_path / "manifest.csv"
    path.write_text("patient_id,slide_id,he_path,ihc_path,split\nP,S1,gone,b,test\nP,S2,a,b,\n")
    read = read_manifest(path)
    assert [pair.slide for pair in read.rows] == []  # both name the IHC slide b
    path.write_text("patient_id,slide_id,he_path,ihc_path,split\nP,S1,gone,gone2,test\nP,S2,a,b,\n")
    read = read_manifest(path)
    assert [pair.slide for pair in read.rows] == ["S2"]
    assert assign_splits(read.members)["S2"] == "test"


def test_rows_that_cannot_be_understood_take_no_part(tmp_path: Path) -> None:
    path = tmp_path / "manifest.csv"
    rows = ["P1,S1,a,b,7,", "P2,S2,a,b,,holdout", ",S3,a,b,0,", "P4,S4,a,b,2,val"]
    path.write_text("\n".join(["patient_id,slide_id,he_path,ihc_path,her2,split", *rows]))
    assert read_manifest(path).members == (Member("P4", "S4", "2+", "validation"),)
