"""A folder of DICOM files is a slide, if they are of one series."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from wsi2ihc.batch.slide_manifest import read_rows
from wsi2ihc.errors import ManifestError, UnreadableSlideError
from wsi2ihc.geometry import Region
from wsi2ihc.slide import dicom_files, dicom_slides, open_slide
from wsi2ihc.slide.readers.dicom import series_uid
from wsi2ihc.translation.options import TranslateOptions

WHOLE_SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"
OPTIONS = TranslateOptions(device="cpu", workers=1)


def element(group: int, number: int, kind: bytes, value: bytes) -> bytes:
    tag = group.to_bytes(2, "little") + number.to_bytes(2, "little")
    if kind == b"SQ":
        return tag + kind + b"\0\0" + b"\xff\xff\xff\xff" + value + b"\xfe\xff\xdd\xe0" + bytes(4)
    return tag + kind + len(value).to_bytes(2, "little") + value


def item(value: bytes, *, stated: bool) -> bytes:
    if stated:
        return b"\xfe\xff\x00\xe0" + len(value).to_bytes(4, "little") + value
    return b"\xfe\xff\x00\xe0\xff\xff\xff\xff" + value + b"\xfe\xff\x0d\xe0" + bytes(4)


def write(path: Path, series: str, kind: str = WHOLE_SLIDE, size: int = 0) -> Path:
    """The start of a DICOM file, with another series' number in a sequence before its own."""
    other = element(0x0020, 0x000E, b"UI", b"9.9.9\0")
    content = bytes(128) + b"DICM" + element(0x0002, 0x0010, b"UI", b"1.2.840.10008.1.2.1\0")
    content += element(0x0008, 0x0016, b"UI", kind.encode() + b"\0" * (len(kind) % 2))
    content += element(0x0008, 0x1115, b"SQ", item(other, stated=False) + item(other, stated=True))
    content += element(0x0020, 0x000E, b"UI", series.encode() + b"\0" * (len(series) % 2))
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content + bytes(size))
    return path


def test_files_are_one_slide_by_their_series(tmp_path: Path) -> None:
    write(tmp_path / "level1.dcm", "1.2.3")
    large = write(tmp_path / "level0.dcm", "1.2.3", size=1000)
    other = write(tmp_path / "NOSUFFIX", "1.2.4")
    write(tmp_path / "ct.dcm", "1.2.5", kind="1.2.840.10008.5.1.4.1.1.2")
    (tmp_path / "text.dcm").write_text("text")
    assert series_uid(large) == "1.2.3"
    assert dicom_slides(dicom_files(tmp_path)) == [other, large]


def test_a_folder_of_several_slides_names_a_file_of_each(tmp_path: Path) -> None:
    write(tmp_path / "case" / "a.dcm", "1.2.3")
    write(tmp_path / "case" / "b.dcm", "1.2.4")
    with pytest.raises(UnreadableSlideError, match=r"^case: this folder holds 2 DICOM slides; .*\(a\.dcm, b\.dcm\)"):
        open_slide(tmp_path / "case")
    with pytest.raises(UnreadableSlideError, match="not that of a DICOM slide or an OME-Zarr"):
        open_slide(tmp_path)


def test_damaged_headers_are_no_slides(tmp_path: Path) -> None:
    rng = random.Random(0)
    whole = write(tmp_path / "a.dcm", "1.2.3").read_bytes()
    for _ in range(300):
        damaged = bytearray(whole[: rng.randrange(132, len(whole) + 1)])
        for _ in range(rng.randrange(6)):
            damaged[rng.randrange(132, len(damaged)) if len(damaged) > 132 else 0] = rng.randrange(256)
        (tmp_path / "a.dcm").write_bytes(damaged)
        series_uid(tmp_path / "a.dcm")


def test_a_batch_lists_dicom_slides(tmp_path: Path) -> None:
    write(tmp_path / "flat" / "a1.dcm", "1.2.3", size=100)
    write(tmp_path / "flat" / "a2.dcm", "1.2.3")
    write(tmp_path / "flat" / "b.dcm", "1.2.4")
    rows, problems = read_rows(str(tmp_path / "flat"), "identity", OPTIONS)
    assert not problems
    assert [(row.name, row.output) for row in rows] == [("a1.dcm", "a1.ome.tiff"), ("b.dcm", "b.ome.tiff")]
    rows, _ = read_rows(str(tmp_path / "flat" / "*.dcm"), "identity", OPTIONS)
    assert [row.name for row in rows] == ["a1.dcm", "b.dcm"]
    (tmp_path / "cases").mkdir()
    write(tmp_path / "cases" / "case7" / "x.dcm", "1.2.5")
    rows, _ = read_rows(str(tmp_path / "cases"), "identity", OPTIONS)
    assert [(row.name, row.output) for row in rows] == [("case7", "case7.ome.tiff")]
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "README").write_text("no slide here")
    with pytest.raises(ManifestError, match="contains no slide"):
        read_rows(str(tmp_path / "empty"), "identity", OPTIONS)


@pytest.mark.parametrize("name", ["IM_0001", "1.2.840.113619"])
@pytest.mark.parametrize("recursive", [False, True])
def test_a_batch_lists_dicom_slides_without_a_suffix(tmp_path: Path, name: str, recursive: bool) -> None:
    """Files that make a folder a slide for `open_slide` do so for a batch, too."""
    write(tmp_path / "flat" / name, "1.2.3", size=100)
    write(tmp_path / "flat" / "IM_0002", "1.2.3")
    write(tmp_path / "flat" / "DICOMDIR", "1.2.3", kind="1.2.840.10008.1.3.10")
    (tmp_path / "flat" / "README").write_text("text")
    assert dicom_slides(dicom_files(tmp_path / "flat")) == [tmp_path / "flat" / name]
    rows, problems = read_rows(str(tmp_path / "flat"), "identity", OPTIONS, recursive=recursive)
    assert not problems
    assert [row.name for row in rows] == [name]
    rows, _ = read_rows(str(tmp_path), "identity", OPTIONS, recursive=recursive)
    assert [row.name for row in rows] == [name if recursive else "flat"]
    rows, _ = read_rows(str(tmp_path / "fl*"), "identity", OPTIONS)
    assert [row.name for row in rows] == ["flat"]


def test_a_real_folder_is_opened(dev_data: Path) -> None:
    folder = dev_data / "slides" / "dicom_jpeg"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    with open_slide(folder) as slide, open_slide(next(folder.glob("*.dcm"))) as file:
        assert slide.info == file.info
        assert slide.read_level(0, Region(0, 0, 64, 64)).shape == (64, 64, 3)
