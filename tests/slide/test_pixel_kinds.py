"""What counts as RGB, locally and through an address; what else is converted with a note, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import tifffile
from make_slides import texture
from PIL import Image as PillowImage

from wsi2ihc.errors import UnreadableSlideError
from wsi2ihc.geometry import Region
from wsi2ihc.slide import open_slide

RGB = texture(300, 200)
GRAY = RGB[..., 0]
TILED: dict[str, Any] = {"tile": (128, 128), "compression": "deflate", "metadata": None}


def addresses(path: Path) -> tuple[Path | str, ...]:
    fsspec.filesystem("memory").pipe(f"/{path.name}", path.read_bytes())
    return path, f"memory://{path.name}"


@pytest.mark.parametrize(
    ("image", "how", "reason"),
    [
        (RGB, {"photometric": "minisblack", "planarconfig": "contig"}, "gray levels"),
        (RGB, {"photometric": "miniswhite", "planarconfig": "contig"}, "gray levels"),
        (RGB.transpose(2, 0, 1), {"photometric": "minisblack", "planarconfig": "separate"}, "gray levels"),
        (GRAY, {"photometric": "minisblack"}, "1 sample of 8 bits"),
        (GRAY > 128, {"photometric": "minisblack"}, "1 sample of 1 bit,"),
        (np.dstack([GRAY, GRAY]), {"photometric": "minisblack", "planarconfig": "contig"}, "2 samples of 8 bits"),
        (np.dstack([RGB, GRAY]), {"photometric": "separated"}, "CMYK"),
        (RGB, {"photometric": "cielab"}, "L*a*b*"),
        (np.dstack([RGB, GRAY, GRAY]), {"photometric": "rgb", "extrasamples": [0, 0]}, "5 samples"),
        (RGB.astype(np.uint16), {"photometric": "rgb"}, "3 samples of 16 bits"),
        (RGB.astype(np.int8), {"photometric": "rgb"}, "signed integers"),
        (RGB.astype(np.float32), {"photometric": "rgb"}, "3 samples of 32 bits"),
    ],
)
@pytest.mark.parametrize("tiled", [True, False])
def test_pixels_that_are_not_rgb_are_refused(
    tmp_path: Path, image: np.ndarray, how: dict[str, Any], reason: str, tiled: bool
) -> None:
    layout = TILED if tiled else {**TILED, "tile": None, "rowsperstrip": 32}
    tifffile.imwrite(tmp_path / "a.tif", image, **layout, **how)
    for address in addresses(tmp_path / "a.tif"):
        with pytest.raises(UnreadableSlideError) as caught:
            open_slide(address)
        assert reason in str(caught.value)
        assert "not 8-bit RGB" in str(caught.value)


def test_a_palette_is_converted_and_said(tmp_path: Path) -> None:
    image = PillowImage.fromarray(RGB).quantize(256)
    colors = np.zeros(768, np.uint16)
    palette = image.getpalette() or []
    colors[: len(palette)] = palette
    tifffile.imwrite(
        tmp_path / "a.tif", np.asarray(image), photometric="palette", colormap=colors.reshape(256, 3).T * 257, **TILED
    )
    with open_slide(tmp_path / "a.tif") as slide:
        pixels = slide.read_level(0, Region(0, 0, 300, 200))
        np.testing.assert_array_equal(pixels, np.asarray(image.convert("RGB")))
        assert any("palette" in problem for problem in slide.info.problems)


@pytest.mark.parametrize("fourth", [np.zeros_like(GRAY), np.full_like(GRAY, 255), texture(300, 200, 9)[..., 0]])
def test_an_undeclared_fourth_sample_is_not_alpha(tmp_path: Path, fourth: np.ndarray) -> None:
    """Filler, infrared, or the unused byte of BGRX."""
    image = np.dstack([RGB, fourth])
    tifffile.imwrite(tmp_path / "a.tif", image, photometric="rgb", extrasamples=["unspecified"], **TILED)
    for address in addresses(tmp_path / "a.tif"):
        with open_slide(address) as slide:
            np.testing.assert_array_equal(slide.read_level(0, Region(0, 0, 300, 200)), RGB)
            assert any("fourth sample" in problem and "left out" in problem for problem in slide.info.problems)


def test_an_undeclared_fourth_sample_that_behaves_as_alpha(tmp_path: Path) -> None:
    image = np.dstack([RGB, np.full_like(GRAY, 255)])
    image[50:120, 40:200] = 0
    tifffile.imwrite(tmp_path / "a.tif", image, photometric="rgb", extrasamples=["unspecified"], **TILED)
    for address in addresses(tmp_path / "a.tif"):
        with open_slide(address) as slide:
            pixels = slide.read_level(0, Region(0, 0, 300, 200))
            assert (pixels[50:120, 40:200] == 255).all()
            np.testing.assert_array_equal(pixels[:50], RGB[:50])
            assert any("behaves as alpha" in problem for problem in slide.info.problems)


@pytest.mark.parametrize("kind", ["unassalpha", "assocalpha"])
def test_alpha_that_hides_everything_is_refused(tmp_path: Path, kind: str) -> None:
    image = np.dstack([RGB if kind == "unassalpha" else RGB * 0, np.zeros_like(GRAY)])
    tifffile.imwrite(tmp_path / "a.tif", image, photometric="rgb", extrasamples=[kind], **TILED)
    PillowImage.fromarray(np.dstack([RGB, np.zeros_like(GRAY)])).save(tmp_path / "a.png")
    for address in (*addresses(tmp_path / "a.tif"), tmp_path / "a.png"):
        with pytest.raises(UnreadableSlideError, match="alpha channel makes all of it transparent"):
            open_slide(address)


@pytest.mark.parametrize("mode", ["CMYK", "L"])
def test_plain_images_of_other_modes_are_refused(tmp_path: Path, mode: str) -> None:
    PillowImage.fromarray(RGB).convert(mode).save(tmp_path / "a.jpg")
    with pytest.raises(UnreadableSlideError, match="not 8-bit RGB"):
        open_slide(tmp_path / "a.jpg")


def test_the_first_of_several_frames_is_said(tmp_path: Path) -> None:
    frames = [PillowImage.fromarray(texture(64, 64, seed)) for seed in range(3)]
    frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:])
    with open_slide(tmp_path / "a.png") as slide:
        assert any("3 images; the first is used" in problem for problem in slide.info.problems)
