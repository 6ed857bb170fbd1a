"""Groups from regular expressions, from tables, and from the data's own columns."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from make_pairs import rows, table

from wsi2ihc.errors import DatasetError, OptionError
from wsi2ihc.training.data import Pair, PairedData, Role, assign_groups, assign_roles, find_pairs, load_data


def data_of(*names: str, role: Role | None = None, folder: Path = Path("data")) -> PairedData:
    return PairedData(
        folder,
        "test",
        tuple(Pair(name, folder / f"{name}.png", folder / f"{name}.png", "left", role) for name in names),
    )


def groups(data: PairedData) -> list[str | None]:
    return [pair.group for pair in data.pairs]


# regular expressions


def test_expression() -> None:
    data = assign_groups(data_of("p7_1", "p7_2", "q12_1"), r"(?P<patient>[a-z]\d+)_")
    assert groups(data) == ["p7", "p7", "q12"]
    assert data.grouped_by == r"regular expression (?P<patient>[a-z]\d+)_"


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("(?P<a>", "is not a regular expression"),
        ("regions.cvs", "one named group"),
        ("(.)_", "one named group"),
        ("(?P<a>.)(?P<b>.)", "one named group"),
    ],
)
def test_bad_expression(expression: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        assign_groups(data_of("p7_1"), expression)


@pytest.mark.parametrize("expression", [r"(?P<patient>p\d+)_", r"(?P<patient>p\d+)_|x", r"(?P<patient>[^x]*)_"])
def test_expression_without_match(expression: str) -> None:
    """Not at all, without its group, or with an empty one."""
    with pytest.raises(DatasetError, match=r"matches only 1 of 3 pairs; the first without a match is x_a"):
        assign_groups(data_of("p7_1", "x_a", "x_b"), expression)


def test_expression_that_separates_all_patches_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    assign_groups(data_of("00000_train_2+", "00001_train_0"), "(?P<patient>[^_]+)_")
    assert "puts every patch into its own group" in caplog.text
    caplog.clear()
    assign_groups(data_of("p7_1", "p7_2"), "(?P<patient>[^_]+)_")
    assert caplog.text == ""


def facts(data: PairedData) -> list[tuple[str | None, str | None]]:
    return [(pair.patient, pair.slide) for pair in data.pairs]


@pytest.mark.parametrize(
    ("name", "found"), [("patient", ("p7", None)), ("slide", (None, "p7")), ("region", (None, None))]
)
def test_expression_fills_in_patient_or_slide(name: str, found: tuple[str | None, str | None]) -> None:
    data = assign_groups(data_of("p7_1"), rf"(?P<{name}>[a-z]\d+)_")
    assert (groups(data), facts(data)) == (["p7"], [found])


# tables of groups


def by_table(folder: Path, content: str, data: PairedData) -> PairedData:
    (folder / "groups.csv").write_text(content)
    return assign_groups(data, str(folder / "groups.csv"))


def test_table_of_regions(tmp_path: Path) -> None:
    names = ("10_10868_48536__M2", "11_10868_48536", "10_868_48536")
    data = by_table(
        tmp_path,
        "region,group,split,patches\n10868_48536,1,val,25\n868_48536,2,train,25\n7_7,3,test,9\n",
        data_of(*names, role="train"),
    )
    assert [(pair.group, pair.role) for pair in data.pairs] == [("1", "validation")] * 2 + [("2", "train")]
    assert data.grouped_by == "groups.csv"


def test_key_does_not_match_inside_a_number(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"groups.csv matches only 1 of 2 pairs; the first .* is 10_10868_48536"):
        by_table(tmp_path, "region\n868_48536\n", data_of("10_10868_48536", "10_868_48536"))


@pytest.mark.parametrize("name", ["10868_485360", "10868_4853", "x10868_48536", "10868_48536x", "10868-48536"])
def test_keys_are_delimited(tmp_path: Path, name: str) -> None:
    with pytest.raises(DatasetError, match="matches none of 1 pair; the first"):
        by_table(tmp_path, "region\n10868_48536\n", data_of(name))


def test_name_that_two_keys_match(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"groups.csv: s1_p2 matches both p2 and s1; use longer keys in the table"):
        by_table(tmp_path, "slide\ns1\np2\n", data_of("s1_p2"))


def test_two_matching_keys_of_one_group(tmp_path: Path) -> None:
    assert groups(by_table(tmp_path, "slide,patient\ns1,P\np2,P\n", data_of("s1_p2"))) == ["P"]


def test_full_name_takes_precedence(tmp_path: Path) -> None:
    assert groups(by_table(tmp_path, "patch,patient\n1,P\n1_2,Q\n", data_of("1", "1_2"))) == ["P", "Q"]


def test_names_of_files_as_keys(tmp_path: Path) -> None:
    assert groups(by_table(tmp_path, "name,patient\na.png,P\nb.png,Q\n", data_of("a", "b"))) == ["P", "Q"]


@pytest.mark.parametrize(
    ("content", "group"),
    [
        ("slide\ns1\n", "s1"),
        ("slide,patient\ns1,P\n", "P"),
        ("patient,slide,group\nP,s1,G\n", "G"),
        ("name,split\ns1,train\n", None),
    ],
)
def test_precedence_of_group_columns(tmp_path: Path, content: str, group: str | None) -> None:
    assert groups(by_table(tmp_path, content, data_of("s1"))) == [group]


@pytest.mark.parametrize(
    ("content", "group", "found", "filled"),
    [
        ("name,patient,slide\ns1,P,S\n", "P", ("P", "S"), "groups.csv (patient, slide)"),
        ("name,patient,slide,group\ns1,P,S,G\n", "G", ("P", "S"), "groups.csv (patient, slide)"),
        ("name,slide,patient\ns1.png,S,P\n", "P", ("P", "S"), "groups.csv (patient, slide)"),
        ("slide,patient\ns1,P\n", "P", ("P", "s1"), "groups.csv (patient, slide)"),
        ("name,slide,patient,group\ns1,S,,G\n", "G", (None, "S"), "groups.csv (slide)"),
        ("name,split,slide\ns1,train,S\n", "S", (None, "S"), "groups.csv (slide)"),
        ("name,region\ns1,R\n", "R", (None, None), "groups.csv"),
    ],
)
def test_patients_and_slides_of_a_table(
    tmp_path: Path, content: str, group: str, found: tuple[str | None, str | None], filled: str
) -> None:
    data = by_table(tmp_path, content, data_of("s1"))
    assert (groups(data), facts(data), data.grouped_by) == ([group], [found], filled)


def test_known_fields_are_kept(tmp_path: Path) -> None:
    own = data_of("s1", "s2")
    own = dataclasses.replace(own, pairs=tuple(dataclasses.replace(pair, slide="own") for pair in own.pairs))
    data = by_table(tmp_path, "name,patient,slide\ns1,P,other\ns2,Q,own\n", own)
    assert (groups(data), facts(data)) == (["P", "Q"], [("P", "own"), ("Q", "own")])
    assert data.grouped_by == "groups.csv (patient)"
    assert facts(assign_groups(own, "(?P<slide>s)")) == [(None, "own")] * 2


def test_contradictory_fields_are_not_filled_in(tmp_path: Path) -> None:
    """Such fields do not affect the split, so differences are not an error."""
    data = by_table(tmp_path, "name,group,patient,slide\na,G,P,S\na,G,P,T\na,G,P,S\n", data_of("a"))
    assert (groups(data), facts(data)) == (["G"], [("P", None)])
    assert facts(by_table(tmp_path, "slide,patient\ns1,P\np2,P\n", data_of("s1_p2"))) == [("P", None)]


def test_filled_in_fields_do_not_change_the_fingerprint(tmp_path: Path) -> None:
    names = [f"{letter}_{number}" for letter in "abcde" for number in range(4)]
    own = data_of(*names, folder=tmp_path)
    without = "\n".join(["name,patient", *(f"{name},{name[0]}" for name in names)])
    with_slides = "\n".join(["name,patient,slide", *(f"{name},{name[0]},{name}" for name in names)])
    one, other = (assign_roles(by_table(tmp_path, content, own)) for content in (without, with_slides))
    assert facts(one) != facts(other)
    assert one.fingerprint() == other.fingerprint()
    assert [pair.role for pair in one.pairs] == [pair.role for pair in other.pairs]
    plain = PairedData(own.folder, "test", tuple(dataclasses.replace(pair, group=pair.name[0]) for pair in own.pairs))
    assert assign_roles(plain).fingerprint() == one.fingerprint()  # as before tables said anything but the group


def test_empty_split_keeps_the_role(tmp_path: Path) -> None:
    data = by_table(tmp_path, "slide,split\ns1,\ns2,test\n", data_of("s1", "s2", role="validation"))
    assert [pair.role for pair in data.pairs] == ["validation", "test"]


@pytest.mark.parametrize("split", ["train", "val"])
def test_test_files_are_not_trained_on(tmp_path: Path, split: str) -> None:
    with pytest.raises(
        DatasetError, match=r"groups.csv assigns (train|validation) to data.s1_1.png, which is a test file"
    ):
        by_table(tmp_path, f"slide,split\ns1,{split}\n", data_of("s1_1", role="test"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("area,group\ns1,1\n", "has none of the columns name, patch, region, slide, patient to identify patches"),
        ("name\ns1\n", "has none of the columns group, patient, slide, region, and no split"),
        ("slide,group\ns0,1\ns1,1\ns1,1\ns1,2\n", "groups.csv: rows 3 and 5 contradict each other about s1"),
        ("slide;group\ns1;1\n", "groups.csv are separated by semicolons; separate them by commas"),
        ("slide,group\ns1,\n", "row 2: no group"),
        ("slide,group\n,1\n", "row 2: no slide"),
        ("slide,split\ns1,holdout\n", "row 2: the split is 'holdout'"),
    ],
)
def test_bad_table(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(DatasetError) as caught:
        by_table(tmp_path, content, data_of("s1"))
    assert message in str(caught.value)


def test_tables_are_also_found_in_the_dataset(tmp_path: Path) -> None:
    (tmp_path / "groups.csv").write_text("slide\ns1\n")
    assert groups(assign_groups(data_of("s1_1", folder=tmp_path), "groups.csv")) == ["s1"]
    with pytest.raises(DatasetError, match=r"the table other\.csv does not exist"):
        assign_groups(data_of("s1_1", folder=tmp_path), "other.csv")


@given(st.text("ab1_-", max_size=12), st.text("ab1_-", min_size=1, max_size=4))
def test_key_is_delimited(name: str, key: str) -> None:
    """Against the definition, character by character."""
    from wsi2ihc.training.data.groups import _parts

    stands = any(
        name[at : at + len(key)] == key
        and (at == 0 or not name[at - 1].isalnum())
        and (at + len(key) == len(name) or not name[at + len(key)].isalnum())
        for at in range(len(name) - len(key) + 1)
    )
    assert (key in set(_parts(name))) == stands


# the data's own columns


@pytest.mark.parametrize("column", ["group", "patient", "slide"])
def test_own_columns(tmp_path: Path, column: str) -> None:
    own = [{**row, column: f"g{number % 2}", "her2": 1} for number, row in enumerate(rows({"": "abcd"}))]
    data = assign_groups(find_pairs(table(tmp_path, own)), None)
    assert groups(data) == ["g0", "g1", "g0", "g1"]
    assert data.grouped_by == column


def test_group_takes_precedence_over_patient_over_slide(tmp_path: Path) -> None:
    own = [{**row, "slide": "s", "patient": "p", "group": ""} for row in rows({"": "ab"})]
    data = assign_groups(find_pairs(table(tmp_path, own)), None)
    assert (groups(data), data.grouped_by) == (["p", "p"], "patient")


def test_no_groups() -> None:
    data = assign_groups(data_of("a", "b"), None)
    assert (groups(data), data.grouped_by) == ([None, None], "")


def test_real_regions(dev_data: Path) -> None:
    """The split of the real dataset: complete groups, and these counts."""
    for folder in (dev_data / "hemit256", dev_data / "hemit256" / "train"):
        data = load_data(folder, group_by=str(dev_data / "hemit256" / "regions.csv"))
        assert {role: count["pairs"] for role, count in data.counts().items()} == {
            "train": 924,
            "validation": 192,
            "test": 195,
        }
