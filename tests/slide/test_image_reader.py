"""Plain images as slides."""

from __future__ import annotations

import contextlib
import struct
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from make_slides import texture
from PIL import Image, ImageOps

from wsi2ihc.errors import UnreadableSlideError
from wsi2ihc.geometry import Region, Size
from wsi2ihc.slide import open_slide, read_region, srgb_profile, working_grid
from wsi2ihc.slide.readers import image_reader as module
from wsi2ihc.tissue import detect_tissue

PIXELS = texture(500, 400)


def saved(path: Path, image: Image.Image | None = None, **how: object) -> Path:
    (Image.fromarray(PIXELS) if image is None else image).save(path, **how)
    return path


def refused(path: Path) -> str:
    with pytest.raises(UnreadableSlideError) as caught:
        open_slide(path)
    text = str(caught.value)
    assert path.name in text
    assert str(path.parent) not in text
    assert "\n" not in text
    return text


@pytest.mark.parametrize("kind", ["png", "bmp", "webp", "jpg"])
def test_pixels_and_facts(tmp_path: Path, kind: str) -> None:
    path = saved(tmp_path / f"a.{kind}", **({"lossless": True} if kind == "webp" else {}))
    with open_slide(path, mpp=3.5) as slide:
        info = slide.info
        assert (info.name, info.reader, info.vendor) == (f"a.{kind}", "pillow", "plain image")
        assert (info.size, info.mpp, info.mpp_source) == (Size(500, 400), (3.5, 3.5), "stated")
        assert info.bounds == Region(0, 0, 500, 400)
        assert info.quickhash.startswith("sha256:")
        with Image.open(path) as image:
            expected = np.asarray(image.convert("RGB"))
        np.testing.assert_array_equal(slide.read_level(0, Region(0, 0, 500, 400)), expected)
        part = slide.read_level(0, Region(-10, 390, 30, 20), (1, 2, 3))
        np.testing.assert_array_equal(part[:10, 10:], expected[390:, :20])
        assert (part[10:] == (1, 2, 3)).all()
        assert (part[:, :10] == (1, 2, 3)).all()


def test_the_name_does_not_matter(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.svs", format="PNG")
    with open_slide(path) as slide:
        assert slide.info.reader == "pillow"


def test_resolution_has_to_be_stated(tmp_path: Path) -> None:
    with open_slide(saved(tmp_path / "a.jpg", dpi=(72, 72))) as slide:
        assert (slide.info.mpp, slide.info.mpp_source) == (None, "")
        assert any("--mpp" in problem for problem in slide.info.problems)
    with open_slide(saved(tmp_path / "a.png", dpi=(50_800, 50_800))) as slide:  # 0.5 µm/px, which is never meant
        assert slide.info.mpp is None


def test_the_rest_of_the_program_reads_it(tmp_path: Path) -> None:
    with open_slide(saved(tmp_path / "a.png"), mpp=1) as slide:
        grid = working_grid(slide.info, 2.3)
        assert read_region(slide, grid, Region(-5, -5, 100, 100)).shape == (100, 100, 3)
        assert detect_tissue(slide).pixels.any()


def test_palettes_and_transparency(tmp_path: Path) -> None:
    palette = Image.fromarray(PIXELS).quantize(64)
    with open_slide(saved(tmp_path / "p.png", palette)) as slide:
        np.testing.assert_array_equal(slide.read_level(0, Region(0, 0, 500, 400)), np.asarray(palette.convert("RGB")))
        assert not any("alpha" in problem for problem in slide.info.problems)
    see_through = np.dstack([PIXELS, np.full((400, 500), 255, np.uint8)])
    see_through[100:200, :, 3] = 0
    with open_slide(saved(tmp_path / "a.png", Image.fromarray(see_through))) as slide:
        pixels = slide.read_level(0, Region(0, 0, 500, 400))
        np.testing.assert_array_equal(pixels[:100], PIXELS[:100])
        assert (pixels[100:200] == 255).all()
        assert any("alpha" in problem for problem in slide.info.problems)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_with_an_exif_orientation_is_upright(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path / "a.png", exif=exif)
    with Image.open(path) as image:
        upright = np.asarray(ImageOps.exif_transpose(image))
    height, width = upright.shape[:2]
    with open_slide(path) as slide:
        assert slide.info.size == slide.info.levels[0].size == Size(width, height)
        np.testing.assert_array_equal(slide.read_level(0, Region(0, 0, width, height)), upright)
        np.testing.assert_array_equal(slide.read_level(0, Region(30, 50, 200, 100)), upright[50:150, 30:230])
        assert any("orientation" in problem for problem in slide.info.problems) == (orientation != 1)


def test_profile(tmp_path: Path) -> None:
    with open_slide(saved(tmp_path / "a.png", icc_profile=srgb_profile())) as slide:
        assert slide.info.icc_profile == srgb_profile()
    with open_slide(saved(tmp_path / "b.jpg", icc_profile=b"none" * 50)) as slide:
        assert slide.info.icc_profile is None
        assert any("profile" in problem for problem in slide.info.problems)


@pytest.mark.parametrize("mode", ["L", "1", "LA", "I;16"])
def test_other_pixels(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(PIXELS[..., 0])
    image = Image.fromarray(PIXELS[..., 0].astype(np.uint16)) if mode == "I;16" else image.convert(mode)
    assert "not 8-bit RGB" in refused(saved(tmp_path / "a.png", image))


def test_gray_and_cmyk_jpeg(tmp_path: Path) -> None:
    assert "1 sample of 8 bits" in refused(saved(tmp_path / "a.jpg", Image.fromarray(PIXELS[..., 0])))
    assert "4 samples of 8 bits" in refused(saved(tmp_path / "b.jpg", Image.fromarray(PIXELS).convert("CMYK")))


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, bits: int = 8, data: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, bits, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def test_sixteen_bits_of_color(tmp_path: Path) -> None:
    """Pillow would reduce them to 8 without a word."""
    path = tmp_path / "a.png"
    path.write_bytes(png(2, 1, 16, zlib.compress(bytes(13))))
    assert "16 bits" in refused(path)


def test_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png(100_000, 100_000))
    assert "pyramidal TIFF" in refused(path)
    monkeypatch.setattr(module, "LARGEST_PX", 199_999)
    assert "500×400" in refused(saved(tmp_path / "b.jpg"))


@pytest.mark.parametrize("kind", ["rgb", "palette", "alpha"])
def test_strips_are_the_whole(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    image = Image.fromarray(PIXELS)
    if kind == "palette":
        image = image.quantize(64)
    if kind == "alpha":
        image.putalpha(Image.fromarray(np.arange(400 * 500, dtype=np.uint32).astype(np.uint8).reshape(400, 500)))
    path = saved(tmp_path / "a.png", image)
    with open_slide(path) as slide:
        at_once = slide.read_level(0, Region(0, 0, 500, 400))
    for strip_px in (1, 500 * 7):
        monkeypatch.setattr(module, "_STRIP_PX", strip_px)
        with open_slide(path) as slide:
            np.testing.assert_array_equal(slide.read_level(0, Region(0, 0, 500, 400)), at_once)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc for the peak memory")
def test_opening_takes_seven_bytes_a_px(tmp_path: Path) -> None:
    side = 4000
    path = saved(tmp_path / "a.jpg", Image.new("RGB", (side, side), (200, 150, 220)))
    code = (
        "import re, sys; from pathlib import Path; from wsi2ihc.slide.readers.image_reader import ImageReader\n"
        "def peak(): return int(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1]) * 1024\n"
        "before = peak(); slide = ImageReader(Path(sys.argv[1]), None); print(peak() - before)"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert int(ended.stdout) < 8 * side**2


def test_a_webp_larger_than_pillow_decodes_is_refused(tmp_path: Path) -> None:
    header = bytes.fromhex("5249 4646 f600 0000 5745 4250 5650 3820 ea00 0000 f006 009d 012a 28ff ffff")
    (tmp_path / "a.webp").write_bytes(header)
    with pytest.raises(UnreadableSlideError, match=r"a\.webp: the WebP image has more pixels than Pillow decodes"):
        open_slide(tmp_path / "a.webp")


def test_larger_than_pillow_allows_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with open_slide(path) as slide:
        np.testing.assert_array_equal(slide.read_level(0, Region(0, 0, 500, 400)), PIXELS)


@pytest.mark.parametrize("kind", ["png", "bmp", "webp", "jpg"])
def test_damage_is_reported(tmp_path: Path, kind: str) -> None:
    content = saved(tmp_path / f"a.{kind}").read_bytes()
    path = tmp_path / f"b.{kind}"
    rng = np.random.default_rng(0)
    for size in (20, 60, len(content) // 2, len(content) - 50):
        path.write_bytes(content[:size])
        refused(path)
    for _ in range(40):
        changed = bytearray(content)
        for at in rng.integers(0, min(len(content), 700), 3):
            changed[at] = rng.integers(256)
        path.write_bytes(changed)
        with contextlib.suppress(UnreadableSlideError):  # and nothing else
            open_slide(path).close()


def test_threads_and_closing(tmp_path: Path) -> None:
    slide = open_slide(saved(tmp_path / "a.png"))
    regions = [Region(x, y, 200, 100) for x in (-50, 0, 123, 400) for y in (-20, 7, 350)]
    alone = [slide.read_level(0, region) for region in regions]
    with ThreadPoolExecutor(8) as pool:
        for one, other in zip(alone, pool.map(lambda region: slide.read_level(0, region), regions), strict=True):
            np.testing.assert_array_equal(one, other)
    with pytest.raises(IndexError, match="levels 0 to 0"):
        slide.read_level(1, regions[0])
    slide.close()
    slide.close()
    with pytest.raises(ValueError, match="is closed"):
        slide.read_level(0, regions[0])
