"""Landmarks: what files may look like, which pairs are found, and what the errors are."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from wsi2ihc.errors import RegistrationError
from wsi2ihc.geometry import Size
from wsi2ihc.registration.landmarks import (
    LandmarkErrors,
    Landmarks,
    contradiction,
    diagonal_um,
    landmark_errors,
    match_landmarks,
    read_landmarks,
)
from wsi2ihc.registration.transform import SlideFrame, affine, identity

MPP = (0.5, 0.25)


def landmarks(**points: tuple[float, float]) -> Landmarks:
    return Landmarks(tuple(points), np.array(list(points.values()), np.float64))


def written(folder: Path, text: str) -> Path:
    path = folder / "he.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_whole_px_means_its_middle(tmp_path: Path) -> None:
    found = read_landmarks(written(tmp_path, ",X,Y\n1,0,10\n7,3.5,-2\n"), MPP)
    assert found.ids == ("1", "7")
    assert np.allclose(found.points_um, [[0.25, 2.625], [2.0, -0.375]])


@pytest.mark.parametrize(
    "text",
    [
        "id,X,Y\na,1,2\nb,3,4\n",
        "\ufeff;x;y\na;1;2\nb;3;4",
        "Y,X,name\n2,1,a\n4,3,b\n",
        " , X , Y \n a , 1 , 2 \n\n b , 3 , 4 \n,,\n",
        ",X,Y\r\na,1,2\r\nb,3,4\r\n",
    ],
)
def test_heads_and_separators_of_several_programs(tmp_path: Path, text: str) -> None:
    found = read_landmarks(written(tmp_path, text), (1.0, 1.0))
    assert found.ids == ("a", "b")
    assert np.array_equal(found.points_um, [[1.5, 2.5], [3.5, 4.5]])


def test_without_ids_the_rows_count(tmp_path: Path) -> None:
    assert read_landmarks(written(tmp_path, "X,Y\n1,2\n3,4\n"), MPP).ids == ("1", "2")


def test_a_whole_number_with_a_point_is_the_same_id(tmp_path: Path) -> None:
    assert read_landmarks(written(tmp_path, ",X,Y\n1.0,1,2\n10,3,4\nv2.0,3,4\n"), MPP).ids == ("1", "10", "v2.0")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        (",X\n1,2\n", "no columns X and Y"),
        (",X,X,Y\n1,2,2,3\n", "no columns X and Y"),
        (",X,Y\n", "no landmark"),
        (",X,Y\n1,2,3\n2,abc,3\n", r"line 3: 'abc' is not a coordinate"),
        (",X,Y\n1,2\n", r"line 2: '' is not a coordinate"),
        (",X,Y\n1,nan,3\n", "'nan' is not a coordinate"),
        (",X,Y\n1,2,inf\n", "'inf' is not a coordinate"),
        (",X,Y\n1,2,3\n1,4,5\n", r"line 3: duplicate landmark '1'"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(RegistrationError, match=message) as raised:
        read_landmarks(written(tmp_path, text), MPP)
    assert "he.csv" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_files_that_are_no_text_or_not_there(tmp_path: Path) -> None:
    with pytest.raises(RegistrationError, match="no such file"):
        read_landmarks(tmp_path / "missing.csv", MPP)
    with pytest.raises(RegistrationError, match="cannot be read"):
        read_landmarks(tmp_path, MPP)
    image = tmp_path / "image.csv"
    image.write_bytes(b"\xff\xd8\xff\xe0" * 9)
    with pytest.raises(RegistrationError, match="not a UTF-8"):
        read_landmarks(image, MPP)


def test_pairs_are_found_by_id_in_any_order() -> None:
    matched = match_landmarks(
        landmarks(a=(0, 0), b=(1, 1), c=(2, 2), d=(3, 3)), landmarks(c=(20, 20), x=(9, 9), a=(10, 10))
    )
    assert matched.ids == ("a", "c")
    assert np.array_equal(matched.fixed_um, [[0, 0], [2, 2]])
    assert np.array_equal(matched.moving_um, [[10, 10], [20, 20]])
    assert (matched.unmatched_fixed, matched.unmatched_moving) == (2, 1)


def test_no_common_id_is_said_with_examples() -> None:
    with pytest.raises(RegistrationError, match=r"no id in common \(a, b and 1, 2, 3 …\)"):
        match_landmarks(landmarks(a=(0, 0), b=(1, 1)), Landmarks(tuple("1234"), np.zeros((4, 2))))


def test_errors_are_distances_on_the_moving_slide() -> None:
    fixed = np.arange(20.0).reshape(10, 2)
    lengths = np.arange(1.0, 11.0)
    matched = match_landmarks(
        Landmarks(tuple("abcdefghij"), fixed),
        Landmarks(tuple("abcdefghij"), 2 * fixed + lengths[:, None] * (0.6, -0.8)),
    )
    after = landmark_errors(affine([[2, 0, 0], [0, 2, 0]]), matched, 100.0)
    assert (after.count, after.median_um, after.p90_um, after.max_um) == pytest.approx((10, 5.5, 9.1, 10))
    assert (after.median_rtre, after.p90_rtre) == pytest.approx((0.055, 0.091))
    before = landmark_errors(identity(), matched, 100.0)
    assert before.max_um == pytest.approx(np.linalg.norm(fixed + lengths[:, None] * (0.6, -0.8), axis=1).max())


def test_the_diagonal_counts_in_um_along_each_side() -> None:
    assert diagonal_um(SlideFrame("ihc.svs", Size(600, 1600), (0.5, 0.25))) == pytest.approx(500)


def test_real_files_are_read(dev_data: Path) -> None:
    folder = dev_data / "registration" / "lesions_"
    if not folder.is_dir():
        pytest.skip("no landmarks among the development data")
    fixed, moving = (read_landmarks(path, (1.0, 1.0)) for path in sorted(folder.glob("*.csv")))
    matched = match_landmarks(fixed, moving)
    assert len(matched.ids) == 78
    assert math.isclose(matched.fixed_um[0, 0], 59.5)


def errors(median_um: float, count: int = 9) -> LandmarkErrors:
    return LandmarkErrors(count, median_um, 2 * median_um, 3 * median_um, 0.0, 0.0)


@pytest.mark.parametrize(
    ("before_um", "after_um", "residual_um", "count", "contradicts"),
    [
        (500, 260, 5, 9, True),
        (500, 240, 5, 9, False),  # less than half of before
        (40, 25, 5, 9, True),
        (40, 25, 9, 9, False),  # less than three residuals
        (20, 19, 1, 9, False),  # two cells
        (500, 500, None, 9, True),  # the identity, of somebody else
        (500, 500, 5, 2, False),  # too few to tell
    ],
)
def test_what_contradicts_a_transform(
    before_um: float, after_um: float, residual_um: float | None, count: int, contradicts: bool
) -> None:
    said = contradiction(errors(before_um, count), errors(after_um, count), residual_um)
    assert bool(said) == contradicts
    assert "\n" not in said
    assert ("blocks of tissue" in said) == (contradicts and residual_um is not None)


def test_a_file_that_is_no_utf_8(tmp_path: Path) -> None:
    path = tmp_path / "he.csv"
    for encoding in ("latin-1", "utf-16"):
        path.write_bytes(",X,Y\né,1,2\n".encode(encoding))
        with pytest.raises(RegistrationError, match="save it as CSV in UTF-8"):
            read_landmarks(path, MPP)
