"""Which image of a file is the slide, and which facts belong to it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import tifffile
from make_slides import halves, texture

from wsi2ihc.errors import OptionError, UnreadableSlideError
from wsi2ihc.geometry import Region, Size
from wsi2ihc.slide import Slide, open_slide, srgb_profile

SLIDE = texture(800, 640)
MACRO = texture(150, 120, seed=1)
BASE: dict[str, Any] = {"photometric": "rgb", "compression": "deflate", "metadata": None}
TILED = {**BASE, "tile": (128, 128)}


@dataclasses.dataclass
class OmeImage:
    """One image of an OME-XML, as a test describes it."""

    size: tuple[int, int]
    mpp: float | None
    ifd: int
    objective: int | None = None
    name: str = ""
    planes: int = 1
    unit: str = "&#181;m"


def ome_xml(images: Sequence[OmeImage], magnifications: Sequence[float] = (1.25, 20.0), prefix: str = "") -> str:
    objectives = "".join(
        f'<{prefix}Objective ID="Objective:{number}" NominalMagnification="{value}"/>'
        for number, value in enumerate(magnifications)
    )
    text = f'<{prefix}Instrument ID="Instrument:0">{objectives}</{prefix}Instrument>' if objectives else ""
    for number, image in enumerate(images):
        width, height = image.size
        settings = "" if image.objective is None else f'<{prefix}ObjectiveSettings ID="Objective:{image.objective}"/>'
        physical = "".join(
            f'PhysicalSize{axis}="{image.mpp}" PhysicalSize{axis}Unit="{image.unit}" '
            for axis in "XY"
            if image.mpp is not None
        )
        planes = "".join(
            f'<{prefix}TiffData FirstZ="{z}" IFD="{image.ifd + z}" PlaneCount="1"/>' for z in range(image.planes)
        )
        text += (
            f'<{prefix}Image ID="Image:{number}" Name="{image.name}">{settings}<{prefix}Pixels ID="Pixels:{number}" '
            f'DimensionOrder="XYCZT" Type="uint8" SizeX="{width}" SizeY="{height}" SizeC="3" SizeZ="{image.planes}" '
            f'SizeT="1" {physical}><{prefix}Channel ID="Channel:{number}:0" SamplesPerPixel="3"/>{planes}'
            f"</{prefix}Pixels></{prefix}Image>"
        )
    space = f'xmlns{":" + prefix[:-1] if prefix else ""}="http://www.openmicroscopy.org/Schemas/OME/2016-06"'
    return f'<?xml version="1.0" encoding="UTF-8"?><{prefix}OME {space}>{text}</{prefix}OME>'


def pixels_of(slide: Slide) -> np.ndarray:
    size = slide.info.size
    return slide.read_level(0, Region(0, 0, size.width, size.height))


def refused(path: Path | str, kind: type[Exception] = UnreadableSlideError, **choice: int) -> str:
    with pytest.raises(kind) as caught:
        open_slide(path, **choice)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 400
    return text


def test_a_macro_before_the_slide_is_not_translated(tmp_path: Path) -> None:
    for macro in ({"rowsperstrip": 64}, {"tile": (64, 64)}):
        for subifds in (0, 2):
            for prefix in ("", "OME:"):
                path = tmp_path / "a.ome.tif"
                images = [OmeImage((150, 120), 16.0, 0, 0, "macro"), OmeImage((800, 640), 0.5, 1, 1, "slide")]
                with tifffile.TiffWriter(path, bigtiff=True) as tiff:
                    tiff.write(
                        MACRO, description=ome_xml(images, prefix=prefix), resolutionunit="NONE", **macro, **BASE
                    )
                    tiff.write(SLIDE, subifds=subifds, resolutionunit="NONE", **TILED)
                    for level in halves(SLIDE, 3)[1 : subifds + 1]:
                        tiff.write(level, subfiletype=1, resolutionunit="NONE", **TILED)
                fsspec.filesystem("memory").pipe("/macro.ome.tif", path.read_bytes())
                for address in (path, "memory://macro.ome.tif"):
                    with open_slide(address) as slide:
                        info = slide.info
                        np.testing.assert_array_equal(pixels_of(slide), SLIDE)
                        assert [level.downsample for level in info.levels] == [1, 2, 4][: subifds + 1]
                        assert (info.mpp, info.mpp_source, info.magnification) == ((0.5, 0.5), "slide", 20)
                        assert any("series 0: 150×120 px" in problem for problem in info.problems)
                        assert [(one.name, one.size, one.chosen) for one in info.images] == [
                            ("macro", Size(150, 120), False), ("slide", Size(800, 640), True)
                        ]  # fmt: skip


def test_every_fact_belongs_to_the_image_that_is_chosen(tmp_path: Path) -> None:
    images = [OmeImage((800, 640), 0.5, 0, 1, "first"), OmeImage((600, 600), 0.25, 1, 0, "second")]
    with tifffile.TiffWriter(tmp_path / "a.ome.tif") as tiff:
        tiff.write(SLIDE, description=ome_xml(images, (40, 20)), resolutionunit="NONE", **TILED)
        tiff.write(texture(600, 600, 3), resolutionunit="NONE", **TILED)
    refused(tmp_path / "a.ome.tif")
    hashes = set()
    for series, mpp, magnification, size in ((0, 0.5, 20, (800, 640)), (1, 0.25, 40, (600, 600))):
        with open_slide(tmp_path / "a.ome.tif", series=series) as slide:
            assert (slide.info.mpp, slide.info.magnification) == ((mpp, mpp), magnification)
            assert slide.info.size == Size(*size)
            hashes.add(slide.info.quickhash)
    assert len(hashes) == 2  # what is kept of one is not taken for the other's


def test_an_objective_that_no_image_refers_to_is_the_only_image_s(tmp_path: Path) -> None:
    for images, magnification in (
        ([OmeImage((800, 640), 0.5, 0)], 20),
        ([OmeImage((800, 640), 0.5, 0), OmeImage((150, 120), 16.0, 1)], None),
    ):
        with tifffile.TiffWriter(tmp_path / "a.ome.tif") as tiff:
            tiff.write(SLIDE, description=ome_xml(images, (20,)), resolutionunit="NONE", **TILED)
            tiff.write(MACRO, resolutionunit="NONE", **TILED)
        with open_slide(tmp_path / "a.ome.tif") as slide:
            assert slide.info.magnification == magnification


def test_sections_of_similar_size_are_not_guessed_among(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tif"
    other = texture(780, 600, seed=4)
    images = [OmeImage((800, 640), 0.5, 0), OmeImage((780, 600), 0.5, 1)]
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(SLIDE, description=ome_xml(images), resolutionunit="NONE", **TILED)
        tiff.write(other, resolutionunit="NONE", **TILED)
    text = refused(path)
    assert "series 0 of 800×640 px, series 1 of 780×600 px" in text
    assert "--series N" in text
    for series, expected in enumerate((SLIDE, other)):
        with open_slide(path, series=series) as slide:
            np.testing.assert_array_equal(pixels_of(slide), expected)
    assert "series 0 to 1" in refused(path, OptionError, series=2)
    assert "--series -1" in refused(path, OptionError, series=-1)


@pytest.mark.parametrize("ome", [True, False])
def test_planes_of_a_stack_are_not_guessed_among(tmp_path: Path, ome: bool) -> None:
    path = tmp_path / "a.tif"
    planes = [texture(400, 300, seed) for seed in range(4)]
    with tifffile.TiffWriter(path) as tiff:
        for number, plane in enumerate(planes):
            about = ome_xml([OmeImage((400, 300), 0.5, 0, planes=4)]) if ome and number == 0 else None
            tiff.write(plane, description=about, resolution=(20_000, 20_000), resolutionunit="CENTIMETER", **TILED)
    text = refused(path)
    assert "4 planes of 400×300 px" in text
    assert "pages 0 to 3; choose one with --page N" in text
    for page, plane in enumerate(planes):
        with open_slide(path, page=page) as slide:
            np.testing.assert_array_equal(pixels_of(slide), plane)
            assert slide.info.mpp == (0.5, 0.5)
            assert any("4 planes" in problem for problem in slide.info.problems)
    assert "pages 0 to 3" in refused(path, OptionError, page=7)
    assert "not a page of series 0" in refused(path, OptionError, series=0, page=9)


@pytest.mark.parametrize("order", [(2, 1, 0), (1, 2, 0), (0, 1, 2)])
@pytest.mark.parametrize("flags", [True, False])
def test_levels_in_any_order(tmp_path: Path, order: tuple[int, ...], flags: bool) -> None:
    path, pyramid = tmp_path / "a.tif", halves(SLIDE, 3)
    with tifffile.TiffWriter(path) as tiff:
        for number in order:
            resolution = 20_000 / 2**number
            tiff.write(
                pyramid[number],
                subfiletype=int(flags and number > 0),
                resolution=(resolution, resolution),
                resolutionunit="CENTIMETER",
                **TILED,
            )
    with open_slide(path) as slide:
        assert [level.downsample for level in slide.info.levels] == [1, 2, 4]
        assert slide.info.mpp == (0.5, 0.5)
        assert not any("other" in problem for problem in slide.info.problems)
        for level, image in enumerate(pyramid):
            height, width = image.shape[:2]
            np.testing.assert_array_equal(slide.read_level(level, Region(0, 0, width, height)), image)


def test_a_thumbnail_before_the_slide_does_not_state_its_resolution(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(MACRO, rowsperstrip=16, resolution=(72, 72), resolutionunit="INCH", **BASE)
        tiff.write(SLIDE, resolution=(20_000, 20_000), resolutionunit="CENTIMETER", **TILED)
    with open_slide(path) as slide:
        np.testing.assert_array_equal(pixels_of(slide), SLIDE)
        assert slide.info.mpp == (0.5, 0.5)


def test_a_macro_whose_sides_are_a_whole_fraction_is_not_a_level(tmp_path: Path) -> None:
    """Its resolution tags say something else than its size."""
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(SLIDE, resolution=(20_000, 20_000), resolutionunit="CENTIMETER", **TILED)
        tiff.write(texture(200, 160, 5), resolution=(500, 500), resolutionunit="CENTIMETER", **TILED)
    with open_slide(path) as slide:
        assert len(slide.info.levels) == 1
        assert any("series 1: 200×160 px" in problem for problem in slide.info.problems)


def test_a_large_macro_is_known_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tif"
    images = [OmeImage((800, 640), 16.0, 0, name="Macro image"), OmeImage((400, 400), 0.5, 1, name="20x_01")]
    scan = texture(400, 400, 6)
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(SLIDE, description=ome_xml(images), resolutionunit="NONE", **TILED)
        tiff.write(scan, resolutionunit="NONE", **TILED)
    with open_slide(path) as slide:
        np.testing.assert_array_equal(pixels_of(slide), scan)
        assert slide.info.mpp == (0.5, 0.5)
    # Without names, the larger may be the macro of the finer.
    path.write_bytes(path.read_bytes().replace(b"Macro image", b"Something e"))
    assert "--series N" in refused(path)


def test_an_rgb_macro_does_not_stand_for_a_slide_of_another_kind(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(MACRO, **TILED)
        tiff.write(SLIDE[..., 0], **{**TILED, "photometric": "minisblack"})
    text = refused(path)
    assert "800×640 px) have 1 sample of 8 bits, not 8-bit RGB" in text
    with open_slide(path, series=0) as slide:
        np.testing.assert_array_equal(pixels_of(slide), MACRO)


def test_a_mask_page_of_the_same_size_is_not_a_plane(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(SLIDE, **TILED)
        tiff.write(SLIDE, subfiletype=2, **TILED)
    assert "2 planes" in refused(path)
    with tifffile.TiffFile(path, mode="r+") as tiff:
        tiff.pages[1].tags[254].overwrite(4)
    with open_slide(path) as slide:
        np.testing.assert_array_equal(pixels_of(slide), SLIDE)


def test_metadata_in_a_companion_file(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tif"
    about = (
        '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:1">'
        '<BinaryOnly MetadataFile="a.companion.ome" UUID="urn:uuid:2"/></OME>'
    )
    tifffile.imwrite(path, SLIDE, description=about, resolutionunit="NONE", **TILED)
    with open_slide(path) as slide:
        assert slide.info.mpp is None
        assert any("companion file" in problem for problem in slide.info.problems)
    text = ome_xml([OmeImage((800, 640), 0.5, 0, 1)])
    text = text.replace('PlaneCount="1"/>', 'PlaneCount="1"><UUID FileName="a.ome.tif">urn:uuid:1</UUID></TiffData>')
    (tmp_path / "a.companion.ome").write_text(text)
    with open_slide(path) as slide:
        assert (slide.info.mpp, slide.info.magnification) == ((0.5, 0.5), 20)


def test_an_image_in_another_file_is_not_looked_for_in_this_one(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tif"
    text = ome_xml([OmeImage((800, 640), 4.0, 0), OmeImage((800, 640), 0.5, 0)])
    for name in ("b", "a"):
        text = text.replace(
            'PlaneCount="1"/>', f'PlaneCount="1"><UUID FileName="{name}.ome.tif">urn:{name}</UUID></TiffData>', 1
        )
    tifffile.imwrite(path, SLIDE, description=text, resolutionunit="NONE", **TILED)
    with open_slide(path) as slide:
        assert slide.info.mpp == (0.5, 0.5)


def test_a_stale_text_does_not_state_the_resolution(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tif"
    about = ome_xml([OmeImage((1600, 1280), 0.25, 0)])
    tifffile.imwrite(path, SLIDE, description=about, resolutionunit="NONE", **TILED)
    with open_slide(path) as slide:
        assert slide.info.mpp is None
        assert any("another size" in problem for problem in slide.info.problems)


def test_a_choice_where_there_is_none(tmp_path: Path) -> None:
    from make_slides import write_slide

    assert "--series 0" in refused(write_slide(tmp_path / "a.svs", SLIDE, style="aperio"), OptionError, series=0)
    tifffile.imwrite(tmp_path / "a.tif", SLIDE, **TILED)
    with open_slide(tmp_path / "a.tif", series=0, page=0) as slide:
        np.testing.assert_array_equal(pixels_of(slide), SLIDE)


def test_the_profile_is_that_of_the_slide(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    for profiles in ((srgb_profile(), None), (None, srgb_profile())):
        with tifffile.TiffWriter(path) as tiff:
            for image, profile in zip((MACRO, SLIDE), profiles, strict=True):
                tiff.write(image, iccprofile=profile, **TILED)
        with open_slide(path) as slide:
            assert slide.info.icc_profile == profiles[1]


def test_a_stack_of_imagej_with_one_page_is_not_guessed_among(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, SLIDE, description="ImageJ=1.53t\nimages=5\nslices=5\nunit=micron", **TILED)
    assert "says that it holds 5 images (an ImageJ stack)" in refused(path)
    with open_slide(path, page=0) as slide:
        np.testing.assert_array_equal(pixels_of(slide), SLIDE)


def test_levels_of_another_kind_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    pyramid = halves(SLIDE, 3)
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(SLIDE, subifds=2, **TILED)
        tiff.write(pyramid[1], subfiletype=1, **{**TILED, "photometric": "minisblack", "planarconfig": "contig"})
        tiff.write(pyramid[2], subfiletype=1, **TILED)
    with open_slide(path) as slide:
        assert [level.downsample for level in slide.info.levels] == [1, 4]


def test_a_slide_in_a_subifd_of_its_thumbnail_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "slide.tif"
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(MACRO, subifds=1, **TILED)
        tiff.write(SLIDE, **TILED)
    with pytest.raises(UnreadableSlideError, match="larger image of 800×640 px in a SubIFD"):
        open_slide(path)
    with open_slide(path, series=0) as slide:
        assert slide.info.size == Size(150, 120)
