"""Slide metadata: resolution and its sources (tags, OME-XML, Philips XML)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from xml.parsers import expat

from ..errors import MissingResolutionError, OptionError
from ..geometry import Size
from .protocol import SlideInfo

if TYPE_CHECKING:
    from tifffile import TiffPage

MPP_RANGE = (0.02, 50.0)
"""Plausible values in the metadata of a slide, µm/px.

Below 0.02, a pixel is a tenth of the resolution of light microscopy with the best objective (about 0.2 µm). Above 50,
no cell is visible; the largest values in whole-slide files are those of overview images, such as DICOM levels of
29 µm/px.
"""

TAG_MPP_RANGE = (0.02, 20.0)
"""Plausible values of TIFF resolution tags, which any program writes: 72 to 1200 dpi (353 to 21 µm/px) are default
values, the resolutions of screens, printers and flatbed scanners."""

_SQUARE_TOLERANCE = 0.01
"""Relative difference up to which pixels count as square; DICOM slides of 28.969 × 28.968 µm exist."""

_FOR_EXAMPLE = "(µm per pixel, about 0.25 at 40x and 0.5 at 20x)"

_MPP_TIMES_MAGNIFICATION = (2.5, 25.0)
"""Plausible products of µm/px and magnification. Scanners have 4.3 to 11 (0.11 to 0.27 µm/px at 40x); exports often
keep the magnification at half the resolution."""

Mpp = tuple[float, float]  # µm per pixel along (x, y)

_PREFIXES = {
    "Y": 24, "Z": 21, "E": 18, "P": 15, "T": 12, "G": 9, "M": 6, "k": 3, "h": 2, "da": 1, "": 0, "d": -1, "c": -2,
    "m": -3, "µ": -6, "n": -9, "p": -12, "f": -15, "a": -18, "z": -21, "y": -24,
}  # fmt: skip

_OTHERS_UM = {
    "Å": 1e-4, "thou": 25.4, "li": 25_400 / 12, "in": 25_400.0, "ft": 304_800.0, "yd": 914_400.0,
    "mi": 1_609_344_000.0, "ua": 149_597_870_700e6, "ly": 9_460_730_472_580_800e6, "pc": 3.085_677_581_491_367e22,
    "pt": 25_400 / 72,
}  # fmt: skip

UNITS_UM = {**{f"{prefix}m": 10.0 ** (power + 6) for prefix, power in _PREFIXES.items()}, **_OTHERS_UM}
"""Every unit of length that OME defines (UnitsLength), in µm, except those without a size."""

NO_LENGTH = frozenset({"pixel", "pixels", "reference frame", ""})  # units that do not state a length

_WORDS = {
    "micron": "µm", "microns": "µm", "micrometer": "µm", "micrometers": "µm", "micrometre": "µm",
    "micrometres": "µm", "um": "µm", "µ": "µm", "u": "µm", "nanometer": "nm", "nanometers": "nm", "nanometre": "nm",
    "millimeter": "mm", "millimeters": "mm", "millimetre": "mm", "centimeter": "cm", "centimeters": "cm",
    "centimetre": "cm", "meter": "m", "meters": "m", "metre": "m", "inch": "in", "inches": "in", "foot": "ft",
    "yard": "yd", "mile": "mi", "angstrom": "Å", "angstroms": "Å", "picometer": "pm", "picometers": "pm",
    "kilometer": "km", "decimeter": "dm",
}  # fmt: skip
"""Other spellings: ImageJ's, and the names that OME-Zarr uses (UDUNITS-2)."""


@dataclass(frozen=True, slots=True)
class Stated:
    """Resolution stated by a caller: µm per level-0 px along (x, y), or None; and the option that states it."""

    mpp: Mpp | None = None
    option: str = "--mpp"


@dataclass(frozen=True, slots=True)
class Resolution:
    """Resolution of a slide."""

    mpp: Mpp | None  # µm per level-0 px along (x, y), or None
    source: str  # "stated", "slide", "tiff tags" or ""
    problems: tuple[str, ...] = ()  # human-readable problems, one sentence each
    option: str = "--mpp"  # command-line option that states another resolution


def checked_mpp(mpp: float | Sequence[float] | None, option: str = "--mpp") -> Stated:
    """Check a resolution that a caller states, in µm/px, for both axes or along (x, y).

    Raises `OptionError` if it is not one or two numbers within `MPP_RANGE`.
    """
    if mpp is None:
        return Stated(None, option)
    pair: tuple[float, ...]
    try:
        pair = (float(mpp),) * 2 if isinstance(mpp, (int, float)) else tuple(float(value) for value in mpp)
    except (TypeError, ValueError):
        pair = ()
    low, high = MPP_RANGE
    # Not "value < low or …", because NaN has to fail too.
    if len(pair) != 2 or not all(low <= value <= high for value in pair):
        raise OptionError(f"{option} {mpp}: the slide's resolution must be between {low:g} and {high:g} µm per pixel")
    return Stated((pair[0], pair[1]), option)


def known_mpp(info: SlideInfo) -> Mpp:
    """Return the resolution of a slide, µm per level-0 px along (x, y).

    Raises `MissingResolutionError` if it is unknown.
    """
    if info.mpp is None:
        raise MissingResolutionError(
            f"{info.name}: the slide does not state its resolution; give it with {info.mpp_option} {_FOR_EXAMPLE}"
        )
    return info.mpp


def resolve(stated: Stated | None, own: Mpp | None, tags: Mpp | None, magnification: float | None = None) -> Resolution:
    """Choose among the stated resolution, the slide's metadata and its TIFF tags, in this order.

    A resolution that does not fit ``magnification``, that of the objective, is reported as a problem.
    """
    stated = stated or Stated()
    found = _believable(own, tags, stated.option)
    if stated.mpp is None:
        remarks = () if found.mpp is None else (*_not_square(found.mpp), *_implausible(found, magnification))
        return Resolution(found.mpp, found.source, (*found.problems, *remarks), stated.option)
    problems = list(_not_square(stated.mpp))
    if found.mpp is not None and max(abs(math.log(a / b)) for a, b in zip(stated.mpp, found.mpp, strict=True)) > 0.05:
        problems.append(
            f"The stated resolution of {_text(stated.mpp)} replaces {_text(found.mpp)}, which the file says."
        )
    chosen = Resolution(stated.mpp, "stated", (), stated.option)
    return dataclasses.replace(chosen, problems=(*problems, *_implausible(chosen, magnification)))


def _implausible(found: Resolution, magnification: float | None) -> tuple[str, ...]:
    low, high = _MPP_TIMES_MAGNIFICATION
    if found.mpp is None or magnification is None:
        return ()
    if all(low <= side * magnification <= high for side in found.mpp):
        return ()
    return (
        f"{_text(found.mpp)} and an objective of {magnification:g}x do not fit: {magnification:g}x gives about "
        f"{10 / magnification:.2g} µm/px. One of them is wrong; if it is the resolution, state it with {found.option}.",
    )


def _believable(own: Mpp | None, tags: Mpp | None, option: str) -> Resolution:
    state_it = f"state it with {option} {_FOR_EXAMPLE}"
    if own is not None:
        if all(MPP_RANGE[0] <= value <= MPP_RANGE[1] for value in own):
            return Resolution(own, "slide")
        return Resolution(None, "", (f"The slide says {_text(own)}, which no scanner means; {state_it}.",))
    if tags is not None:
        if all(TAG_MPP_RANGE[0] <= value <= TAG_MPP_RANGE[1] for value in tags):
            return Resolution(tags, "tiff tags")
        dpi = " × ".join(f"{25_400 / value:.4g}" for value in dict.fromkeys(tags))
        return Resolution(
            None, "", (f"The TIFF tags say {_text(tags)} ({dpi} dpi), which no scanner means; {state_it}.",)
        )
    return Resolution(None, "", (f"The slide does not say its resolution; {state_it}.",))


def _not_square(mpp: Mpp) -> tuple[str, ...]:
    if abs(mpp[0] / mpp[1] - 1.0) <= _SQUARE_TOLERANCE:
        return ()
    return (f"Its pixels are not square: {mpp[0]:.4g} × {mpp[1]:.4g} µm.",)


def _text(mpp: Mpp) -> str:
    return f"{mpp[0]:.4g} µm/px" if f"{mpp[0]:.4g}" == f"{mpp[1]:.4g}" else f"{mpp[0]:.4g} × {mpp[1]:.4g} µm/px"


def positive_number(value: Any) -> float | None:
    """Parse a metadata value (text, number, None); return None unless it is a finite number above 0.

    A comma counts as a decimal point, as some languages write it.
    """
    if isinstance(value, str) and value.count(",") == 1 and "." not in value:
        value = value.replace(",", ".")
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) and number > 0 else None


def unit_um(unit: str) -> float | None:
    """Return a unit in µm; None if it is not a length, or unknown."""
    text = unit.strip()
    # ImageJ's escapes, the Greek letter, and UTF-8 decoded as Latin-1
    for escape in ("\\u00B5", "\\u00b5", "\u03bc", "Âµ", "Î¼"):
        text = text.replace(escape, "µ")
    text = text.replace("\u212b", "Å").replace("A\u030a", "Å").replace("\\u00C5", "Å").replace("\\u00c5", "Å")
    return UNITS_UM.get(_WORDS.get(text.lower(), text))


_IMAGEJ_TEXT = 10_000  # characters at the start of a description that are searched for ImageJ's unit

_UNIT_UM = {2: 25_400.0, 3: 10_000.0, 4: 1_000.0, 5: 1.0}
"""ResolutionUnit to µm: inch and cm (TIFF 6.0), mm and µm (as tifffile and tiffslide read them)."""


def tag_mpp(page: TiffPage) -> Mpp | None:
    """Return µm per px by the resolution tags of a page, plausible or not; None if they do not state it."""
    unit_of_tag = _UNIT_UM.get(int(page.tags.valueof("ResolutionUnit", default=2)))
    unit = imagej_unit(page.description or "")
    # ImageJ itself prefers its own unit.
    scale = unit_of_tag if unit is None else unit_um(unit) or unit_of_tag
    x, y = page.tags.valueof("XResolution"), page.tags.valueof("YResolution")
    if scale is None or x is None or y is None:
        return None
    values = tuple(_rational(value) for value in (x, y))
    if not all(math.isfinite(value) and value > 0 for value in values):
        return None
    return scale / values[0], scale / values[1]


def unit_problems(page: TiffPage) -> tuple[str, ...]:
    """Describe a unit in ImageJ's description that is unknown."""
    unit = imagej_unit(page.description or "")
    if unit is None or unit in NO_LENGTH or unit_um(unit) is not None:
        return ()
    return (f"Its description states the size of pixels in {unit[:20]!r}, which is not a known unit.",)


def imagej_unit(description: str) -> str | None:
    """Return the unit of length in a description by ImageJ; None in any other description, or if missing."""
    return _imagej_metadata(description).get("unit")


def imagej_images(description: str) -> int:
    """Return the number of images in a description by ImageJ; 1 in any other description."""
    text = _imagej_metadata(description).get("images", "1")
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else 1


def _imagej_metadata(description: str) -> dict[str, str]:
    if not description.startswith("ImageJ="):
        return {}
    pairs = (line.partition("=") for line in description[:_IMAGEJ_TEXT].splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def tag_factors(levels: Sequence[TiffPage]) -> tuple[float | None, ...]:
    """Return the factors of the levels by their resolution tags; None if these are only copies of level 0's."""
    mpps = [tag_mpp(level) for level in levels]
    first = mpps[0]
    if first is None:
        return (None,) * len(levels)
    factors = (None if mpp is None else (mpp[0] / first[0] * mpp[1] / first[1]) ** 0.5 for mpp in mpps)
    return tuple(None if factor is None or factor < 1.05 else factor for factor in factors)


def _rational(value: Any) -> float:
    if isinstance(value, tuple):
        return value[0] / value[1] if value[1] else math.nan
    return float(value)


MAX_TEXT = 16 * 2**20  # longest OME-XML that is read, in characters. Slides have some kB, plates some MB.
MAX_ELEMENTS = 100_000  # most elements, which take some tenths of a second in Python

_MAX_NAME = 80


class XmlError(ValueError):
    """Text that is not well-formed XML, or exceeds a limit."""


@dataclass(slots=True)
class OmePlanes:
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
    planes: list[OmePlanes] = field(default_factory=list)  # positions of its planes
    depth: int = 1
    times: int = 1
    objective: str = ""


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
    parser.buffer_text = True  # else the handler is called for each line
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
            image.mpp, image.problems = _resolution(attributes)
        elif name == "TiffData":
            count = attributes.get("PlaneCount", attributes.get("NumPlanes"))
            image.planes.append(OmePlanes(_count(attributes.get("IFD")), _count(count)))
        elif name == "UUID" and image.planes:
            image.planes[-1].file_name = attributes.get("FileName", "")
            self._in_uuid = True

    def end(self, name: str) -> None:
        if name == "Image":
            self._image = None
        elif name == "UUID":
            self._in_uuid = False

    def text(self, text: str) -> None:
        if self._in_uuid and self._image is not None and len(self._image.planes[-1].uuid) < 100:
            self._image.planes[-1].uuid += text

    def result(self) -> OmeXml:
        only = len(self._images) == 1 and len(self._objectives) == 1
        for image in self._images:
            # Without a reference, the objective belongs to the image only if there is one of each.
            key = image.objective or (next(iter(self._objectives)) if only else "")
            image.magnification = self._objectives.get(key) if key or only else None
        return OmeXml(self._uuid.strip(), self._companion, tuple(self._images))


def _resolution(attributes: dict[str, str]) -> tuple[Mpp | None, tuple[str, ...]]:
    sides: list[float] = []
    problems: list[str] = []
    for axis in "XY":
        stated = attributes.get(f"PhysicalSize{axis}")
        if stated is None:
            continue
        value, unit = positive_number(stated), attributes.get(f"PhysicalSize{axis}Unit", "µm")
        scale = unit_um(unit)
        if value is not None and scale is not None:
            sides.append(value * scale)
        elif value is None:
            problems.append("Its OME-XML states a size of pixels that is not a number above zero.")
        elif unit.strip() not in NO_LENGTH:
            problems.append(f"Its OME-XML states the size of pixels in {unit[:20]!r}, which is not a known unit.")
        else:
            problems.append(f"Its OME-XML states the size of pixels in {unit[:20]!r}, which is not a length.")
    return (sides[0], sides[1]) if len(sides) == 2 else None, tuple(dict.fromkeys(problems))


def _count(value: str | None) -> int | None:
    try:
        number = int(value or "")
    except ValueError:
        return None
    return number if 0 <= number < 2**31 else None
