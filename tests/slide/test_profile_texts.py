"""What leaves a color profile before it goes into an output, and that the colors stay."""

from __future__ import annotations

import contextlib
import random
import struct
from pathlib import Path

import numpy as np
import pytest
from make_slides import texture, write_slide
from PIL import ImageCms

from wsi2ihc.slide import open_slide, srgb_profile, to_srgb_transform
from wsi2ihc.slide.icc import without_texts

SECRET = "Scanner 4711 of Dr. Example"
COLORS = np.stack(np.meshgrid(*[np.arange(0, 256, 15)] * 3), -1).reshape(-1, 18, 3).astype(np.uint8)


def tags_of(profile: bytes) -> dict[bytes, bytes]:
    count = struct.unpack_from(">I", profile, 128)[0]
    entries = [struct.unpack_from(">4sII", profile, 132 + 12 * at) for at in range(count)]
    return {name: profile[offset : offset + size] for name, offset, size in entries}


def profile_of(tags: dict[bytes, bytes], version: int) -> bytes:
    header = bytearray(b"\xee" * 128)
    header[8:24] = bytes([version, 0x20, 0, 0]) + b"scnrRGB XYZ "
    header[36:40], header[64:68] = b"acsp", (1).to_bytes(4, "big")
    header[68:80] = srgb_profile()[68:80]
    header[24:36] = struct.pack(">6H", 2021, 3, 4, 5, 6, 7)
    body, table = b"", b""
    for name, data in tags.items():
        table += name + struct.pack(">II", 132 + 12 * len(tags) + len(body), len(data))
        body += data.ljust(-(-len(data) // 4) * 4, b"\0")
    profile = header + struct.pack(">I", len(tags)) + table + body + SECRET.encode()
    profile[:4] = struct.pack(">I", len(profile))
    return bytes(profile)


def matrix_tags() -> dict[bytes, bytes]:
    kept = {name: data for name, data in tags_of(srgb_profile()).items() if name not in (b"desc", b"cprt")}
    kept[b"rXYZ"], kept[b"gXYZ"] = kept[b"gXYZ"], kept[b"rXYZ"]
    return {name: data + SECRET.encode() for name, data in kept.items()}


def table_tags() -> dict[bytes, bytes]:
    """A lookup table of 8 bits, as scanners have them; the colors are arbitrary."""
    curve = np.arange(256, dtype=np.uint8).tobytes()
    matrix = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 65536)
    corners = np.random.default_rng(0).integers(0, 128, 24, np.uint8).tobytes()
    element = b"mft1\0\0\0\0\x03\x03\x02\0" + matrix + curve * 3 + corners + curve * 3
    return {b"A2B0": element, b"A2B1": element, b"wtpt": matrix_tags()[b"wtpt"]}


def with_secrets(tags: dict[bytes, bytes]) -> dict[bytes, bytes]:
    multilingual = struct.pack(">4sIII2s2sII", b"mluc", 0, 1, 12, b"en", b"US", 2 * len(SECRET), 28)
    texts = {name: multilingual + SECRET.encode("utf-16-be") for name in (b"desc", b"cprt", b"dmnd", b"dmdd")}
    return tags | texts | {b"targ": b"text\0\0\0\0" + SECRET.encode(), b"prIV": b"data\0\0\0\0" + SECRET.encode()}


@pytest.mark.parametrize("version", [2, 4])
@pytest.mark.parametrize("tags", [matrix_tags(), table_tags()], ids=["matrix", "table"])
def test_texts_leave_and_colors_stay(tags: dict[bytes, bytes], version: int) -> None:
    profile = profile_of(with_secrets(tags), version)
    plain = without_texts(profile)
    assert SECRET.encode() in profile
    assert SECRET.encode() not in plain
    assert SECRET.encode("utf-16-be") not in plain
    assert b"\xee" not in plain[:128]
    assert struct.pack(">6H", 2021, 3, 4, 5, 6, 7) not in plain
    assert tags_of(plain).keys() == tags.keys() | {b"desc", b"cprt"}
    np.testing.assert_array_equal(to_srgb_transform(plain)(COLORS), to_srgb_transform(profile)(COLORS))
    assert without_texts(plain) == plain


@pytest.mark.parametrize("version", [2, 4])
def test_other_programs_can_read_what_is_left(version: int, tmp_path: Path) -> None:
    (tmp_path / "a.icc").write_bytes(without_texts(profile_of(with_secrets(matrix_tags()), version)))
    profile = ImageCms.ImageCmsProfile(str(tmp_path / "a.icc"))
    assert profile.profile.profile_description == "Colors of the slide"
    assert profile.profile.copyright == "No copyright notice is kept"
    assert profile.profile.manufacturer is None


def test_damaged_profiles_are_refused_or_read() -> None:
    rng = random.Random(1)
    whole = profile_of(with_secrets(table_tags()), 4)
    for _ in range(300):
        damaged = bytearray(whole[: rng.randrange(len(whole))])
        for _ in range(rng.randrange(4)):
            if damaged:
                damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        with contextlib.suppress(ValueError):
            without_texts(bytes(damaged))


def test_a_slide_gives_its_profile_without_texts(tmp_path: Path) -> None:
    profile = profile_of(with_secrets(matrix_tags()), 4)
    for name, more in (("a.tif", {}), ("b.tif", {"subifds": True})):
        path = write_slide(tmp_path / name, texture(300, 200), icc_profile=profile, **more)
        for address in (path, f"file://{path}"):
            with open_slide(address) as slide:
                assert slide.info.icc_profile == without_texts(profile)
