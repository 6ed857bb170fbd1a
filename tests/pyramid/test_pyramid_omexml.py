"""The OME-XML: valid by the schema, ASCII, complete, whatever the texts hold."""

from __future__ import annotations

import re
import warnings
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi2ihc.geometry import Size
from wsi2ihc.pyramid import ImageDescription, nominal_magnification, ome_xml
from wsi2ihc.pyramid.ome_xml import COMPUTED

OME = {"ome": "http://www.openmicroscopy.org/Schemas/OME/2016-06"}
IMAGE = ImageDescription(
    name="slide.ome.tiff",
    size=Size(100_000, 80_001),
    mpp=(0.2527, 0.2528),
    channel="virtual pan-CK (computed)",
    description="virtual pan-CK of slide.svs",
    magnification=40,
    position_um=(120.5, 0.0),
    provenance={"model": "demo", "µ & <b>": 'line 1\r\nline "2"'},
)
ANY_TEXT = st.text(st.characters(), max_size=30)


@pytest.fixture(scope="module")
def schema():
    ome_types = pytest.importorskip("ome_types")
    pytest.importorskip("lxml", reason="validation by schema needs it")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the validator's own libraries
        yield ome_types


def test_every_field_is_where_readers_look_for_it() -> None:
    root = ET.fromstring(ome_xml(IMAGE))
    image, pixels = root.find("ome:Image", OME), root.find("ome:Image/ome:Pixels", OME)
    objective = root.find("ome:Instrument/ome:Objective", OME)
    assert image.get("Name") == "slide.ome.tiff"
    assert image.find("ome:Description", OME).text == f"{COMPUTED} virtual pan-CK of slide.svs"
    assert image.find("ome:InstrumentRef", OME).get("ID") == root.find("ome:Instrument", OME).get("ID")
    assert image.find("ome:ObjectiveSettings", OME).get("ID") == objective.get("ID")
    assert float(objective.get("NominalMagnification")) == 40
    assert (pixels.get("SizeX"), pixels.get("SizeY"), pixels.get("SizeC")) == ("100000", "80001", "3")
    assert (float(pixels.get("PhysicalSizeX")), float(pixels.get("PhysicalSizeY"))) == (0.2527, 0.2528)
    channels = pixels.findall("ome:Channel", OME)
    assert [(c.get("Name"), c.get("SamplesPerPixel")) for c in channels] == [("virtual pan-CK (computed)", "3")]
    assert pixels.find("ome:TiffData", OME).attrib == {"IFD": "0", "PlaneCount": "1"}
    plane = pixels.find("ome:Plane", OME)
    assert (plane.get("PositionX"), plane.get("PositionXUnit")) == ("120.5", "µm")
    values = root.findall("ome:StructuredAnnotations/ome:MapAnnotation/ome:Value/ome:M", OME)
    assert {m.get("K"): m.text for m in values} == {"model": "demo", "µ & <b>": 'line 1\nline "2"'}
    assert image.find("ome:AnnotationRef", OME).get("ID") == root.find(".//ome:MapAnnotation", OME).get("ID")


@pytest.mark.parametrize(
    "image",
    [
        IMAGE,
        ImageDescription("", Size(1, 1), (0.5, 0.5)),
        ImageDescription("a", Size(1, 1), (1e-9, 1e7), provenance={"": ""}),
    ],
    ids=["everything", "little", "odd numbers"],
)
def test_documents_are_valid_by_the_schema(image: ImageDescription, schema) -> None:
    schema.validate_xml(ome_xml(image))


@settings(deadline=None)
@given(ANY_TEXT, ANY_TEXT, ANY_TEXT, st.dictionaries(ANY_TEXT, ANY_TEXT, max_size=4))
def test_any_text_survives_less_what_xml_cannot_hold(name: str, channel: str, text: str, provenance: dict) -> None:
    text = ome_xml(ImageDescription(name, Size(3, 4), (0.5, 0.5), channel, text, 20, None, provenance))
    assert text.isascii()
    assert "\x00" not in text
    root = ET.fromstring(text)

    def kept(some: str) -> str:
        lines = re.sub("\r\n?", "\n", some)
        return "".join(letter for letter in lines if letter in "\t\n" or (letter >= " " and is_in_xml(ord(letter))))

    assert root.find("ome:Image", OME).get("Name") == kept(name)
    assert root.find(".//ome:Channel", OME).get("Name") == kept(channel)
    assert COMPUTED in root.find(".//ome:Description", OME).text
    told = [(m.get("K"), m.text or "") for m in root.findall(".//ome:M", OME)]
    assert told == [(kept(key), kept(value)) for key, value in provenance.items()]


def is_in_xml(code: int) -> bool:
    return not 0xD800 <= code <= 0xDFFF and code not in (0xFFFE, 0xFFFF)


def test_an_unknown_magnification_is_estimated_and_said_to_be() -> None:
    root = ET.fromstring(ome_xml(ImageDescription("a", Size(5, 5), (0.499, 0.499))))
    assert root.find(".//ome:Objective", OME).get("NominalMagnification") == "20"
    told = {m.get("K"): m.text for m in root.findall(".//ome:M", OME)}
    assert told == {"magnification": "estimated from the pixel size"}


@pytest.mark.parametrize(
    ("mpp", "expected"),
    [(0.1, 100), (0.2204, 40), (0.2527, 40), (0.2738, 40), (0.499, 20), (0.55, 20), (1.0, 10), (2.0, 5), (28.97, 0.35)],
)
def test_magnification_from_pixel_size(mpp: float, expected: float) -> None:
    assert nominal_magnification(mpp) == expected
