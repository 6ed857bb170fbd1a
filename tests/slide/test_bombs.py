"""Small files that claim to be large: nothing is allocated for a claim."""

from __future__ import annotations

import os
import re
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from make_slides import texture, write_slide

from wsi2ihc.errors import UnreadableSlideError
from wsi2ihc.geometry import Region
from wsi2ihc.slide import open_slide, srgb_profile

_SIDE_PX = 5000
_LIMIT_MB = 40
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_mb() -> float:
    found = re.search(r"VmHWM:\s*(\d+) kB", _STATUS.read_text())
    assert found
    return int(found[1]) / 1024


@pytest.fixture
def bounded() -> Iterator[Callable[[], None]]:
    """A function from whose call on the memory of the process must not rise by more than a little."""
    if not os.access(_CLEAR, os.W_OK):
        pytest.skip("the system does not tell peaks of memory")
    start: list[float] = []

    def begin() -> None:
        _CLEAR.write_text("5")  # the peak is what is used now
        start.append(peak_mb())

    yield begin
    assert peak_mb() - start[0] < _LIMIT_MB


def _image() -> np.ndarray:
    return np.zeros((_SIDE_PX, _SIDE_PX, 3), np.uint8)


def _jpeg() -> bytes:
    data = bytes(imagecodecs.jpeg8_encode(texture(256, 256)))
    at = data.index(b"\xff\xc0")
    return data[: at + 5] + b"\xff\xdc\xff\xdc" + data[at + 9 :]


def _codestream(field: slice, value: bytes) -> bytes:
    data = bytearray(imagecodecs.jpeg2k_encode(texture(256, 256), codecformat="j2k", level=0))
    data[field] = value
    return bytes(data)


BOMBS: dict[str, tuple[int, Callable[[], bytes]]] = {
    "deflate": (8, lambda: zlib.compress(bytes(6 * 10**7), 9)),
    "lzma": (34925, lambda: bytes(imagecodecs.lzma_encode(bytes(6 * 10**7)))),
    "lzw": (5, lambda: bytes(imagecodecs.lzw_encode(bytes(6 * 10**7)))),
    "packbits": (32773, lambda: b"\x81\x00" * 10**5),
    "zstd": (50000, lambda: bytes(imagecodecs.zstd_encode(bytes(6 * 10**7)))),
    "jpeg": (7, _jpeg),
    "old jpeg": (6, _jpeg),
    "jpeg2000": (34712, lambda: _codestream(np.s_[8:16], b"\0\0\xff\xff" * 2)),
    "jpeg2000 of 16,384 components": (34712, lambda: _codestream(np.s_[40:42], b"\x40\x00")),
    "jpeg2000 of 65,535 layers": (34712, lambda: _codestream(np.s_[53:55], b"\xff\xff")),
    "webp": (50001, lambda: bytes(imagecodecs.webp_encode(_image(), lossless=True))),
    "jpegxl": (50002, lambda: bytes(imagecodecs.jpegxl_encode(_image(), effort=1))),
    "png": (34933, lambda: bytes(imagecodecs.png_encode(_image()))),
    "lerc": (34887, lambda: bytes(imagecodecs.lerc_encode(_image()))),
    "jpegxr": (22610, lambda: bytes(imagecodecs.jpegxr_encode(_image()[:1000, :1000]))),
}


@pytest.mark.parametrize("layout", ["tiles", "strips"])
@pytest.mark.parametrize("kind", BOMBS)
def test_a_tile_that_decodes_into_more_than_a_tile(
    tmp_path: Path, bounded: Callable[[], None], kind: str, layout: str
) -> None:
    compression, make = BOMBS[kind]
    path = tmp_path / "a.tif"
    data = make()
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(
            iter([data] * 4), shape=(512, 512, 3) if layout == "tiles" else (1024, 256, 3), dtype=np.uint8,
            photometric="rgb", metadata=None, compression=7 if compression == 6 else compression,
            **({"tile": (256, 256)} if layout == "tiles" else {"rowsperstrip": 256}),
        )  # fmt: skip
    if compression == 6:
        with tifffile.TiffFile(path, mode="r+b") as tiff:
            tiff.pages.first.tags["Compression"].overwrite(6)
    del data
    open_slide(write_slide(tmp_path / "warm.tif", texture(300, 300))).close()
    bounded()
    for address in (path, f"file://{path}"):
        try:
            with open_slide(address) as slide:
                slide.read_level(0, Region(0, 0, 256, 256))
        except UnreadableSlideError as error:
            text = str(error)
        else:  # OpenSlide decodes what belongs to the tile, and no more
            text = "a.tif: "
            assert address is path
        assert text.startswith("a.tif: ")


@pytest.mark.parametrize("compression", ["lerc", "png", "old jpeg", "jpegxr"])
def test_compressions_that_are_not_read_are_named(tmp_path: Path, compression: str) -> None:
    number, name = {"lerc": (34887, "LERC"), "png": (34933, "PNG"), "old jpeg": (6, "OJPEG"), "jpegxr": (22610, "XR")}[
        compression
    ]
    path = write_slide(tmp_path / "a.tif", texture(300, 300), photometric="rgb")
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        tiff.pages.first.tags["Compression"].overwrite(number)
    for address in (path, f"file://{path}"):
        with pytest.raises(UnreadableSlideError, match=rf"compressed with .*{name}.*, which is not read; convert"):
            open_slide(address)


@pytest.mark.parametrize("tag", ["ImageDescription", "InterColorProfile", "TileOffsets", "Software"])
@pytest.mark.parametrize("bigtiff", [False, True])
def test_a_tag_that_claims_gigabytes(tmp_path: Path, bounded: Callable[[], None], tag: str, bigtiff: bool) -> None:
    path = write_slide(
        tmp_path / "a.tif", texture(300, 300), bigtiff=bigtiff, icc_profile=srgb_profile(), description="text " * 20
    )
    with tifffile.TiffFile(path) as tiff:
        at = tiff.pages.first.tags[tag].offset + 4
    content = bytearray(path.read_bytes())
    content[at : at + 4] = (2 * 10**9).to_bytes(4, "little")
    path.write_bytes(content)
    os.truncate(path, 3 * 10**9)  # sparse: takes no place on the disk
    bounded()
    for address in (path, f"file://{path}"):
        with pytest.raises(UnreadableSlideError, match=r"a\.tif: its TIFF tag \d+ claims"):
            open_slide(address)


def test_directories_that_share_their_tags(tmp_path: Path) -> None:
    """They would have 16 million tags, in a file of 200 kB."""
    path, first, count = tmp_path / "a.tif", 1 << 16, 4000
    header = b"II*\0\x08\0\0\0" + struct.pack("<HHHIII", 1, 330, 4, count, 100, 0)
    offsets = struct.pack(f"<{count}I", *range(first, first + 12 * count, 12))
    path.write_bytes((header.ljust(100, b"\0") + offsets).ljust(first, b"\0") + (b"\0\x10" + bytes(10)) * 9000)
    started = time.process_time()
    with pytest.raises(UnreadableSlideError, match="TIFF tags"):
        open_slide(path)
    assert time.process_time() - started < 10


def test_a_chain_of_directories_without_end(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    directories = (bytes(2) + (14 + 6 * number).to_bytes(4, "little") for number in range(9000))
    path.write_bytes(b"II*\0\x08\0\0\0" + b"".join(directories) + bytes(100))
    with pytest.raises(UnreadableSlideError, match="TIFF directories"):
        open_slide(path)
