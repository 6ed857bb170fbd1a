"""Damage inside tiles: what a decoder can notice is an error with every reader, and never wrong pixels."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from make_slides import direct_levels, texture, write_slide

from wsi2ihc.errors import UnreadableSlideError
from wsi2ihc.geometry import Region
from wsi2ihc.slide import Slide, open_slide
from wsi2ihc.slide.readers.openslide_reader import OpenSlideReader
from wsi2ihc.slide.readers.tiffslide_reader import TiffSlideReader
from wsi2ihc.slide.tiff_metadata import TileTable, read_tiff_metadata

IMAGE = texture(512, 512)

Damage = Callable[[bytes, random.Random], bytes]


def table_of(path: Path) -> TileTable:
    facts = read_tiff_metadata(path)
    assert facts is not None
    return facts.tables[0]


def hole(size: int) -> Damage:
    def damage(data: bytes, rng: random.Random) -> bytes:
        at = rng.randrange(len(data) - size)
        return data[:at] + bytes(size) + data[at + size :]

    return damage


def flip(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]


def scramble(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data) - 200)
    return data[:at] + rng.randbytes(200) + data[at + 200 :]


def cut(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data) * 9 // 10)
    return data[:at] + bytes(len(data) - at)


class Damaged:
    """A slide of four tiles of 256 px, the second of which can be damaged again and again."""

    def __init__(self, path: Path, **how: object) -> None:
        self.path = write_slide(path, IMAGE, **how)
        self._content = path.read_bytes()
        table = table_of(path)
        self._offset, self._count = int(table.offsets[0, 1]), int(table.byte_counts[0, 1])

    def damage(self, change: Damage, rng: random.Random) -> None:
        tile = change(self._content[self._offset : self._offset + self._count], rng)
        self.path.write_bytes(self._content[: self._offset] + tile + self._content[self._offset + self._count :])


def is_refused(slide: Slide) -> bool:
    """Whether reading the damaged tile fails, with one line."""
    with slide:
        try:
            slide.read_level(0, Region(256, 0, 256, 256))
        except UnreadableSlideError as error:
            text = str(error)
        else:
            return False
    assert "damaged at level-0 px x 256, y 0" in text
    assert "\n" not in text
    return True


@pytest.mark.parametrize("size", [512, 4096])
@pytest.mark.parametrize(
    "how",
    [
        {"compression": "jpeg"},
        {"compression": "jpeg", "style": "aperio", "photometric": "rgb"},
        {"compression": "jpeg2000", "style": "aperio"},
        {"compression": "jpeg2000-ycbcr", "style": "aperio"},
        {"compression": "jpeg2000-registered"},
        {"compression": "deflate"},
        {"compression": "lzw"},
        {"compression": "zstd"},
        {"compression": "packbits"},
        {"compression": "webp"},
        {"compression": "jpegxl"},
    ],
    ids=lambda how: "-".join(how.values()),
)
def test_a_hole_of_zeros_is_noticed(tmp_path: Path, how: dict[str, str], size: int) -> None:
    """As an interrupted copy leaves it."""
    slide = Damaged(tmp_path / "a.tif", **how)
    rng = random.Random(1)
    for _ in range(4):
        slide.damage(hole(size), rng)
        assert is_refused(open_slide(slide.path))
        assert is_refused(open_slide(f"file://{slide.path}"))


@pytest.mark.parametrize("compression", ["jpeg", "jpeg2000", "deflate", "lzw", "zstd", "packbits", "webp", "jpegxl"])
def test_a_cut_tile_is_noticed(tmp_path: Path, compression: str) -> None:
    slide = Damaged(tmp_path / "a.tif", compression=compression, style="aperio")
    rng = random.Random(2)
    for _ in range(4):
        slide.damage(cut, rng)
        assert is_refused(open_slide(slide.path))
        assert is_refused(open_slide(f"file://{slide.path}"))


@pytest.mark.parametrize("photometric", ["ycbcr", "rgb"])
def test_damage_that_openslide_detects_is_detected(tmp_path: Path, photometric: str) -> None:
    slide = Damaged(tmp_path / "a.svs", compression="jpeg", style="aperio", photometric=photometric)
    rng = random.Random(3)
    noticed = {"openslide": 0, "here": 0}
    for number in range(30):
        slide.damage((flip, scramble, hole(64))[number % 3], rng)
        by_openslide = is_refused(OpenSlideReader(slide.path, None, None))
        here = is_refused(open_slide(slide.path))
        assert here or not by_openslide
        noticed["openslide"] += by_openslide
        noticed["here"] += here
    assert noticed["here"] >= noticed["openslide"] > 0


def test_any_flipped_bit_is_noticed_where_there_is_a_checksum(tmp_path: Path) -> None:
    slide = Damaged(tmp_path / "a.tif", compression="deflate")
    rng = random.Random(4)
    for _ in range(20):
        slide.damage(flip, rng)
        assert is_refused(open_slide(slide.path))


@pytest.mark.parametrize("compression", ["jpeg", "jpeg2000", "lzw"])
def test_zeros_behind_the_end_of_a_tile_are_padding(tmp_path: Path, compression: str) -> None:
    path = write_slide(tmp_path / "a.tif", IMAGE, compression=compression, style="aperio", padding=500)
    for address in (path, f"file://{path}"):
        with open_slide(address) as slide:
            assert direct_levels(slide) == {0}
            assert slide.read_level(0, Region(0, 0, 512, 512)).std() > 5


@pytest.mark.parametrize("level", [0, 255, 240])
@pytest.mark.parametrize("compression", ["jpeg", "jpeg2000", "lzw", "zstd", "packbits", "webp"])
def test_tiles_of_one_color_are_not_taken_for_holes(tmp_path: Path, compression: str, level: int) -> None:
    image = np.full((512, 512, 3), level, np.uint8)
    path = write_slide(tmp_path / "a.tif", image, compression=compression)
    for address in (path, f"file://{path}"):
        with open_slide(address) as slide:
            assert np.abs(slide.read_level(0, Region(0, 0, 512, 512)).astype(int) - level).max() <= 1


def test_a_reader_that_cannot_prove_its_pixels_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that meets many damaged slides must not run out of open files."""
    path = Damaged(tmp_path / "a.tif", compression="jpeg").path
    opened: list[TiffSlideReader] = []

    def refuse(*_: object) -> None:
        raise UnreadableSlideError("refused")

    def prove(slide: TiffSlideReader) -> None:
        opened.append(slide)
        raise UnreadableSlideError("damaged")

    monkeypatch.setattr(OpenSlideReader, "__init__", refuse)
    monkeypatch.setattr(TiffSlideReader, "prove_pixels", prove)
    with pytest.raises(UnreadableSlideError, match="refused"):
        open_slide(path)
    (slide,) = opened
    with pytest.raises(ValueError, match="closed"):
        slide.read_level(0, Region(0, 0, 8, 8))
