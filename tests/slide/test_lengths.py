"""Resolutions in every unit that OME and ImageJ have, and whether to believe them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import tifffile
from make_slides import write_slide

from wsi2ihc.slide import SlideInfo, open_slide
from wsi2ihc.slide.metadata import unit_to_um
from wsi2ihc.slide.slide_xml import parse_ome_xml

IMAGE = np.full((256, 256, 3), 200, np.uint8)


def facts(path: Path) -> tuple[SlideInfo, SlideInfo]:
    """What a slide says of itself, from the disk and through an address."""
    fsspec.filesystem("memory").pipe("/facts.tif", path.read_bytes())
    with open_slide(path) as local, open_slide("memory://facts.tif") as remote:
        return local.info, remote.info


@pytest.mark.parametrize(
    ("unit", "um"),
    [
        ("µm", 1), ("&#181;m", 1), ("&#xB5;m", 1), ("\u03bcm", 1), ("um", 1), ("nm", 1e-3), ("mm", 1e3), ("cm", 1e4),
        ("dm", 1e5), ("m", 1e6), ("dam", 1e7), ("hm", 1e8), ("km", 1e9), ("Mm", 1e12), ("Gm", 1e15), ("Tm", 1e18),
        ("Pm", 1e21), ("Em", 1e24), ("Zm", 1e27), ("Ym", 1e30), ("pm", 1e-6), ("fm", 1e-9), ("am", 1e-12),
        ("zm", 1e-15), ("ym", 1e-18), ("Å", 1e-4), ("&#197;", 1e-4), ("\u212b", 1e-4), ("in", 25_400), ("ft", 304_800),
        ("thou", 25.4), ("li", 25_400 / 12), ("yd", 914_400), ("mi", 1.609344e9), ("pt", 25_400 / 72),
    ],
)  # fmt: skip
def test_units_of_ome(unit: str, um: float) -> None:
    sizes = " ".join(f'PhysicalSize{axis}="{0.5 / um!r}" PhysicalSize{axis}Unit="{unit}"' for axis in "XY")
    (image,) = parse_ome_xml(f"<OME><Image><Pixels {sizes}/></Image></OME>").images
    assert image.mpp == pytest.approx((0.5, 0.5))
    assert image.problems == ()


@pytest.mark.parametrize(
    ("unit", "problem"),
    [("pixel", "'pixel', which is not a length"), ("reference frame", "is not a length"), ("furlong", "not a known")],
)
def test_units_of_ome_without_a_size_are_said(tmp_path: Path, unit: str, problem: str) -> None:
    sizes = " ".join(f'PhysicalSize{axis}="0.5" PhysicalSize{axis}Unit="{unit}"' for axis in "XY")
    text = f'<OME><Image><Pixels SizeX="256" SizeY="256" {sizes}><TiffData IFD="0"/></Pixels></Image></OME>'
    tifffile.imwrite(
        tmp_path / "a.tif", IMAGE, description=text, tile=(128, 128), photometric="rgb", metadata=None,
        resolutionunit="NONE",
    )  # fmt: skip
    for info in facts(tmp_path / "a.tif"):
        assert info.mpp is None
        assert any(problem in one for one in info.problems)


@pytest.mark.parametrize(
    ("unit", "um"),
    [
        ("micron", 1), ("microns", 1), ("um", 1), ("\\u00B5m", 1), ("µm", 1), ("nm", 1e-3), ("mm", 1e3), ("cm", 1e4),
        ("inch", 25_400), ("m", 1e6), ("Micrometer", 1), ("pixel", None), ("", None), ("furlong", None),
    ],
)  # fmt: skip
def test_units_of_imagej(tmp_path: Path, unit: str, um: float | None) -> None:
    per_unit = (um or 1) / 0.5
    options: dict[str, Any] = {"resolution": (per_unit, per_unit), "resolutionunit": "NONE", "photometric": "rgb"}
    text = f"ImageJ=1.53t\nunit={unit}\nmin=0.0\n".encode()
    tifffile.imwrite(tmp_path / "a.tif", IMAGE, description=text, metadata=None, tile=(128, 128), **options)
    for info in facts(tmp_path / "a.tif"):
        if um is None:
            assert info.mpp is None
            assert any("'furlong'" in one for one in info.problems) == (unit == "furlong")
        else:
            assert info.mpp == pytest.approx((0.5, 0.5), rel=1e-4)


def test_words_and_spellings() -> None:
    assert unit_to_um("micrometer") == 1  # as OME-Zarr has it
    assert unit_to_um(" angstrom ") == 1e-4
    assert unit_to_um("Âµm") == 1
    assert unit_to_um("parsec of length") is None


@pytest.mark.parametrize("separator", [".", ","])
def test_a_decimal_comma(tmp_path: Path, separator: str) -> None:
    text = f"Aperio Image Library v11.2.1 \r\n256x256|AppMag = 20|MPP = 0{separator}4990"
    tifffile.imwrite(
        tmp_path / "a.svs", IMAGE, description=text, tile=(128, 128), photometric="rgb", metadata=None,
        resolutionunit="NONE",
    )  # fmt: skip
    for info in facts(tmp_path / "a.svs"):
        assert info.mpp == (0.499, 0.499)


@pytest.mark.parametrize("spacing", ['"0.00025" "0.0005"', "0,00025 0,0005"])
def test_the_resolution_of_philips_through_an_address(tmp_path: Path, spacing: str) -> None:
    text = (
        '<?xml version="1.0" encoding="UTF-8" ?><DataObject ObjectType="DPUfsImport">'
        '<Attribute Name="DICOM_MANUFACTURER" Group="0x0008" Element="0x0070" PMSVR="IString">PHILIPS</Attribute>'
        f'<Attribute Name="DICOM_PIXEL_SPACING" PMSVR="IDoubleArray">{spacing}</Attribute>'
        '<Attribute Name="DICOM_PIXEL_SPACING" PMSVR="IDoubleArray">&quot;0.002&quot; &quot;0.004&quot;</Attribute>'
        "</DataObject>"
    )
    tifffile.imwrite(
        tmp_path / "a.tif", IMAGE, description=text, tile=(128, 128), photometric="rgb", metadata=None,
        software="Philips DP v1.0", resolution=(72, 72), resolutionunit="INCH",
    )  # fmt: skip
    fsspec.filesystem("memory").pipe("/philips.tif", (tmp_path / "a.tif").read_bytes())
    with open_slide("memory://philips.tif") as slide:
        assert slide.info.vendor == "philips-tiff"
        assert slide.info.mpp == (0.5, 0.25)  # spacing is that of rows first


@pytest.mark.parametrize(("mpp", "magnification"), [(5.04, 40), (1.0, 40), (0.05, 40), (2.0, 20), (0.25, 1.25)])
def test_a_resolution_that_does_not_fit_the_objective_is_said(tmp_path: Path, mpp: float, magnification: float) -> None:
    path = write_slide(tmp_path / "a.svs", IMAGE, style="aperio", mpp=mpp, magnification=magnification)
    for info in facts(path):
        assert any("do not fit" in problem and "--mpp" in problem for problem in info.problems)
        assert info.mpp == (mpp, mpp)


@pytest.mark.parametrize(("mpp", "magnification"), [(0.25, 40), (0.11, 40), (0.5, 20), (0.23, 20), (1.0, 10), (4, 2)])
def test_usual_resolutions_are_not_remarked_on(tmp_path: Path, mpp: float, magnification: float) -> None:
    path = write_slide(tmp_path / "a.svs", IMAGE, style="aperio", mpp=float(mpp), magnification=magnification)
    for info in facts(path):
        assert info.problems == ()


def test_a_stated_resolution_is_compared_with_the_objective(tmp_path: Path) -> None:
    path = write_slide(tmp_path / "a.svs", IMAGE, style="aperio", mpp=5.0, magnification=20)
    with open_slide(path, mpp=0.5) as slide:
        assert not any("do not fit" in problem for problem in slide.info.problems)
    with open_slide(path, mpp=4.0, mpp_option="--ihc-mpp") as slide:
        assert any("do not fit" in problem and "--ihc-mpp" in problem for problem in slide.info.problems)
