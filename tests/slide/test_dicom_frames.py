"""Damaged tables of frames, which end libdicom with a segmentation fault, are refused before it sees them."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from make_slides import texture

from wsi2ihc.errors import UnreadableSlideError
from wsi2ihc.geometry import Region
from wsi2ihc.slide import open_slide
from wsi2ihc.slide.readers.dicom import check_frames
from wsi2ihc.slide.readers.openslide_reader import OpenSlideReader

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


def test_a_damaged_file_of_another_series_is_ignored(tmp_path: Path) -> None:
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


def jpeg_2000_file(path: Path, damage: int | None = None, *, table: bool = True, sparse: bool = False) -> Path:
    """A slide of four frames, with a hole in the middle of one."""
    content = SLIDE.read_bytes()
    header = content[: content.index(TABLE)]
    header = header.replace(b"1.2.840.10008.1.2.4.50", b"1.2.840.10008.1.2.4.90")
    header = header.replace(b"\x0c\x00YBR_FULL_422", b"\x04\x00RGB ")
    if sparse:
        header = header.replace(b"TILED_FULL", b"UNKNOWN   ")
    image = texture(128, 128)
    frames = []
    for number in range(4):
        row, column = divmod(number, 2)
        frame = imagecodecs.jpeg2k_encode(
            np.ascontiguousarray(image[row * 64 :, column * 64 :][:64, :64]), reversible=True, codecformat="j2k"
        )
        if number == damage:
            frame = frame[:1000] + bytes(600) + frame[1600:]
        frames.append(frame + b"\0" * (len(frame) % 2))
    items = [b"\xfe\xff\x00\xe0" + struct.pack("<I", len(frame)) + frame for frame in frames]
    offsets = np.cumsum([0, *(len(item) for item in items[:-1])]) if table else []
    path.write_bytes(
        header + TABLE + struct.pack(f"<I{len(offsets)}I", 4 * len(offsets), *offsets) + b"".join(items)
        + b"\xfe\xff\xdd\xe0\0\0\0\0" + struct.pack("<HH2sHI", 0xFFFC, 0xFFFC, b"OB", 0, 2000) + bytes(2000)
    )  # fmt: skip
    return path


@pytest.mark.parametrize("table", [True, False])
@pytest.mark.parametrize("damage", [None, 0, 1, 2, 3])
def test_a_hole_in_a_jpeg_2000_frame_is_damage_where_it_is_read(
    tmp_path: Path, damage: int | None, table: bool
) -> None:
    """OpenJPEG, and so OpenSlide, would decode it into wrong pixels. What follows the frames is padding."""
    with open_slide(jpeg_2000_file(tmp_path / "a.dcm", damage, table=table)) as slide:
        for number in range(4):
            row, column = divmod(number, 2)
            region = Region(column * 64, row * 64, 32, 32)
            if number == damage:
                with pytest.raises(UnreadableSlideError, match=f"px x {region.x}, y {region.y} .* run of zeros"):
                    slide.read_level(0, region)
            else:
                np.testing.assert_array_equal(
                    slide.read_level(0, region), texture(128, 128)[region.slices_in(Region(0, 0, 128, 128))]
                )


@pytest.mark.parametrize("table", [True, False])
def test_a_hole_in_frames_of_unknown_place_is_damage_of_the_level(tmp_path: Path, table: bool) -> None:
    region = Region(0, 0, 32, 32)
    for damage, hole in ((None, None), (3, region)):
        (frames,) = check_frames(jpeg_2000_file(tmp_path / "a.dcm", damage, table=table, sparse=True))
        assert frames.hole(region) == hole


def test_a_hole_across_frames_is_found_from_both(tmp_path: Path) -> None:
    path = jpeg_2000_file(tmp_path / "a.dcm")
    content = bytearray(path.read_bytes())
    (frames,) = check_frames(path)
    assert frames.hole(Region(0, 0, 96, 96)) is None
    (frames,) = check_frames(path)
    second = offsets_of(bytes(content))[1] + content.index(TABLE) + len(TABLE) + 20
    content[second - 300 : second + 300] = bytes(600)
    path.write_bytes(content)
    assert frames.hole(Region(0, 0, 64, 64)) == Region(0, 0, 64, 64)
    assert frames.hole(Region(64, 0, 32, 64)) == Region(64, 0, 64, 64)
    assert frames.hole(Region(64, 64, 32, 32)) is None


def test_opening_reads_no_frames_but_those_that_are_probed(tmp_path: Path) -> None:
    path = jpeg_2000_file(tmp_path / "a.dcm")
    with open_slide(path) as slide:
        assert isinstance(slide, OpenSlideReader)
        (frames,) = slide._jpeg_2000
        assert frames._intact.sum() == 1
        slide.read_level(0, Region(0, 0, 96, 96))
        assert frames._intact.all()


def test_tables_behind_tags_out_of_order_are_checked(tmp_path: Path) -> None:
    content = with_offsets(changed(1, 7)).replace(b"\x08\x00\x16\x00UI", b"\x08\x80\x16\x00UI")
    path = tmp_path / "slide.dcm"
    path.write_bytes(content)
    with pytest.raises(UnreadableSlideError, match="offsets of its frames"):
        check_frames(path)


def undefined(tag: tuple[int, int], kind: bytes, value: bytes) -> bytes:
    """A sequence of undefined length with one item."""
    item = b"\xfe\xff\x00\xe0\xff\xff\xff\xff" + value + b"\xfe\xff\x0d\xe0" + bytes(4)
    return struct.pack("<HH2sHI", *tag, kind, 0, 2**32 - 1) + item + b"\xfe\xff\xdd\xe0" + bytes(4)


@pytest.mark.parametrize("tag", [(0x0029, 0x1010), (0x5200, 0x9230)])
@pytest.mark.parametrize("kind", [b"SQ", b"UN"])
def test_tables_behind_long_sequences_are_checked(tmp_path: Path, tag: tuple[int, int], kind: bytes) -> None:
    content = with_offsets(changed(1, 7))
    inner = struct.pack("<HHI", 0x0018, 0x0050, 4) if kind == b"UN" else struct.pack("<HH2sH", 0x18, 0x50, b"DS", 4)
    place = content.index(b"\x48\x00\x06\x00UL") if tag[0] < 0x48 else content.index(TABLE)
    path = tmp_path / "slide.dcm"
    path.write_bytes(content[:place] + undefined(tag, kind, inner + b"0.01") + content[place:])
    with pytest.raises(UnreadableSlideError, match="offsets of its frames"):
        check_frames(path)
