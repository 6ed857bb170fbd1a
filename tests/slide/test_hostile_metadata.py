"""Texts and tables of a file are read in linear time, and within bounds."""

from __future__ import annotations

import time
from pathlib import Path

import fsspec
import numpy as np
import pytest
import tifffile

from wsi2ihc.errors import UnreadableSlideError
from wsi2ihc.slide import SlideInfo, open_slide
from wsi2ihc.slide.slide_xml import MAX_ELEMENTS, MAX_TEXT, XmlError, parse_ome_xml

LONGEST_S = 10.0
"""Each takes some tenths of a second; what this replaces took minutes, and machines that run tests are busy."""

IMAGE = np.full((256, 256, 3), 200, np.uint8)
OME = '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
MIB = 2**20


def opened(path: Path | str) -> SlideInfo | str:
    """The facts of a slide, or the message of its refusal."""
    begun = time.process_time()
    try:
        with open_slide(path) as slide:
            return slide.info
    except UnreadableSlideError as error:
        return str(error)
    finally:
        assert time.process_time() - begun < LONGEST_S


def write(path: Path, text: str) -> tuple[Path, str]:
    tifffile.imwrite(path, IMAGE, description=text, tile=(128, 128), photometric="rgb", metadata=None)
    fsspec.filesystem("memory").pipe("/hostile.tif", path.read_bytes())
    return path, "memory://hostile.tif"


@pytest.mark.parametrize(
    "text",
    [
        OME + "<Pixels " * (MIB // 2),
        OME + "<a/>" * (2 * MIB) + "</OME>",
        OME + "<a>" * (2 * MIB),
        OME + "<Image><Pixels><TiffData><UUID>" + "x\n" * (2 * MIB) + "</UUID></TiffData></Pixels></Image></OME>",
        OME + '<Image><Pixels SizeX="256" SizeY="256"><TiffData IFD="0"/></Pixels></Image>' * 20_000 + "</OME>",
        OME + '<Image><Pixels>' + '<TiffData IFD="0" PlaneCount="2147483647"/>' * 50_000 + "</Pixels></Image></OME>",
        OME + '<Image><Pixels SizeX="256" SizeY="256" SizeZ="2000000000" SizeT="2000000000"/></Image></OME>',
        OME + "<!-- " + "-" * (4 * MIB),
        "ImageJ=1.5\n" + "a=b\n" * MIB,
        "ImageJ=1.5\nunit=" + "x" * (4 * MIB),
        OME + " " * (20 * MIB) + "</OME>",
    ],
    ids=lambda text: text[len(OME) : len(OME) + 12].strip() if text.startswith(OME) else text[:12].strip(),
)  # fmt: skip
def test_long_descriptions_take_no_time(tmp_path: Path, text: str) -> None:
    for address in write(tmp_path / "a.tif", text):
        info = opened(address)
        assert isinstance(info, SlideInfo)
        assert info.mpp is None


@pytest.mark.parametrize("part", ["|", "|a = b"])
def test_a_long_description_of_aperio_is_refused(tmp_path: Path, part: str) -> None:
    text = "Aperio Image Library v11.2.1\r\n" + part * (2 * MIB // len(part))
    for address in write(tmp_path / "a.svs", text):
        assert "its description has 2,0" in str(opened(address))


def test_entities_are_refused() -> None:
    entities = "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10 if n else "a" * 10}">' for n in range(10))
    with pytest.raises(XmlError, match="document type definition"):
        parse_ome_xml(f'<?xml version="1.0"?><!DOCTYPE OME [{entities}]><OME>&a9;</OME>')
    with pytest.raises(XmlError, match="document type definition"):
        parse_ome_xml('<!DOCTYPE OME SYSTEM "file:///etc/passwd"><OME/>')


def test_xml_is_bounded() -> None:
    with pytest.raises(XmlError, match="elements"):
        parse_ome_xml("<OME>" + "<a/>" * (MAX_ELEMENTS + 1) + "</OME>")
    with pytest.raises(XmlError, match="characters"):
        parse_ome_xml("<OME>" + " " * MAX_TEXT + "</OME>")


@pytest.mark.parametrize("name", ["a.tif", "a.svs"])
def test_thousands_of_subifds_take_no_time(tmp_path: Path, name: str) -> None:
    text = "Aperio Image Library v11.2.1\r\n256x256|AppMag = 20|MPP = 0.5" if name == "a.svs" else None
    places = (8,) * 50_000
    tifffile.imwrite(
        tmp_path / name, IMAGE, description=text, tile=(128, 128), photometric="rgb", metadata=None,
        extratags=[(330, "I", len(places), places, True)],
    )  # fmt: skip
    fsspec.filesystem("memory").pipe(f"/{name}", (tmp_path / name).read_bytes())
    assert isinstance(opened(tmp_path / name), SlideInfo)
    found = opened(f"memory://{name}")
    assert isinstance(found, SlideInfo) or "more pages than any slide" in found


def test_thousands_of_pages_take_no_time(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
        tiff.write(IMAGE, tile=(128, 128), photometric="rgb", metadata=None)
        for _ in range(600):
            tiff.write(IMAGE[:16, :16], photometric="rgb", metadata=None)
    info = opened(tmp_path / "a.tif")
    assert isinstance(info, SlideInfo)
    assert any("512 pages or more" in problem for problem in info.problems)
