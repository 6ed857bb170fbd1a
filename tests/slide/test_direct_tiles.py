"""The fast path: when it is trusted, what it does with damage, and that it decodes no more than it must."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from make_slides import direct_levels, halves, texture, write_slide

from wsi2ihc.errors import UnreadableSlideError
from wsi2ihc.geometry import Region, Size
from wsi2ihc.slide import open_slide
from wsi2ihc.slide.jpeg_tiles import (
    MAX_CACHE_BYTES,
    MIN_CACHE_BYTES,
    DirectTiles,
    LocalFile,
    TileCache,
    cache_bytes,
    prove,
)
from wsi2ihc.slide.readers.openslide_reader import OpenSlideReader
from wsi2ihc.slide.readers.tiffslide_reader import TiffSlideReader
from wsi2ihc.slide.tiff_metadata import TileTable, read_tiff_metadata

FILL = (3, 2, 1)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_slide(tmp_path_factory.mktemp("direct") / "a.tif", halves(texture(900, 700), 2), tile=128)


def table_of(path: Path, level: int = 0) -> TileTable:
    facts = read_tiff_metadata(path)
    assert facts is not None
    return facts.tables[level]


def overwrite(path: Path, target: Path, tile: tuple[int, int], change: Callable[[bytes], bytes]) -> Path:
    """A copy of a slide, one tile of level 0 changed."""
    table = table_of(path)
    offset, count = int(table.offsets[tile]), int(table.byte_counts[tile])
    data = bytearray(path.read_bytes())
    changed = change(bytes(data[offset : offset + count]))
    assert len(changed) == count
    data[offset : offset + count] = changed
    target.write_bytes(data)
    return target


def zeros_at_the_end(data: bytes) -> bytes:
    return data[: len(data) // 2] + bytes(len(data) - len(data) // 2)


def early_end(data: bytes) -> bytes:
    half = len(data) // 2
    return data[:half] + b"\xff\xd9" + data[half + 2 :]


def no_start(data: bytes) -> bytes:
    return bytes(20) + data[20:]


def other_size(data: bytes) -> bytes:
    """The stream claims 65,500 × 65,500 px: 12 GB."""
    at = data.index(b"\xff\xc0")
    return data[: at + 5] + b"\xff\xdc\xff\xdc" + data[at + 9 :]


DAMAGE = [zeros_at_the_end, early_end, no_start, other_size]


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("reader", ["openslide", "tiffslide", "openslide alone"])
def test_a_damaged_tile_is_named_and_the_rest_can_be_read(
    path: Path, tmp_path: Path, damage: Callable[[bytes], bytes], reader: str
) -> None:
    bad = overwrite(path, tmp_path / "bad.tif", (2, 3), damage)
    facts = None if reader == "openslide alone" else read_tiff_metadata(bad)
    with (
        open_slide(path) as good,
        TiffSlideReader(bad, None) if reader == "tiffslide" else OpenSlideReader(bad, facts, None) as slide,
    ):
        assert direct_levels(slide) == (frozenset() if reader == "openslide alone" else {0, 1})
        for _ in range(2):
            with pytest.raises(UnreadableSlideError, match=r"bad\.tif: damaged at level-0 px") as caught:
                slide.read_level(0, Region(400, 270, 50, 50))
            assert "\n" not in str(caught.value)
            assert str(tmp_path) not in str(caught.value)
            assert "--on-read-error" in str(caught.value)
            elsewhere = Region(0, 0, 384, 256)
            np.testing.assert_array_equal(slide.read_level(0, elsewhere), good.read_level(0, elsewhere))


def test_the_place_is_in_level_0_px(path: Path, tmp_path: Path) -> None:
    bad = overwrite(path, tmp_path / "bad.tif", (2, 3), no_start)
    with open_slide(bad) as slide, pytest.raises(UnreadableSlideError, match=r"x 384, y 256 \(within 128×128 px\)"):
        slide.read_level(0, Region(0, 0, 900, 700))


def test_threads_do_not_spoil_each_others_reads(path: Path, tmp_path: Path) -> None:
    """An OpenSlide handle stays in error; a read elsewhere, at the same time, has to succeed all the same."""
    bad = overwrite(path, tmp_path / "bad.tif", (2, 3), no_start)
    with OpenSlideReader(bad, None, None) as slide, open_slide(path) as good:
        expected = good.read_level(0, Region(0, 0, 300, 250))

        def read(number: int) -> bool:
            if number % 3 == 0:
                with pytest.raises(UnreadableSlideError):
                    slide.read_level(0, Region(390, 260, 20, 20))
                return True
            return np.array_equal(slide.read_level(0, Region(0, 0, 300, 250)), expected)

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(read, range(60)))


def test_a_file_that_shrinks_after_opening(path: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copy(path, tmp_path / "shrinks.tif"))
    with open_slide(copy) as slide:
        with copy.open("r+b") as file:
            file.truncate(int(table_of(path).offsets[4, 2]))
        with pytest.raises(UnreadableSlideError, match="the file ends before it"):
            slide.read_level(0, Region(300, 520, 10, 10))
        assert slide.read_level(0, Region(0, 0, 10, 10)).any()


def test_a_byte_count_beyond_reason_allocates_nothing(path: Path) -> None:
    table = table_of(path)
    counts = table.byte_counts.copy()
    counts[1, 1] = 2**40
    direct = DirectTiles(LocalFile(path), {0: (replace(table, byte_counts=counts), 1.0)}, 2**20)
    with pytest.raises(UnreadableSlideError, match="it claims"):
        direct.read(0, Region(130, 130, 5, 5), np.empty((5, 5, 3), np.uint8), FILL)
    direct.close()


class TestProof:
    """A level is decoded directly only if its pixels are those of the library."""

    @pytest.mark.parametrize("where", [(0, 0), (3, 4), (5, 7)])
    def test_one_gray_level_is_enough_to_lose_trust(self, path: Path, where: tuple[int, int]) -> None:
        with OpenSlideReader(path, None, None) as slide:
            direct = DirectTiles(LocalFile(path), {0: (table_of(path), 1.0)}, 2**20)

            def library(level: int, region: Region) -> np.ndarray:
                pixels = slide.read_level(level, region)
                if region.y // 128 == where[0] and region.x // 128 == where[1]:
                    pixels[-1, -1, 1] ^= 1
                return pixels

            assert prove(direct, 0, slide.read_level, "a.tif")
            expected_picks = {(0, 0), (3, 0), (5, 7)}  # first, middle and last of 48
            assert prove(direct, 0, library, "a.tif") == (where not in expected_picks)
            direct.close()

    def test_no_comparison_is_no_proof(self, path: Path) -> None:
        direct = DirectTiles(LocalFile(path), {0: (table_of(path), 1.0)}, 2**20)

        def unable(_level: int, _region: Region) -> None:
            return None

        assert not prove(direct, 0, unable, "a.tif")
        direct.close()

    def test_wrong_colors_are_found_out(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        decode = simplejpeg.decode_jpeg
        monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda data, _, buffer: decode(data, "BGR", buffer=buffer))
        with open_slide(path) as slide:
            assert direct_levels(slide) == frozenset()

    def test_tables_that_point_to_the_wrong_tiles_are_found_out(self, path: Path) -> None:
        facts = read_tiff_metadata(path)
        assert facts is not None
        table = facts.tables[0]
        shifted = replace(table, offsets=np.roll(table.offsets, 1, 1), byte_counts=np.roll(table.byte_counts, 1, 1))
        with OpenSlideReader(path, replace(facts, tables=(shifted, *facts.tables[1:])), None) as slide:
            assert direct_levels(slide) == {1}

    def test_lower_levels_of_aperio_files_with_missing_tiles_are_left_to_openslide(self, tmp_path: Path) -> None:
        path = write_slide(
            tmp_path / "a.svs", halves(texture(800, 640), 3), style="aperio", tile=128, missing={(1, 1, 1)}
        )
        with open_slide(path) as slide:
            assert direct_levels(slide) == {0}
            assert not slide.is_blank(1, Region(130, 130, 5, 5))  # OpenSlide paints it from level 0
            assert (slide.read_level(1, Region(128, 128, 128, 128)) != slide.info.background).any()


class TestCache:
    def count_decodes(self, path: Path, cache: int, regions: list[Region], threads: int = 1) -> tuple[int, int]:
        """Tiles decoded, and distinct tiles touched."""
        table = table_of(path)
        direct = DirectTiles(LocalFile(path), {0: (table, 1.0)}, cache)
        source = direct._sources[0]
        decoded = []

        def decode(data: bytes, out: np.ndarray) -> None:
            decoded.append(1)
            source.decode(data, out)

        direct._sources[0] = replace(source, decode=decode)
        touched = set()
        whole = np.empty((table.size.height, table.size.width, 3), np.uint8)
        level = Region(0, 0, table.size.width, table.size.height)

        def read(region: Region) -> None:
            direct.read(0, region, whole[region.slices_in(level)], FILL)

        for region in regions:
            rows, columns = table.tile_range(region)
            touched |= {(row, column) for row in rows for column in columns}
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(read, regions))
        with open_slide(path) as slide:
            covered = np.zeros(whole.shape[:2], bool)
            for region in regions:
                covered[region.slices_in(level)] = True
            np.testing.assert_array_equal(whole[covered], slide.read_level(0, level)[covered])
        direct.close()
        return len(decoded), len(touched)

    @pytest.mark.parametrize("halo", [0, 84])
    def test_windows_that_share_tiles_decode_them_once(self, tmp_path: Path, halo: int) -> None:
        path = write_slide(tmp_path / "a.tif", texture(1800, 1400), tile=128)
        level = Region(0, 0, 1800, 1400)
        cores = [Region(x, y, 500, 300) for y in range(0, 1400, 300) for x in range(0, 1800, 500)]
        regions = [core.grown(halo).intersection(level) for core in cores]
        decoded, touched = self.count_decodes(path, 2**25, regions)
        assert decoded == touched
        without, _ = self.count_decodes(path, 0, regions)
        assert without > 1.3 * touched

    def test_windows_on_borders_between_tiles_need_no_cache(self, path: Path) -> None:
        regions = [Region(x, y, 256, 128) for y in range(0, 640, 128) for x in range(0, 768, 256)]
        decoded, touched = self.count_decodes(path, 0, regions)
        assert decoded == touched

    def test_threads(self, path: Path) -> None:
        """Threads do not wait for each other's tiles: each may decode one that another has not put away yet, once."""
        threads = 4
        regions = [Region(x, y, 300, 200) for y in range(0, 500, 90) for x in range(0, 600, 70)]
        decoded, touched = self.count_decodes(path, 2**25, regions, threads)
        without, _ = self.count_decodes(path, 0, regions, threads)
        assert touched <= decoded <= threads * touched < without / 2

    def test_it_is_bounded(self) -> None:
        cache = TileCache(Size(64, 32), 10 * 64 * 32 * 3 + 100)
        for number in range(50):
            slot = cache.slot()
            slot.pixels[:] = number
            cache.put(number, slot)
        del slot
        assert len(cache) == cache.capacity == 10
        assert cache.get(39) is None
        for number in range(40, 50):
            held = cache.get(number)
            assert held is not None
            assert (held.pixels == number).all()

    def test_memory_is_not_used_again_while_somebody_looks_at_it(self) -> None:
        cache = TileCache(Size(64, 64), 64 * 64 * 3)
        slot = cache.slot()
        slot.pixels[:] = 1
        cache.put("a", slot)
        del slot
        looking = cache.get("a")
        assert looking is not None
        for number in range(200, 250):
            slot = cache.slot()
            slot.pixels[:] = number
            cache.put(number, slot)
        assert (looking.pixels == 1).all()

    def test_memory_is_used_again(self) -> None:
        cache = TileCache(Size(256, 256), 4 * 256 * 256 * 3)
        addresses = set()
        for number in range(500):
            slot = cache.slot()
            addresses.add(slot.pixels.ctypes.data)
            cache.put(number, slot)
            del slot
        gc.collect()
        assert len(addresses) <= 8 * 2**20 // (256 * 256 * 3)  # one slab

    def test_size(self) -> None:
        assert cache_bytes(Size(1000, 1000), Size(256, 256)) == MIN_CACHE_BYTES
        assert cache_bytes(Size(10**6, 1000), Size(256, 256)) == MAX_CACHE_BYTES
        assert cache_bytes(Size(40_000, 1000), Size(256, 256)) == 3 * 157 * 256 * 256 * 3
