"""Transforms in files, there and back, and what is refused."""

from __future__ import annotations

import io
import json
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wsi2ihc.errors import OutputError, TransformError
from wsi2ihc.geometry import Size
from wsi2ihc.registration.transform import LocalField, SlideFrame, Transform, identity
from wsi2ihc.registration.transform_io import fingerprint, load_transform, save_transform

FIELD = LocalField((-10.5, 1 / 3), 150.1, np.random.default_rng(0).normal(0, 7, (6, 9, 2)))
FULL = Transform(
    np.array([[0.6, -0.8, 1e5 / 7], [0.8, 0.6, -3.3]]),
    FIELD,
    SlideFrame("he ä.svs", Size(3000, 2000), (0.25, 0.2502), "1234"),
    SlideFrame("ihc.svs", Size(2999, 2001), (0.5, 0.5)),
)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return save_transform(tmp_path, FULL, {"status": "registered", "score": 0.9})


def same(one: Transform, other: Transform) -> None:
    np.testing.assert_array_equal(one.matrix, other.matrix)
    assert (one.fixed, one.moving) == (other.fixed, other.moving)
    assert (one.field is None) == (other.field is None)
    if one.field is not None and other.field is not None:
        assert (one.field.origin_um, one.field.spacing_um) == (other.field.origin_um, other.field.spacing_um)
        np.testing.assert_array_equal(one.field.coefficients, other.field.coefficients)


def test_a_transform_survives_writing_and_reading(saved: Path) -> None:
    assert sorted(path.name for path in saved.parent.iterdir()) == ["transform.json", "transform.npz"]
    for path in (saved, saved.parent, str(saved)):
        same(load_transform(path), FULL)
    assert fingerprint(load_transform(saved)) == fingerprint(FULL)
    document = json.loads(saved.read_text(encoding="utf-8"))
    assert document["fixed"]["name"] == "he ä.svs"
    assert document["field"]["rows"] == 6
    assert (document["status"], document["score"]) == ("registered", 0.9)


def test_without_a_field_and_under_another_name(tmp_path: Path) -> None:
    path = save_transform(tmp_path / "new" / "case.json", identity())
    assert [entry.name for entry in path.parent.iterdir()] == ["case.json"]
    same(load_transform(path), identity())
    other = save_transform(tmp_path / "new" / "other.json", FULL)
    assert (tmp_path / "new" / "other.npz").is_file()
    same(load_transform(other), FULL)
    assert len({fingerprint(transform) for transform in (identity(), FULL, Transform(FULL.matrix))}) == 3


def test_files_are_replaced_and_repeatable(saved: Path) -> None:
    before = [path.read_bytes() for path in (saved, saved.with_suffix(".npz"))]
    save_transform(saved, identity())
    same(load_transform(saved), identity())
    save_transform(saved.parent, FULL, {"status": "registered", "score": 0.9})
    assert [path.read_bytes() for path in (saved, saved.with_suffix(".npz"))] == before


def test_facts_do_not_replace_the_transform(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="matrix"):
        save_transform(tmp_path, identity(), {"matrix": 1})
    with pytest.raises(ValueError, match="JSON"):
        save_transform(tmp_path, identity(), {"score": math.nan})
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="file"):
        save_transform(tmp_path / "file", identity())


def refused(path: Path) -> str:
    with pytest.raises(TransformError) as caught:
        load_transform(path)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 400
    assert path.name in text
    return text


def test_no_file(tmp_path: Path) -> None:
    assert "no such file" in refused(tmp_path / "none.json")
    with pytest.raises(TransformError, match="no such file"):
        load_transform(tmp_path)


@pytest.mark.parametrize(
    "content",
    [b"", b"text", b"\xff\xfe\x00", b"[1]", b"{}", b'{"format": "another"}', b"[" * 100_000, b'{"format": NaN}'],
)
def test_no_transform(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    refused(path)


CHANGES: list[tuple[str, Any, str]] = [
    ("version", 2, "version"),
    ("matrix", [[1, 0, 0]], "matrix"),
    ("matrix", [[1, 2, 3], [2, 4, 5]], "flattens"),
    ("matrix", [[1, 2, 1e999], [2, 4, 5]], ""),
    ("matrix", "identity", ""),
    ("matrix", None, "finite"),
    ("fixed", {"name": "a"}, "complete"),
    ("fixed", 7, "complete"),
    ("moving", {"name": "a", "width": 0, "height": 5, "mpp": [1, 1]}, "complete"),
    ("moving", {"name": "a", "width": 2.5, "height": 5, "mpp": [1, 1]}, "integer number"),
    ("moving", {"name": "a", "width": 5, "height": 5, "mpp": [1, -1]}, "µm/px"),
    ("fixed", {"name": "a", "width": 5, "height": 5, "mpp": [1e-320, 1]}, "µm/px"),
    ("fixed", {"name": "a", "width": 5, "height": 5, "mpp": [1, 1e300]}, "µm/px"),
    ("fixed", {"name": "a", "width": 10**12, "height": 5, "mpp": [1, 1]}, "px"),
    ("field", {}, "complete"),
    ("field.file", "../other.npz", "beside"),
    ("field.file", 7, "beside"),
    ("field.file", "none.npz", "no such file"),
    ("field.sha256", "0" * 64, "SHA-256"),
    ("field.rows", 7, "numbers"),
    ("field.rows", 10**9, "cannot be"),
    ("field.rows", -6, "cannot be"),
    ("field.spacing_um", 0, "apart"),
    ("field.origin_um", [0], "complete"),
]


@pytest.mark.parametrize(("key", "value", "words"), CHANGES)
def test_documents_that_are_wrong(saved: Path, key: str, value: Any, words: str) -> None:
    document = json.loads(saved.read_text(encoding="utf-8"))
    inner = document
    *outer, last = key.split(".")
    for name in outer:
        inner = inner[name]
    inner[last] = value
    saved.write_text(json.dumps(document))
    assert words in refused(saved)


@pytest.mark.parametrize(
    "missing", ["matrix", "field", "field.rows", "field.sha256", "fixed", "moving", "moving.quickhash"]
)
def test_documents_that_lack_something(saved: Path, missing: str) -> None:
    document = json.loads(saved.read_text(encoding="utf-8"))
    *outer, last = missing.split(".")
    del (document[outer[0]] if outer else document)[last]
    saved.write_text(json.dumps(document))
    assert "complete" in refused(saved)


def rewritten(saved: Path, content: bytes) -> Path:
    """The document, with another field whose checksum fits."""
    import hashlib

    saved.with_suffix(".npz").write_bytes(content)
    document = json.loads(saved.read_text(encoding="utf-8"))
    document["field"]["sha256"] = hashlib.sha256(content).hexdigest()
    saved.write_text(json.dumps(document))
    return saved


def packed(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def test_fields_that_are_wrong(saved: Path) -> None:
    good = FIELD.coefficients
    spoiled = good.copy()
    spoiled[2, 2, 0] = np.nan
    objects = good.astype(object)
    with zipfile.ZipFile(other := io.BytesIO(), "w") as archive:
        archive.writestr("coefficients.npy", b"no array")
    for content in (
        b"", b"text", other.getvalue(), packed(coefficients=spoiled), packed(coefficients=objects), packed(other=good),
        packed(coefficients=good[:-1]), packed(coefficients=good.astype("U8")[:0]),
        packed(coefficients=np.zeros((2000, 2000, 2))),
    ):  # fmt: skip
        refused(rewritten(saved, content))
    same(load_transform(rewritten(saved, packed(coefficients=good))), FULL)


def npy(header: str) -> bytes:
    """A field whose array has this header."""
    with zipfile.ZipFile(buffer := io.BytesIO(), "w") as archive:
        text = header.encode()
        archive.writestr("coefficients.npy", b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f8', 'fortran_order': False, 'shape': (7, 7, 2), ",  # ends in tokenize.TokenError
        "{'descr': '<f8', 'fortran_order': False, 'shape': (7, 7, 2), 'a': " + "(" * 3000,
        "{'descr': '<f8', 'fortran_order': False, 'shape': (-1, 4611686018427387904)}",
        "{'descr': 'zz', 'fortran_order': 1, 'shape': 3}",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (1048576, 1048576, 2)}",
        "1L",
    ],
)
def test_a_field_with_a_damaged_header_is_refused(saved: Path, header: str) -> None:
    assert "register again" in refused(rewritten(saved, npy(header)))


def test_a_field_that_was_changed_or_cut(saved: Path) -> None:
    npz = saved.with_suffix(".npz")
    content = npz.read_bytes()
    npz.write_bytes(content[:-1])
    assert "SHA-256" in refused(saved)
    npz.write_bytes(content[:300] + b"\x01" + content[301:])
    assert "SHA-256" in refused(saved)
    npz.unlink()
    assert "no such file" in refused(saved)
