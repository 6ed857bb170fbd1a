"""What holds for every reader, on every kind of slide that both can read."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
from make_slides import direct_levels, halves, texture, write_slide

from wsi2ihc.geometry import Region
from wsi2ihc.slide import Slide, open_slide
from wsi2ihc.slide.readers.openslide_reader import OpenSlideReader
from wsi2ihc.slide.readers.tiffslide_reader import TiffSlideReader
from wsi2ihc.slide.tiff_metadata import read_tiff_metadata

Pixels = npt.NDArray[np.uint8]

PYRAMID = halves(texture(600, 456), 3)
MISSING = frozenset({(0, 1, 1), (0, 2, 3), (1, 0, 1)})

SLIDES: dict[str, dict[str, object]] = {
    "jpeg-420": {"tile": 128},
    "jpeg-422": {"subsampling": "422", "tile": 128},
    "jpeg-rgb": {"style": "aperio", "photometric": "rgb", "tile": 240, "quality": 95},
    "jpeg-2000": {"style": "aperio", "compression": "jpeg2000", "tile": 128},
    "jpeg-2000-ycbcr": {"style": "aperio", "compression": "jpeg2000-ycbcr", "tile": 128},
    "deflate": {"compression": "deflate", "bigtiff": True, "tile": 128},
    "lzw-predicted": {"compression": "lzw", "predictor": True, "tile": 128},
    "sparse": {"missing": MISSING, "tile": 128},
    "sparse-deflate": {"compression": "deflate", "missing": MISSING, "tile": 128},
}


def openslide_alone(path: Path) -> Slide:
    return OpenSlideReader(path, None, None)


def openslide_direct(path: Path) -> Slide:
    return OpenSlideReader(path, read_tiff_metadata(path), None)


def tiffslide_alone(path: Path) -> Slide:
    return TiffSlideReader(str(path), None)


def tiffslide_direct(path: Path) -> Slide:
    return TiffSlideReader(path, None)


READERS = (openslide_alone, openslide_direct, tiffslide_alone, tiffslide_direct)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("slides")
    return {name: write_slide(folder / f"{name}.tif", PYRAMID, **how) for name, how in SLIDES.items()}


@pytest.fixture(scope="module")
def expected(files: dict[str, Path]) -> dict[str, list[Pixels]]:
    """The levels as OpenSlide gives them, through its own interface; missing tiles magenta."""
    import openslide
    from PIL import Image

    whole = {}
    for name, path in files.items():
        with openslide.OpenSlide(path) as slide:
            levels = []
            for level, size in enumerate(slide.level_dimensions):
                base = Image.new("RGB", size, (255, 0, 255))
                image = slide.read_region((0, 0), level, size)
                base.paste(image, mask=image.getchannel("A"))
                levels.append(np.asarray(base))
            whole[name] = levels
    return whole


@pytest.fixture(params=READERS, ids=lambda reader: reader.__name__, scope="module")
def reader(request: pytest.FixtureRequest) -> Callable[[Path], Slide]:
    return request.param


@pytest.fixture(params=list(SLIDES), scope="module")
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def slide(reader: Callable[[Path], Slide], kind: str, files: dict[str, Path]) -> Iterator[Slide]:
    with reader(files[kind]) as slide:
        yield slide


class TestSlideContract:
    """Run over every reader and every kind of slide."""

    MAGENTA: ClassVar = (255, 0, 255)

    def test_levels_have_the_pixels_of_the_file(
        self, slide: Slide, kind: str, expected: dict[str, list[Pixels]]
    ) -> None:
        assert [str(level.size) for level in slide.info.levels] == ["600×456", "300×228", "150×114"]
        assert [level.downsample for level in slide.info.levels] == [1.0, 2.0, 4.0]
        for level, whole in enumerate(expected[kind]):
            region = Region(0, 0, whole.shape[1], whole.shape[0])
            np.testing.assert_array_equal(slide.read_level(level, region, self.MAGENTA), whole)

    def test_any_region_is_part_of_the_whole(self, slide: Slide, kind: str, expected: dict[str, list[Pixels]]) -> None:
        rng = np.random.default_rng(1)
        for level, whole in enumerate(expected[kind]):
            padded = np.full((whole.shape[0] + 400, whole.shape[1] + 400, 3), self.MAGENTA, np.uint8)
            padded[200:-200, 200:-200] = whole
            for _ in range(8):
                x, y = rng.integers(-200, 300, 2).tolist()
                width, height = rng.integers(0, 350, 2).tolist()
                width, height = min(width, whole.shape[1] + 200 - x), min(height, whole.shape[0] + 200 - y)
                if width < 0 or height < 0:
                    continue
                pixels = slide.read_level(level, Region(x, y, width, height), self.MAGENTA)
                np.testing.assert_array_equal(pixels, padded[200 + y : 200 + y + height, 200 + x : 200 + x + width])

    def test_result_is_an_array_of_ones_own(self, slide: Slide) -> None:
        first = slide.read_level(0, Region(10, 10, 50, 40))
        assert first.shape == (40, 50, 3)
        assert first.dtype == np.uint8
        assert first.flags.c_contiguous
        untouched = first.copy()
        first[:] = 7
        np.testing.assert_array_equal(slide.read_level(0, Region(10, 10, 50, 40)), untouched)

    def test_outside_is_fill(self, slide: Slide) -> None:
        for region in (Region(-300, -300, 60, 50), Region(5000, 10, 60, 50), Region(10, 10**7, 60, 50)):
            assert (slide.read_level(0, region, (1, 2, 3)) == (1, 2, 3)).all()
            assert (slide.read_level(0, region) == slide.info.background).all()

    def test_an_empty_region_has_no_pixels(self, slide: Slide) -> None:
        for region in (Region(5, 5, 0, 0), Region(5, 5, 0, 9), Region(-5, 5, 9, 0)):
            assert slide.read_level(0, region).shape == (region.height, region.width, 3)

    def test_threads_read_what_one_reads(self, slide: Slide) -> None:
        rng = np.random.default_rng(2)
        regions = [Region(*map(int, place), 300, 200) for place in rng.integers(-100, 400, (16, 2))]
        alone = [slide.read_level(0, region) for region in regions]
        with ThreadPoolExecutor(8) as pool:
            together = list(pool.map(lambda region: slide.read_level(0, region), regions * 2))
        for one, other in zip(alone * 2, together, strict=True):
            np.testing.assert_array_equal(one, other)

    def test_level_out_of_range(self, slide: Slide) -> None:
        for level in (-1, 3):
            with pytest.raises(IndexError, match="levels 0 to 2"):
                slide.read_level(level, Region(0, 0, 1, 1))

    def test_closing(self, reader: Callable[[Path], Slide], kind: str, files: dict[str, Path]) -> None:
        slide = reader(files[kind])
        slide.close()
        slide.close()
        with pytest.raises(ValueError, match="is closed"):
            slide.read_level(0, Region(0, 0, 1, 1))
        assert slide.info.size.width == 600

    def test_is_not_to_be_copied(self, slide: Slide) -> None:
        for way in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError, match="send its path"):
                way(slide)

    def test_facts(self, slide: Slide, kind: str, files: dict[str, Path]) -> None:
        info = slide.info
        assert info.name == f"{kind}.tif"
        assert Path(slide.path).name == info.name
        assert info.mpp == pytest.approx((0.5, 0.5), rel=1e-6)
        assert info.background == (255, 255, 255)
        assert info.icc_profile is None
        assert info.quickhash
        assert info.changed_at == int(files[kind].stat().st_mtime)
        assert info.quickhash.startswith("sha256:") == (info.reader == "tiffslide")
        aperio = SLIDES[kind].get("style") == "aperio"
        assert info.vendor == ("aperio" if aperio else "generic-tiff")
        assert info.magnification == (20.0 if aperio else None)
        assert info.mpp_source == ("slide" if aperio else "tiff tags")


@pytest.mark.parametrize("kind", SLIDES)
def test_fast_path_is_taken_where_it_can(kind: str, files: dict[str, Path]) -> None:
    for open_direct in (openslide_direct, tiffslide_direct, tiffslide_alone):
        with open_direct(files[kind]) as slide:
            assert direct_levels(slide) == {0, 1, 2}
    with openslide_alone(files[kind]) as slide:
        assert direct_levels(slide) == frozenset()


@pytest.mark.parametrize(
    ("style", "compression"),
    [
        *(("aperio", kind) for kind in ("jpeg", "jpeg2000", "jpeg2000-ycbcr", "lzw")),
        *(("generic", kind) for kind in ("deflate", "jpeg", "lzw", "none", "packbits", "zstd")),
    ],
)
def test_every_reader_gives_the_same_pixels(tmp_path: Path, style: str, compression: str) -> None:
    path = write_slide(tmp_path / "a.svs", PYRAMID[1], compression=compression, style=style, tile=128)
    region = Region(3, 5, 290, 220)
    with openslide_alone(path) as slide:
        expected = slide.read_level(0, region)
    for address in (path, f"file://{path}"):
        with open_slide(address) as slide:
            assert direct_levels(slide) == {0}
            np.testing.assert_array_equal(slide.read_level(0, region), expected)


@pytest.mark.parametrize("compression", ["jpeg2000-registered", "jpegxl", "webp"])
@pytest.mark.parametrize("address", [False, True], ids=["path", "address"])
def test_kinds_that_only_this_program_reads(tmp_path: Path, compression: str, address: bool) -> None:
    path = write_slide(tmp_path / "a.tif", PYRAMID, compression=compression, tile=128)
    with open_slide(f"file://{path}" if address else path) as slide:
        assert slide.info.reader == "tiffslide"
        for level, stored in enumerate(PYRAMID):
            pixels = slide.read_level(level, Region(0, 0, stored.shape[1], stored.shape[0]))
            expected = tifffile.imread(path, key=level) if compression.startswith("jpeg2000") else stored
            np.testing.assert_array_equal(pixels, expected)


@pytest.mark.parametrize("opened", READERS[2:], ids=lambda reader: reader.__name__)
def test_fill_of_missing_tiles_is_exact(opened: Callable[[Path], Slide], files: dict[str, Path]) -> None:
    for kind in ("sparse", "sparse-deflate"):
        with opened(files[kind]) as slide:
            pixels = slide.read_level(0, Region(0, 0, 600, 456), (9, 8, 7))
            holes = np.zeros((456, 600), bool)
            for level, row, column in MISSING:
                if level == 0:
                    holes[row * 128 : row * 128 + 128, column * 128 : column * 128 + 128] = True
            assert (pixels[holes] == (9, 8, 7)).all()
            assert (pixels[~holes] != (9, 8, 7)).any(axis=-1).mean() > 0.99
            assert slide.is_blank(0, Region(130, 130, 100, 100))
            assert not slide.is_blank(0, Region(120, 130, 100, 100))


class TestAlpha:
    """A file with an alpha channel: not to be black where it is transparent."""

    @pytest.fixture
    def path(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        image = np.dstack([texture(400, 300), np.full((300, 400), 255, np.uint8)])
        image[100:200, :, 3] = 0
        image[200:, :, 3] = 128
        return write_slide(tmp_path_factory.mktemp("alpha") / "alpha.tif", image, compression="deflate", tile=128)

    @pytest.fixture
    def see_through(self, reader: Callable[[Path], Slide], path: Path) -> Iterator[Slide]:
        with reader(path) as slide:
            yield slide

    def test_transparent_places_show_the_fill(self, see_through: Slide) -> None:
        source = texture(400, 300)
        pixels = see_through.read_level(0, Region(0, 0, 400, 300), (200, 10, 100))
        np.testing.assert_array_equal(pixels[:100], source[:100])
        assert (pixels[100:200] == (200, 10, 100)).all()
        mixed = (source[200:].astype(float) * 128 + np.array([200, 10, 100]) * 127) / 255
        # OpenSlide's pixels are premultiplied with 8 bits, which costs one gray level, and rounding another.
        assert np.abs(pixels[200:] - mixed).max() <= 1.5

    def test_it_is_remarked_on(self, path: Path) -> None:
        with open_slide(path) as slide:
            assert any("alpha" in problem for problem in slide.info.problems)


class TestOddDownsamples:
    """Levels whose downsample is not an integer."""

    WHOLE: ClassVar = Region(0, 0, 731, 268)

    @pytest.fixture(params=["deflate", "jpeg"])
    def odd(self, request: pytest.FixtureRequest, reader: Callable[[Path], Slide], tmp_path: Path) -> Iterator[Slide]:
        pyramid = [texture(1800, 660), texture(731, 268, seed=1)]  # about 2.46 times smaller
        how = {"compression": request.param, "photometric": "rgb", "quality": 100}
        path = write_slide(tmp_path / "odd.svs", pyramid, style="aperio", tile=128, **how)
        with reader(path) as slide:
            yield slide

    def test_regions_do_not_depend_on_how_they_are_cut(self, odd: Slide) -> None:
        assert odd.info.levels[1].downsample == pytest.approx(2.4625, abs=1e-3)
        whole = odd.read_level(1, self.WHOLE)
        rng = np.random.default_rng(3)
        for x, y, width, height in rng.integers(1, 130, (30, 4)).tolist():
            region = Region(x * 4, y, width, height)
            rows, columns = region.slices_in(self.WHOLE)
            np.testing.assert_array_equal(odd.read_level(1, region), whole[rows, columns])

    def test_only_openslide_interpolates_and_only_where_it_is_not_helped(self, odd: Slide) -> None:
        pixels = odd.read_level(1, self.WHOLE)[:, 512:]  # further left OpenSlide's lattice happens to be exact
        error = np.abs(pixels.astype(int) - texture(731, 268, seed=1)[:, 512:]).mean()
        if isinstance(odd, OpenSlideReader) and not direct_levels(odd):
            assert error > 0.6
        else:
            assert error < 0.3
