"""Create the OME-XML of the output, without ome-types, whose import takes 0.5 s (measured)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from xml.etree import ElementTree as ET

from ..geometry import Size

NAMESPACE = "http://www.openmicroscopy.org/Schemas/OME/2016-06"
SCHEMA_INSTANCE = "http://www.w3.org/2001/XMLSchema-instance"
PROVENANCE_NAMESPACE = "wsi2ihc/provenance"
COMPUTED = "Computed image (virtual stain), not a photograph of a stained slide. Research use only, not for diagnosis."

USUAL_MAGNIFICATIONS = (1.25, 2.5, 5.0, 10.0, 20.0, 40.0, 60.0, 80.0, 100.0)
UM_AT_MAGNIFICATION_1 = 10.0  # µm per px of a scan at 1×, by the convention of slide scanners: 20× is about 0.5 µm/px

_NOT_IN_XML = re.compile("[^\t\n\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 does not allow, even as a reference (production 2), and the carriage return."""


@dataclass(frozen=True, slots=True)
class ImageDescription:
    """Content of the OME-XML. No field may identify a patient."""

    name: str  # name of the image in viewers
    size: Size  # size of level 0 in px
    mpp: tuple[float, float]  # µm per px along (x, y)
    channel: str = "virtual IHC (computed)"  # meaning of the colors, which should say that they are computed
    description: str = ""  # free text after the notice
    # nominal magnification of the objective at this resolution. If None, it is estimated from ``mpp``, and the
    # provenance says so.
    magnification: float | None = None
    # position of the upper left corner on the source in µm, (x, y); None for a whole slide
    position_um: tuple[float, float] | None = None
    # source, model, options and versions, as names and values
    provenance: Mapping[str, str] = field(default_factory=dict)
    notice: str = COMPUTED  # states that the image is computed and not for diagnosis; precedes the description


def nominal_magnification(mpp: float) -> float:
    """Return the usual objective for this resolution: 10 / mpp, replaced by a standard objective within 25 % of it.

    >>> nominal_magnification(0.499), nominal_magnification(0.2527), nominal_magnification(7.0)
    (20.0, 40.0, 1.4)
    """
    exact = UM_AT_MAGNIFICATION_1 / mpp
    nearest = min(USUAL_MAGNIFICATIONS, key=lambda usual: max(usual, exact) / min(usual, exact))
    return nearest if 0.8 <= exact / nearest <= 1.25 else float(f"{exact:.2g}")


def ome_xml(image: ImageDescription) -> str:
    """Return the OME-XML of a pyramid of one RGB image as ASCII text that is valid by the schema.

    An unknown magnification is estimated and written as NominalMagnification, the only one that QuPath and TIAToolbox
    read: without it, QuPath shows downsampling factors instead of "20×". CalibratedMagnification, which would be more
    accurate, is read by neither. Characters that XML does not allow are removed.
    """
    root = ET.Element("OME", {
        "xmlns": NAMESPACE,
        "xmlns:xsi": SCHEMA_INSTANCE,
        "xsi:schemaLocation": f"{NAMESPACE} {NAMESPACE}/ome.xsd",
        "Creator": "wsi2ihc",
    })  # fmt: skip
    provenance = dict(image.provenance)
    magnification = image.magnification
    if magnification is None:
        magnification = nominal_magnification((image.mpp[0] * image.mpp[1]) ** 0.5)
        provenance["magnification"] = "estimated from the pixel size"
    instrument = ET.SubElement(root, "Instrument", ID="Instrument:0")
    ET.SubElement(instrument, "Objective", ID="Objective:0:0", NominalMagnification=_number(magnification))
    _add_image(root, image, has_annotation=bool(provenance))
    if provenance:
        _add_provenance(root, provenance)
    body: bytes = ET.tostring(root, encoding="us-ascii", xml_declaration=False)
    return '<?xml version="1.0" encoding="UTF-8"?>' + body.decode("ascii")


def _add_image(root: ET.Element, image: ImageDescription, has_annotation: bool) -> None:
    element = ET.SubElement(root, "Image", ID="Image:0", Name=_clean(image.name))
    ET.SubElement(element, "Description").text = _clean(f"{image.notice} {image.description}".strip())
    ET.SubElement(element, "InstrumentRef", ID="Instrument:0")
    ET.SubElement(element, "ObjectiveSettings", ID="Objective:0:0")
    pixels = ET.SubElement(element, "Pixels", {
        "ID": "Pixels:0",
        "DimensionOrder": "XYCZT",
        "Type": "uint8",
        "SignificantBits": "8",
        "Interleaved": "true",
        "SizeX": str(image.size.width),
        "SizeY": str(image.size.height),
        "SizeC": "3",
        "SizeZ": "1",
        "SizeT": "1",
        # the unit is left out: µm is the default
        "PhysicalSizeX": _number(image.mpp[0]),
        "PhysicalSizeY": _number(image.mpp[1]),
    })  # fmt: skip
    ET.SubElement(pixels, "Channel", ID="Channel:0:0", Name=_clean(image.channel), SamplesPerPixel="3")
    ET.SubElement(pixels, "TiffData", IFD="0", PlaneCount="1")
    if image.position_um is not None:
        x, y = (_number(um) for um in image.position_um)
        ET.SubElement(pixels, "Plane", {
            "TheZ": "0", "TheT": "0", "TheC": "0",
            "PositionX": x, "PositionXUnit": "µm", "PositionY": y, "PositionYUnit": "µm",
        })  # fmt: skip
    if has_annotation:
        ET.SubElement(element, "AnnotationRef", ID="Annotation:0")


def _add_provenance(root: ET.Element, provenance: Mapping[str, str]) -> None:
    annotations = ET.SubElement(root, "StructuredAnnotations")
    annotation = ET.SubElement(annotations, "MapAnnotation", ID="Annotation:0", Namespace=PROVENANCE_NAMESPACE)
    value = ET.SubElement(annotation, "Value")
    for key, text in provenance.items():
        ET.SubElement(value, "M", K=_clean(key)).text = _clean(text)


def _clean(text: str) -> str:
    return _NOT_IN_XML.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))


def _number(value: float) -> str:
    """Format a number with twelve digits, without trailing zeros; "0" also for minus zero."""
    return f"{value:.12g}" if value else "0"
