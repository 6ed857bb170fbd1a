"""Damaged tables of frames, which end libdicom with a segmentation fault, are refused before it sees them."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from wsi2ihc.errors import UnreadableSlideError
from wsi2ihc.geometry import Region
from wsi2ihc.slide import open_slide
from wsi2ihc.slide.dicom_frames import check_frames

SLIDE = Path(__file__).parents[1] / "fuzz" / "corpus" / "dicom" / "slide.dcm"
"""96×96 px in four frames of 64×64 px."""

TABLE = b"\xe0\x7f\x10\x00OB\x00\x00\xff\xff\xff\xff\xfe\xff\x00\xe0"


def offsets_of(content: bytes) -> list[int]:
    place = content.index(TABLE) + len(TABLE) + 4
    return list(struct.unpack_from("<4I", content, place))


def with_offsets(offsets: Sequence[int]) -> bytes:
    content = bytearray(SLIDE.read_bytes())
    struct.pack_into(f"<{len(offsets)}I", content, content.index(TABLE) + len(TABLE) + 4, *offsets)
    return bytes(content)


def with_extended(offsets: Sequence[int]) -> bytes:
    """The offsets in the extended table, and none in the basic one."""
    content = SLIDE.read_bytes()
    place = content.index(TABLE)
    frames = place + len(TABLE) + 4 + 16
    values = struct.pack(f"<{len(offsets)}Q", *offsets)
    extended = struct.pack("<HH2sHI", 0x7FE0, 1, b"OV", 0, len(values)) + values
    lengths = struct.pack("<HH2sHI", 0x7FE0, 2, b"OV", 0, len(values)) + struct.pack(f"<{len(offsets)}Q", *offsets)
    return content[:place] + extended + lengths + TABLE + struct.pack("<I", 0) + content[frames:]


def changed(place: int, value: int) -> list[int]:
    offsets = offsets_of(SLIDE.read_bytes())
    offsets[place] = value
    return offsets


def test_the_pixels_of_intact_tables_are_the_same(tmp_path: Path) -> None:
    pixels = []
    for name, content in (("basic", SLIDE.read_bytes()), ("extended", with_extended(offsets_of(SLIDE.read_bytes())))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "slide.dcm").write_bytes(content)
        with open_slide(tmp_path / name / "slide.dcm") as slide:
            pixels.append(slide.read_level(0, Region(0, 0, 96, 96)))
    assert np.array_equal(*pixels)


@pytest.mark.parametrize(("place", "value"), [(0, 8), (0, 0x40000), (1, 0), (1, 7), (1, 2**32 - 1), (2, 100)])
def test_offsets_that_do_not_increase_are_refused(tmp_path: Path, place: int, value: int) -> None:
    path = tmp_path / "slide.dcm"
    for content in (with_offsets(changed(place, value)), with_extended(changed(place, value))):
        path.write_bytes(content)
        with pytest.raises(UnreadableSlideError, match=r"^slide\.dcm: it is damaged: the offsets of its frames"):
            open_slide(path)


@pytest.mark.parametrize("value", [2**63, 2**64 - 1])
def test_extended_offsets_beyond_any_file_are_refused(tmp_path: Path, value: int) -> None:
    path = tmp_path / "slide.dcm"
    path.write_bytes(with_extended(changed(1, value)))
    with pytest.raises(UnreadableSlideError, match="offsets of its frames"):
        open_slide(path)


def test_a_damaged_file_of_the_same_series_is_refused_and_named(tmp_path: Path) -> None:
    (tmp_path / "one.dcm").write_bytes(SLIDE.read_bytes())
    (tmp_path / "two.dcm").write_bytes(with_offsets(changed(1, 0)))
    with pytest.raises(UnreadableSlideError, match=r"^two\.dcm: it is damaged"):
        open_slide(tmp_path / "one.dcm")


def test_a_damaged_file_of_another_series_is_in_nobodys_way(tmp_path: Path) -> None:
    (tmp_path / "one.dcm").write_bytes(SLIDE.read_bytes())
    (tmp_path / "two.dcm").write_bytes(with_offsets(changed(1, 0)).replace(b"1.2.3.6", b"1.2.9.6"))
    with open_slide(tmp_path / "one.dcm") as slide:
        assert slide.info.vendor == "dicom"


def test_a_header_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    content = SLIDE.read_bytes()
    path = tmp_path / "slide.dcm"
    for size in (132, 140, 400, content.index(TABLE) + 4, content.index(TABLE) + len(TABLE) + 8):
        path.write_bytes(content[:size])
        with pytest.raises(UnreadableSlideError):
            open_slide(path)


def as_jpeg_2000(content: bytes) -> bytes:
    syntax = b"1.2.840.10008.1.2.4."
    place = content.index(syntax) + len(syntax)
    return content[:place] + b"90" + content[place + 2 :]


def test_a_hole_among_jpeg_2000_frames_is_refused(tmp_path: Path) -> None:
    """OpenJPEG, and so OpenSlide, would decode it into wrong pixels."""
    content = as_jpeg_2000(SLIDE.read_bytes())
    (tmp_path / "a.dcm").write_bytes(content[:-1200] + bytes(600) + content[-600:])
    with pytest.raises(UnreadableSlideError, match="hold a run of zeros"):
        open_slide(tmp_path / "a.dcm")


def test_zeros_behind_the_frames_are_padding(tmp_path: Path) -> None:
    content = as_jpeg_2000(SLIDE.read_bytes())
    padding = struct.pack("<HH2sHI", 0xFFFC, 0xFFFC, b"OB", 0, 2000) + bytes(2000)
    (tmp_path / "a.dcm").write_bytes(content + padding)
    check_frames(tmp_path / "a.dcm")
