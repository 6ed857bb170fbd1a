"""Read OME-XML and other XML of slides within limits: images, their resolution, and the pages of their planes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from xml.parsers import expat

from ..geometry import Size
from .metadata import UNITS_WITHOUT_LENGTH, Mpp, positive_number, unit_to_um

MAX_TEXT = 16 * 2**20  # maximum length of XML in characters; that of slides has some kB, of plates some MB
MAX_ELEMENTS = 100_000  # maximum number of elements; parsing them takes some tenths of a second

_MAX_NAME = 80


class XmlError(ValueError):
    """Text that is not well-formed XML, or exceeds a limit."""


@dataclass(slots=True)
class OmeTiffData:
    """One <TiffData> element: ``count`` planes (None: not stated) from page ``first`` of a file."""

    first: int | None
    count: int | None
    uuid: str = ""
    file_name: str = ""


@dataclass(slots=True)
class OmeImage:
    """One <Image> element."""

    name: str = ""
    size: Size | None = None  # width and height in px, or None
    mpp: Mpp | None = None  # µm per px along (x, y); None where not stated
    magnification: float | None = None  # nominal magnification of its own objective, or None
    problems: tuple[str, ...] = ()  # stated values that cannot be used, one sentence each
    planes: list[OmeTiffData] = field(default_factory=list)  # positions of its planes
    depth: int = 1  # number of focal planes (SizeZ)
    times: int = 1  # number of time points (SizeT)
    objective: str = ""  # ID of the objective to which it refers, or ""


@dataclass(frozen=True, slots=True)
class OmeXml:
    """The content of an OME-XML text."""

    uuid: str  # of the file, or ""
    companion: str  # name of the file that holds the metadata instead (<BinaryOnly>), or ""
    images: tuple[OmeImage, ...]  # in their order


def is_ome_xml(text: str) -> bool:
    """Whether a text looks like OME-XML."""
    head = text[:4000].lstrip("\ufeff \t\r\n")
    return head.startswith("<") and ("<OME" in head or ":OME" in head)


def parse_ome_xml(text: str) -> OmeXml:
    """Read OME-XML.

    Raises `XmlError` if it is not well-formed, has a document type definition, or is too long.
    """
    reader = _OmeReader()
    parse_xml(text, reader.start, reader.end, reader.text)
    return reader.result()


def parse_xml(
    text: str,
    start: Callable[[str, dict[str, str]], None],
    end: Callable[[str], None],
    characters: Callable[[str], None],
) -> None:
    """Call handlers for the elements of an XML text.

    Raises `XmlError` if it is not well-formed, has a document type definition, or is too long.
    """
    if len(text) > MAX_TEXT:
        raise XmlError(f"it has {len(text):,} characters, more than {MAX_TEXT:,}")
    elements = 0

    def counted(name: str, attributes: dict[str, str]) -> None:
        nonlocal elements
        elements += 1
        if elements > MAX_ELEMENTS:
            raise XmlError(f"it has more than {MAX_ELEMENTS:,} elements")
        start(name.rpartition(":")[2], attributes)

    def refused(*_: object) -> None:
        raise XmlError("it has a document type definition")

    parser = expat.ParserCreate("utf-8")
    parser.buffer_text = True  # otherwise, the handler is called for each line
    parser.StartElementHandler = counted
    parser.StartDoctypeDeclHandler = refused
    parser.EndElementHandler = lambda name: end(name.rpartition(":")[2])
    parser.CharacterDataHandler = characters
    try:
        parser.Parse(text.strip("\ufeff\0 \t\r\n").encode("utf-8", "replace"), True)
    except expat.ExpatError as error:
        raise XmlError(str(error)) from error


class _OmeReader:
    """Handlers that collect the images."""

    def __init__(self) -> None:
        self._uuid = ""
        self._companion = ""
        self._images: list[OmeImage] = []
        self._objectives: dict[str, float | None] = {}
        self._image: OmeImage | None = None
        self._in_uuid = False

    def start(self, name: str, attributes: dict[str, str]) -> None:
        if name == "OME":
            self._uuid = attributes.get("UUID", "")
        elif name == "BinaryOnly":
            self._companion = attributes.get("MetadataFile", "")
        elif name == "Objective":
            self._objectives[attributes.get("ID", "")] = positive_number(attributes.get("NominalMagnification"))
        elif name == "Image":
            self._image = OmeImage(name=attributes.get("Name", "")[:_MAX_NAME])
            self._images.append(self._image)
        elif self._image is not None:
            self._start_in_image(self._image, name, attributes)

    def _start_in_image(self, image: OmeImage, name: str, attributes: dict[str, str]) -> None:
        if name in ("ObjectiveSettings", "ObjectiveRef"):
            image.objective = attributes.get("ID", "")
        elif name == "Pixels":
            width, height = (_count(attributes.get(f"Size{axis}")) for axis in "XY")
            image.size = Size(width, height) if width and height else None
            image.depth = _count(attributes.get("SizeZ")) or 1
            image.times = _count(attributes.get("SizeT")) or 1
            image.mpp, image.problems = _pixel_size(attributes)
        elif name == "TiffData":
            count = attributes.get("PlaneCount", attributes.get("NumPlanes"))
            image.planes.append(OmeTiffData(_count(attributes.get("IFD")), _count(count)))
        elif name == "UUID" and image.planes:
            image.planes[-1].file_name = attributes.get("FileName", "")
            self._in_uuid = True

    def end(self, name: str) -> None:
        if name == "Image":
            self._image = None
        elif name == "UUID":
            self._in_uuid = False

    def text(self, text: str) -> None:
        # in pieces; a UUID has 45 characters, longer text is cut off
        if self._in_uuid and self._image is not None and len(self._image.planes[-1].uuid) < 100:
            self._image.planes[-1].uuid += text

    def result(self) -> OmeXml:
        for image in self._images:
            image.magnification = self._objectives.get(image.objective) if image.objective else None
        # Without a reference, the objective belongs to the image only if there is one of each.
        if len(self._images) == len(self._objectives) == 1 and not self._images[0].objective:
            (self._images[0].magnification,) = self._objectives.values()
        return OmeXml(self._uuid.strip(), self._companion, tuple(self._images))


def _pixel_size(attributes: dict[str, str]) -> tuple[Mpp | None, tuple[str, ...]]:
    sides: list[float] = []
    problems: list[str] = []
    for axis in "XY":
        stated = attributes.get(f"PhysicalSize{axis}")
        if stated is None:
            continue
        value, unit = positive_number(stated), attributes.get(f"PhysicalSize{axis}Unit", "µm")
        scale = unit_to_um(unit)
        if value is not None and scale is not None:
            sides.append(value * scale)
        elif value is None:
            problems.append("The OME-XML states a size of pixels that is not a number above zero.")
        elif unit.strip() not in UNITS_WITHOUT_LENGTH:
            problems.append(f"The OME-XML states the size of pixels in {unit[:20]!r}, which is not a known unit.")
        else:
            problems.append(f"The OME-XML states the size of pixels in {unit[:20]!r}, which is not a length.")
    # One of both sizes is not enough: the pixels need not be square.
    return (sides[0], sides[1]) if len(sides) == 2 else None, tuple(dict.fromkeys(problems))


def _count(value: str | None) -> int | None:
    try:
        number = int(value or "")
    except ValueError:
        return None
    return number if 0 <= number < 2**31 else None
