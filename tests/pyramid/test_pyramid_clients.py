"""The file in the programs that people open it with: levels, sizes, and the right colors.

Patches of pure red, green, blue, black and white are what catches a mistaken color space.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import ImageCms
from pyramid_synthetic import FILL, PATCHES, blank_out, expected_levels, patch_image, smooth_image, write

from wsi2ihc.geometry import Size
from wsi2ihc.pyramid import PyramidOptions, read_level, validate

VARIANTS = {
    "4:2:0": PyramidOptions(128, subsampling="420"),
    "4:2:2": PyramidOptions(128, subsampling="422"),
    "4:4:4": PyramidOptions(128, subsampling="444"),
    "deflate": PyramidOptions(128, compression="deflate"),
    "chained": PyramidOptions(128, openslide_compatible=True),
}
SIZES = [(768, 256), (384, 128), (192, 64), (96, 32)]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One pyramid of color patches for each variant; the lower half of the image is blank tiles."""
    folder = tmp_path_factory.mktemp("clients")
    image = np.concatenate([patch_image(128), patch_image(128)])
    occupied = np.array([[True] * 6, [False] * 6])
    for name, options in VARIANTS.items():
        report = write(folder / f"{name.replace(':', '')}.ome.tiff", image, options, occupied)
        validate(folder / f"{name.replace(':', '')}.ome.tiff", report.levels)
    return {name: folder / f"{name.replace(':', '')}.ome.tiff" for name in VARIANTS}


def check_patches(level: int, pixels: np.ndarray, tolerance: int) -> None:
    """Centers of the patches in the upper half of the image, and of the blank tiles in the lower one."""
    assert pixels.shape == (SIZES[level][1], SIZES[level][0], 3)
    side = 128 // 2**level
    for column, (name, color) in enumerate(PATCHES.items()):
        seen = pixels[side // 2, column * side + side // 2].astype(int)
        assert np.abs(seen - color).max() <= tolerance, f"{name} is seen as {seen} at level {level}"
        seen = pixels[side + side // 2, column * side + side // 2].astype(int)
        assert np.abs(seen - FILL).max() <= tolerance, f"blank is seen as {seen} at level {level}"


@pytest.fixture(params=list(VARIANTS))
def variant(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def tolerance(variant: str) -> int:
    """JPEG at quality 85 rounds flat colors by a few gray levels; deflate by none."""
    return 0 if variant == "deflate" else 4


def test_tifffile(files: dict[str, Path], variant: str, tolerance: int) -> None:
    for level in range(len(SIZES)):
        check_patches(level, read_level(files[variant], level), tolerance)


def test_openslide(files: dict[str, Path], variant: str, tolerance: int) -> None:
    openslide = pytest.importorskip("openslide")
    with openslide.OpenSlide(files[variant]) as slide:
        levels = SIZES if variant == "chained" else SIZES[:1]
        assert list(slide.level_dimensions) == levels
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.25, rel=1e-5)
        assert float(slide.properties["openslide.mpp-y"]) == pytest.approx(0.2501, rel=1e-5)
        for level, size in enumerate(levels):
            rgba = np.asarray(slide.read_region((0, 0), level, size))
            assert (rgba[..., 3] == 255).all()
            check_patches(level, rgba[..., :3], tolerance)


def test_tiffslide(files: dict[str, Path], variant: str, tolerance: int) -> None:
    tiffslide = pytest.importorskip("tiffslide")
    with tiffslide.TiffSlide(files[variant]) as slide:
        assert [tuple(size) for size in slide.level_dimensions] == SIZES
        assert slide.properties["tiffslide.mpp-x"] == pytest.approx(0.25, rel=1e-5)
        for level, size in enumerate(SIZES):
            check_patches(level, np.asarray(slide.read_region((0, 0), level, size))[..., :3], tolerance)


def test_libvips(files: dict[str, Path], variant: str, tolerance: int) -> None:
    pyvips = pytest.importorskip("pyvips")
    for level in range(len(SIZES)):
        image = pyvips.Image.new_from_file(str(files[variant]), **({"subifd": level - 1} if level else {}))
        check_patches(level, image.numpy(), tolerance)
    # a rational of 32 bits each holds 40,000 px/cm exactly; libvips counts px/mm
    assert pyvips.Image.new_from_file(str(files[variant])).xres == pytest.approx(4000, rel=1e-5)


def test_libvips_finds_the_icc_profile(tmp_path: Path) -> None:
    pyvips = pytest.importorskip("pyvips")
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    write(tmp_path / "a.ome.tiff", patch_image(), PyramidOptions(128), icc_profile=profile)
    for level in range(4):
        image = pyvips.Image.new_from_file(str(tmp_path / "a.ome.tiff"), **({"subifd": level - 1} if level else {}))
        assert image.get("icc-profile-data") == profile


@pytest.mark.skipif(shutil.which("tiffinfo") is None, reason="tiffinfo (libtiff-tools) is not installed")
def test_tiffinfo_has_nothing_to_complain_about(files: dict[str, Path], variant: str) -> None:
    told = subprocess.run(["tiffinfo", files[variant]], capture_output=True, text=True, check=True)
    assert told.stderr == ""
    assert told.stdout.count("TIFF Directory") + told.stdout.count("SubIFD Offsets") >= 2


@pytest.fixture(scope="module")
def flat_files(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, tuple[int, int, int]]:
    """One pyramid for each color and subsampling: Bio-Formats is asked for five pixels a level only."""
    folder = tmp_path_factory.mktemp("flat")
    colors = {}
    for subsampling in ("420", "422", "444"):
        for number, color in enumerate(PATCHES.values()):
            file = folder / f"{subsampling}-{number}.ome.tiff"
            image = np.broadcast_to(np.array(color, np.uint8), (300, 200, 3))
            write(file, image, PyramidOptions(128, subsampling=subsampling))
            colors[file] = color
    return colors


@pytest.fixture(scope="module")
def bioformats(dev_data: Path, files: dict[str, Path], flat_files: dict[Path, tuple]) -> dict[Path, dict]:
    """What Bio-Formats, the reader inside QuPath, OMERO and Fiji, says of all these files; one start of Java."""
    tool = dev_data.parent / "tools" / "bioformats-read"
    if shutil.which("java") is None or not tool.is_file():
        pytest.skip(f"needs java and {tool}")
    asked = [*files.values(), *flat_files]
    told = subprocess.run([tool, *asked], capture_output=True, text=True, timeout=120, check=False)
    if not told.stdout.strip():
        pytest.skip(f"Bio-Formats does not start: {told.stderr.strip().splitlines()[-1:]}")
    return dict(zip(asked, map(json.loads, told.stdout.splitlines()), strict=True))


def test_bioformats_sees_levels_and_metadata(bioformats: dict, files: dict[str, Path], variant: str) -> None:
    seen = bioformats[files[variant]]
    assert seen["reader"] == "OMETiffReader"
    assert (seen["series"], seen["rgb"], seen["channels"]) == (1, True, 1)
    assert [tuple(size) for size in seen["levels"]] == SIZES
    assert seen["physical_size_um"] == [0.25, 0.2501]
    assert seen["magnification"] == 40


def test_bioformats_sees_patches_and_blank_tiles(
    bioformats: dict[Path, dict], files: dict[str, Path], variant: str, tolerance: int
) -> None:
    image = np.concatenate([patch_image(), patch_image()])
    expected = expected_levels(blank_out(image, np.array([[True] * 6, [False] * 6]), 128), 128)
    compared = 0
    for level, x, y, *color in bioformats[files[variant]]["samples"]:
        around = expected[level][max(0, y - 4) : y + 5, max(0, x - 4) : x + 5].reshape(-1, 3)
        if (around == around[0]).all():  # JPEG rings where colors meet
            assert np.abs(np.array(color) - around[0]).max() <= tolerance, f"{around[0]} is seen as {color}"
            compared += 1
    assert compared >= 4 * 3


def test_bioformats_sees_every_color(bioformats: dict[Path, dict], flat_files: dict[Path, tuple]) -> None:
    for file, color in flat_files.items():
        samples = bioformats[file]["samples"]
        assert len(samples) == 5 * 3
        for _, _, _, *seen in samples:
            assert np.abs(np.array(seen) - color).max() <= 4, f"{file.name}: {color} is seen as {seen}"


def check_clients(*files: Path) -> subprocess.CompletedProcess[str]:
    """Without Bio-Formats, which takes seconds to start and has its own tests."""
    script = Path(__file__).parents[2] / ".ci" / "check-clients"
    environment = os.environ | {"WSI2IHC_BIOFORMATS_READ": "absent"}
    return subprocess.run(
        [sys.executable, script, *files], capture_output=True, text=True, timeout=120, check=False, env=environment
    )


def test_the_client_check_passes_a_good_file_and_fails_a_wrong_one(tmp_path: Path) -> None:
    write(tmp_path / "good.ome.tiff", smooth_image(Size(700, 600)), PyramidOptions(256))
    told = check_clients(tmp_path / "good.ome.tiff")
    assert told.returncode == 0, told.stdout + told.stderr
    assert "WRONG" not in told.stdout
    # a stream in YCbCr that is tagged as RGB, which several programs write
    shutil.copy(tmp_path / "good.ome.tiff", tmp_path / "wrong.ome.tiff")
    with tifffile.TiffFile(tmp_path / "wrong.ome.tiff", mode="r+b") as tiff:
        tiff.pages.first.tags["PhotometricInterpretation"].overwrite(2)
    told = check_clients(tmp_path / "wrong.ome.tiff")
    assert told.returncode == 1
    assert "OpenSlide    WRONG" in told.stdout
