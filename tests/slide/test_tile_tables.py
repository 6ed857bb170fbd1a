"""The tables that say where tiles lie: what is lost or wrong in them is damage, and no background."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from make_slides import halves, texture, write_slide

from wsi2ihc.errors import UnreadableSlideError
from wsi2ihc.geometry import Region
from wsi2ihc.slide import open_slide

IMAGE = texture(500, 400)
WHOLE = Region(0, 0, 500, 400)

KINDS: dict[str, dict[str, object]] = {
    "jpeg": {},
    "jpeg2000": {"style": "aperio", "compression": "jpeg2000"},
    "deflate": {"compression": "deflate"},
    "none": {"compression": "none"},
    "subifds": {"subifds": True, "bigtiff": True},
    "strips": {"tile": None, "compression": "deflate"},
}

Change = Callable[[np.ndarray], None]


def written(path: Path, kind: str) -> Path:
    return write_slide(path, IMAGE, **{"tile": 128, **KINDS[kind]})


def change_table(path: Path, what: str, change: Change) -> None:
    """Change the offsets or byte counts of the first page in place."""
    with tifffile.TiffFile(path) as tiff:
        tags = tiff.pages.first.tags
        tag = tags.get(f"Tile{what}") or tags[f"Strip{what}"]
        size, start, count = {3: 2, 4: 4, 16: 8}[tag.dtype], tag.valueoffset, tag.count
    content = bytearray(path.read_bytes())
    table = np.frombuffer(content, f"<u{size}", count, start).copy()
    change(table)
    content[start : start + count * size] = table.tobytes()
    path.write_bytes(content)


def lose_tag(path: Path, what: str) -> None:
    """Give the tag a number that means nothing."""
    with tifffile.TiffFile(path) as tiff:
        tags = tiff.pages.first.tags
        at = (tags.get(f"Tile{what}") or tags[f"Strip{what}"]).offset
    content = bytearray(path.read_bytes())
    content[at : at + 2] = (65_000).to_bytes(2, "little")
    path.write_bytes(content)


def zero(table: np.ndarray) -> None:
    table[:] = 0


def make_equal(table: np.ndarray) -> None:
    table[:] = table[1]


def point_beyond_the_end(table: np.ndarray) -> None:
    table[-1] = 2**15 if table.itemsize == 2 else 2**31


def point_into_the_next(table: np.ndarray) -> None:
    table[1] += 40


def point_to_the_next(table: np.ndarray) -> None:
    table[1] = table[2]


@pytest.mark.parametrize("address", [False, True], ids=["path", "address"])
@pytest.mark.parametrize("kind", KINDS)
class TestDamage:
    def refusal(self, path: Path, address: bool) -> str:
        with pytest.raises(UnreadableSlideError) as caught, open_slide(f"file://{path}" if address else path) as slide:
            slide.read_level(0, WHOLE)
        text = str(caught.value)
        assert text.startswith("a.tif: ")
        assert "\n" not in text
        assert "copy" in text
        return text

    @pytest.mark.parametrize("what", ["Offsets", "ByteCounts"])
    def test_a_lost_table_is_refused(self, tmp_path: Path, kind: str, address: bool, what: str) -> None:
        path = written(tmp_path / "a.tif", kind)
        lose_tag(path, what)
        assert "samples" not in self.refusal(path, address)

    @pytest.mark.parametrize("what", ["Offsets", "ByteCounts"])
    def test_a_table_of_zeros_is_refused(self, tmp_path: Path, kind: str, address: bool, what: str) -> None:
        path = written(tmp_path / "a.tif", kind)
        change_table(path, what, zero)
        self.refusal(path, address)

    @pytest.mark.parametrize("change", [make_equal, point_beyond_the_end, point_into_the_next, point_to_the_next])
    def test_places_that_cannot_be_right_are_refused(
        self, tmp_path: Path, kind: str, address: bool, change: Change
    ) -> None:
        path = written(tmp_path / "a.tif", kind)
        change_table(path, "Offsets", change)
        self.refusal(path, address)


def test_a_wrong_place_costs_no_other_tile(tmp_path: Path) -> None:
    path = write_slide(tmp_path / "a.tif", halves(IMAGE, 2), tile=128)
    with open_slide(path) as slide:
        expected = slide.read_level(0, WHOLE)
    change_table(path, "Offsets", point_beyond_the_end)
    with open_slide(path) as slide:
        assert any("Damaged tiles: 1 of 16" in problem for problem in slide.info.problems)
        np.testing.assert_array_equal(slide.read_level(0, Region(0, 0, 500, 384)), expected[:384])


def test_tiles_of_zero_bytes_are_missing_and_counted(tmp_path: Path) -> None:
    path = written(tmp_path / "a.tif", "jpeg")

    def remove(table: np.ndarray) -> None:
        table[5] = 0

    for what in ("Offsets", "ByteCounts"):
        change_table(path, what, remove)
    for address in (path, f"file://{path}"):
        with open_slide(address) as slide:
            assert any("Missing tiles: 1 of 16" in problem for problem in slide.info.problems)
            assert (slide.read_level(0, Region(128, 128, 128, 128)) == 255).all()


@pytest.mark.parametrize("compression", ["jpeg", "deflate"])
def test_one_tile_of_background_may_stand_for_several_places(tmp_path: Path, compression: str) -> None:
    image = np.full((512, 512, 3), 240, np.uint8)
    image[:128, :128] = texture(128, 128)
    path = write_slide(tmp_path / "a.tif", image, tile=128, compression=compression)

    def share(table: np.ndarray) -> None:
        table[1:] = table[1]

    for what in ("Offsets", "ByteCounts"):
        change_table(path, what, share)
    for address in (path, f"file://{path}"):
        with open_slide(address) as slide:
            assert slide.info.problems[:1] != ()
            assert not any("tiles" in problem for problem in slide.info.problems)
            assert np.abs(slide.read_level(0, Region(200, 200, 300, 300)).astype(int) - 240).max() <= 1


def test_a_reader_that_takes_over_has_to_read_tiles_all_over_the_slide(tmp_path: Path) -> None:
    """OpenSlide refuses the file for one tile; a reader that takes over must verify the other tiles."""
    path = written(tmp_path / "a.tif", "jpeg")
    change_table(path, "Offsets", point_beyond_the_end)
    with pytest.raises(UnreadableSlideError, match="OpenSlide cannot read it"):
        open_slide(path)
    with open_slide(f"file://{path}") as slide:  # no reader refused it
        assert slide.read_level(0, Region(0, 0, 128, 128)).std() > 5
