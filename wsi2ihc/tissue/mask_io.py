"""Read and write tissue masks as GeoJSON and PNG files.

GeoJSON holds outlines in level-0 px from the corner of the scanned area, as in QuPath; they are rasterized on the grid
of the mask. A PNG is stretched over the scanned area.
"""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import math
import struct
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ..atomic_files import write_atomically
from ..errors import MaskError, OutputError
from ..files import read_regular
from ..geometry import RGB, WHITE, BoolImage
from ..slide import Slide, SlideInfo
from ..text import printable
from .detection import LARGEST_OVERVIEW_PX, mask_grid, measure_background
from .mask import Annotation, TissueMask, pooled

Ring: TypeAlias = npt.NDArray[np.float64]
"""Vertices of one outline: (n, 2), x and y."""

Polygon: TypeAlias = list[Ring]
"""An outer outline and the outlines of its holes."""


@dataclass(frozen=True, slots=True)
class Area:
    """A polygon with the class and the name of its annotation ("" for none)."""

    polygon: Polygon
    classification: str = ""
    name: str = ""

    @property
    def is_ignored(self) -> bool:
        """Whether the annotation marks an area that is not tissue."""
        last = self.classification.rpartition(":")[2].strip()  # the last of derived classes ("Tumor: Ignore*") counts
        return last.endswith("*") and last.lower() != "region*"


TISSUE_COLOR = (200, 0, 100)
"""Color of the outlines in QuPath."""

LONGEST_NAME = 100
"""Number of characters of a class or a name that are kept."""

_FRACTION_BITS = 8
_FARTHEST_PX = 1 << 20
"""Limit of coordinates in mask px, to which vertices are clipped: fixed-point drawing has 32 bits."""


def parse_areas(text: str | bytes, name: str) -> list[Area]:
    """Parse all polygons of a GeoJSON text, including those of ignored classes; ``name`` is for error messages.

    Raises
    ------
    MaskError
        If it is not GeoJSON, a coordinate is not a finite number, or there is no polygon that is not ignored.
    """
    try:
        document = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise MaskError(f"{name}: not readable as JSON ({str(error)[:80]}); export the mask as GeoJSON") from None
    try:
        areas = list(_areas(document))
    except (_MalformedError, RecursionError) as error:
        raise MaskError(f"{name}: not valid GeoJSON: {error or 'nested too deeply'}") from None
    if not areas:
        raise MaskError(f"{name}: has no polygon; draw the tissue as areas, not as points or lines")
    if all(area.is_ignored for area in areas):
        classes = ", ".join(sorted({area.classification for area in areas}))
        raise MaskError(f"{name}: has only areas to ignore ({classes[:80]}); draw the tissue as well")
    return areas


def draw_areas(
    areas: list[Area], origin: tuple[float, float], pixel_size: tuple[float, float], shape: tuple[int, int]
) -> BoolImage:
    """Rasterize areas, and exclude the ignored ones. See `draw_polygons`.

    Px on the outline of an ignored area are not excluded.
    """
    mask = draw_polygons([area.polygon for area in areas if not area.is_ignored], origin, pixel_size, shape)
    ignored = [area.polygon for area in areas if area.is_ignored]
    return mask & ~draw_polygons(ignored, origin, pixel_size, shape, outlines=False) if ignored else mask


def draw_polygons(
    polygons: list[Polygon],
    origin: tuple[float, float],
    pixel_size: tuple[float, float],
    shape: tuple[int, int],
    *,
    outlines: bool = True,
) -> BoolImage:
    """Rasterize the union of polygons: px whose center lies inside, and px on an outline.

    Parameters
    ----------
    polygons
        Outlines in px of some frame. A point in an odd number of rings of a polygon is inside.
    origin, pixel_size
        Top left corner of the mask, and size of its px, in that frame, (x, y).
    shape
        (rows, columns) of the mask.
    outlines
        Whether px on an outline belong to the polygon.
    """
    mask = np.zeros(shape, np.uint8)
    for polygon in polygons:
        # OpenCV has the centers of px at integers.
        rings = [(ring - origin) / pixel_size - 0.5 for ring in polygon]
        rings = [np.clip(ring, -_FARTHEST_PX, _FARTHEST_PX) for ring in rings]
        low = np.maximum(np.floor(rings[0].min(axis=0)).astype(int) - 1, 0)
        high = np.minimum(np.ceil(rings[0].max(axis=0)).astype(int) + 2, (shape[1], shape[0]))
        if (low >= high).any():
            continue
        # Draw each polygon separately: the overlap of two would cancel out.
        part = np.zeros((high[1] - low[1], high[0] - low[0]), np.uint8)
        corners = [np.rint((ring - low) * (1 << _FRACTION_BITS)).astype(np.int32) for ring in rings]
        cv2.fillPoly(part, corners, 1, cv2.LINE_8, _FRACTION_BITS)
        if not outlines:
            cv2.polylines(part, corners, True, 0, 1, cv2.LINE_8, _FRACTION_BITS)
        mask[low[1] : high[1], low[0] : high[0]] |= part
    return mask > 0


def outlines(mask: BoolImage) -> list[Polygon]:
    """Return the connected pieces of a mask as polygons with holes, in mask px from its top left corner.

    Outlines lie a quarter of a px inside the edge of the piece, so they never cross or touch each other, and
    `draw_polygons` on the same grid restores the mask. Pieces that meet only in a corner are joined there.
    """
    doubled = _without_corner_contacts(mask).view(np.uint8).repeat(2, axis=0).repeat(2, axis=1)
    contours, hierarchy = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    rings = [(contour[:, 0].astype(np.float64) + 0.5) / 2 for contour in contours]
    parents = [] if hierarchy is None else [int(parent) for parent in hierarchy[0, :, 3]]
    pieces: dict[int, Polygon] = {index: [rings[index]] for index, parent in enumerate(parents) if parent < 0}
    for index, parent in enumerate(parents):
        if parent >= 0:
            pieces[parent].append(rings[index])
    return list(pieces.values())


def _to_geojson(mask: TissueMask) -> str:
    """Format a mask as a FeatureCollection of QuPath annotations of the class "Tissue", one for each piece."""
    corner = np.array(mask.origin) - mask.bounds_origin
    properties = {"objectType": "annotation", "classification": {"name": "Tissue", "color": list(TISSUE_COLOR)}}
    features = [
        {
            "type": "Feature",
            "geometry": {
                "type": "Polygon",
                "coordinates": [_closed(ring * mask.pixel_size + corner) for ring in polygon],
            },
            "properties": properties,
        }
        for polygon in outlines(mask.pixels)
    ]
    return json.dumps({"type": "FeatureCollection", "features": features}, separators=(",", ":"))


class _MalformedError(ValueError):
    """The JSON is not valid GeoJSON."""


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a finite number")


def _areas(item: Any, classification: str = "", name: str = "") -> Iterator[Area]:
    """Yield all areas in a JSON value, with the class and the name of their feature."""
    if isinstance(item, list):
        for part in item:
            yield from _areas(part, classification, name)
        return
    if not isinstance(item, dict):
        raise _MalformedError(f"expected an object, found {_shown(item)}")
    kind = item.get("type")
    if kind == "FeatureCollection":
        yield from _areas(_list_of(item, "features"))
    elif kind == "GeometryCollection":
        yield from _areas(_list_of(item, "geometries"), classification, name)
    elif kind == "Feature":
        properties = item["properties"] if isinstance(item.get("properties"), dict) else {}
        # a missing core of a tissue microarray is an empty area
        if item.get("geometry") is not None and properties.get("isMissing") is not True:
            yield from _areas(item["geometry"], *_class_and_name(properties))
    elif kind == "Polygon":
        yield Area(_polygon(_list_of(item, "coordinates")), classification, name)
    elif kind == "MultiPolygon":
        for polygon in _list_of(item, "coordinates"):
            yield Area(_polygon(polygon), classification, name)
    elif kind not in ("Point", "MultiPoint", "LineString", "MultiLineString"):
        raise _MalformedError(f"unknown type {_shown(kind)}")


def _class_and_name(properties: dict[str, Any]) -> tuple[str, str]:
    """Return class and name of a feature. QuPath stored the class as an object with name or names, and as a text."""
    given = properties.get("classification")
    if isinstance(given, dict):
        given = given.get("name") or given.get("names")
    if isinstance(given, list):
        given = ": ".join(one for one in given if isinstance(one, str))
    texts = (given, properties.get("name"))
    kind, name = (printable(text[:LONGEST_NAME]) if isinstance(text, str) else "" for text in texts)
    return kind, name


def _list_of(item: dict[str, Any], key: str) -> list[Any]:
    value = item.get(key)
    if not isinstance(value, list):
        raise _MalformedError(f"{_shown(item.get('type'))} without a list of {key}")
    return value


def _polygon(rings: Any) -> Polygon:
    if not isinstance(rings, list) or not rings:
        raise _MalformedError("a polygon without outlines")
    return [_ring(ring) for ring in rings]


def _ring(corners: Any) -> Ring:
    if not isinstance(corners, list) or len(corners) < 3:
        raise _MalformedError("an outline of fewer than 3 vertices")
    return np.array([_vertex(corner) for corner in corners], np.float64)


def _vertex(corner: Any) -> tuple[float, float]:
    if not isinstance(corner, list) or len(corner) < 2:
        raise _MalformedError(f"{_shown(corner)} is not a vertex")
    for value in corner[:2]:
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e12:
            raise _MalformedError(f"{_shown(value)} is not a coordinate")
    return float(corner[0]), float(corner[1])


def _shown(value: Any) -> str:
    """Return a short form of any JSON value, on one line."""
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    if isinstance(value, int) and abs(value) > 1e18:
        return "a huge number"
    return repr(value[:32] if isinstance(value, str) else value)


def _closed(ring: Ring) -> list[list[float]]:
    corners = [[_short(x), _short(y)] for x, y in ring.tolist()]
    return [*corners, corners[0]]


def _short(value: float) -> float:
    rounded = round(value, 2)
    return int(rounded) if math.floor(rounded) == rounded else rounded


def _without_corner_contacts(mask: BoolImage) -> BoolImage:
    """Add px to a mask until no two px meet only in a corner."""
    joined = mask.copy()
    while True:
        a, b, c, d = joined[:-1, :-1], joined[:-1, 1:], joined[1:, :-1], joined[1:, 1:]
        falling, rising = a & d & ~b & ~c, b & c & ~a & ~d
        if not (falling.any() or rising.any()):
            return joined
        joined[:-1, 1:] |= falling
        joined[:-1, :-1] |= rising


GEOJSON_SUFFIXES, PNG_SUFFIXES = (".geojson", ".json"), (".png",)

LARGEST_FILE_BYTES = 512 << 20

MOST_ANNOTATIONS = 1_000
"""Most classes and names that are kept: a file of cells may name each of a million cells."""

LARGEST_PNG_PX = 80_000_000
"""Most px of a PNG. A mask of the largest slides at 8 µm/px has 20 million px."""

SHAPE_TOLERANCE = 0.02
"""Largest relative difference between the aspect ratios of a PNG and the slide."""


def load_mask(path: str | Path, slide: Slide) -> TissueMask:
    """Read a mask for an open slide, and measure the background color of the slide.

    Parameters
    ----------
    path
        ``.geojson`` or ``.json``: outlines in level-0 px from the corner of the scanned area, as in QuPath. ``.png``:
        px that are neither black nor transparent are tissue; the image is stretched over the scanned area.

    Raises
    ------
    MaskError
        If the file cannot be read, is not a mask, or does not fit the slide.
    UnreadableSlideError
        If the slide is damaged.
    """
    mask = read_mask(path, slide.info)
    background, warnings = measure_background(slide)
    return dataclasses.replace(mask, background=background, warnings=(*mask.warnings, *warnings))


def read_mask(path: str | Path, info: SlideInfo, background: RGB = WHITE) -> TissueMask:
    """Read a mask for a slide with this metadata and background color; see `load_mask`."""
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in (*GEOJSON_SUFFIXES, *PNG_SUFFIXES):
        raise MaskError(f"{path.name}: unknown kind of mask {path.suffix!r}; give a .geojson or a .png")
    content = _content(path)
    if suffix in PNG_SUFFIXES:
        return _from_png(content, path.name, info, background)
    return _from_geojson(content, path.name, info, background)


def save_mask(mask: TissueMask, path: str | Path) -> None:
    """Write a mask as ``.geojson``, ``.json`` or ``.png``, which `load_mask` reads.

    A PNG is 8-bit with values 0 and 255, one px per mask px, and stores origin and px size of the mask in a text chunk
    "wsi2ihc". An existing file is replaced when the new one is complete.

    Raises
    ------
    OutputError
        If the suffix is unknown, or the file cannot be written.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix in PNG_SUFFIXES:
        content = _to_png(mask)
    elif suffix in GEOJSON_SUFFIXES:
        content = _to_geojson(mask).encode()
    else:
        raise OutputError(f"{path.name}: unknown kind of mask {path.suffix!r}; name it .geojson or .png")
    write_atomically(path, content)


def _content(path: Path) -> bytes:
    try:
        if path.stat().st_size > LARGEST_FILE_BYTES:
            raise MaskError(f"{path.name}: larger than {LARGEST_FILE_BYTES >> 20} MB; simplify the outlines")
        return read_regular(path, LARGEST_FILE_BYTES)
    except FileNotFoundError:
        raise MaskError(f"{path}: there is no such mask file; check the path") from None
    except OSError as error:
        raise MaskError(f"{path}: the mask cannot be read ({error.strerror}); check the path") from error


def _from_geojson(content: bytes, name: str, info: SlideInfo, background: RGB) -> TissueMask:
    areas = parse_areas(content, name)
    grid = mask_grid(info)
    bounds = info.bounds
    origin = (grid.level0_origin[0] - bounds.x, grid.level0_origin[1] - bounds.y)
    pixels = draw_areas(areas, origin, grid.downsample, (grid.size.height, grid.size.width))
    if not pixels.any():
        raise MaskError(
            f"{name}: no polygon lies on {info.name}; coordinates are level-0 pixels, 0 to {bounds.width} and 0 to "
            f"{bounds.height} from the corner of the scanned area"
        )
    # by class and name, in the order of their first appearance
    counts = Counter((area.classification, area.name, area.is_ignored) for area in areas)
    named = (Annotation(kind, name, count, ignored) for (kind, name, ignored), count in counts.items())
    annotations = tuple(itertools.islice(named, MOST_ANNOTATIONS))
    return TissueMask(
        pixels=pixels,
        origin=grid.level0_origin,
        pixel_size=grid.downsample,
        background=background,
        warnings=_ignored_warnings(annotations),
        bounds_origin=(bounds.x, bounds.y),
        annotations=annotations,
    )


def _ignored_warnings(annotations: tuple[Annotation, ...]) -> tuple[str, ...]:
    ignored = Counter[str]()
    for one in annotations:
        if one.is_ignored:
            ignored[one.classification] += one.areas
    return tuple(
        f"{count} area{' was' if count == 1 else 's were'} excluded from the mask (class {kind})"
        for kind, count in ignored.items()
    )


def _from_png(content: bytes, name: str, info: SlideInfo, background: RGB) -> TissueMask:
    pixels = _non_black(content, name)
    rows, columns = pixels.shape
    bounds = info.bounds
    wanted = columns * bounds.height / bounds.width
    # Small masks differ by rounding alone, up to a px along each axis.
    slack = max(SHAPE_TOLERANCE * wanted, 1 + bounds.height / bounds.width)
    if abs(rows - wanted) > slack:
        raise MaskError(
            f"{name}: {columns}×{rows} px does not have the shape of {info.name} ({bounds}); make the mask from the "
            "whole scanned area"
        )
    if not pixels.any():
        raise MaskError(f"{name}: the mask is black all over; paint the tissue white")
    step = math.ceil(math.sqrt(pixels.size / LARGEST_OVERVIEW_PX))
    pixel_size = (bounds.width * step / columns, bounds.height * step / rows)
    corner = (bounds.x, bounds.y)
    return TissueMask(pooled(pixels, step), corner, pixel_size, background, bounds_origin=corner)


def _non_black(content: bytes, name: str) -> BoolImage:
    if content[:8] != b"\x89PNG\r\n\x1a\n" or len(content) < 24:
        raise MaskError(f"{name}: not a PNG file; save the mask as PNG")
    # Check the size before decoding: a few kB can unpack to a terabyte.
    width, height = struct.unpack(">II", content[16:24])
    if not 0 < width * height <= LARGEST_PNG_PX:
        raise MaskError(f"{name}: a mask cannot have {width}×{height} px; {LARGEST_PNG_PX:,} px is the most")
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            pixels, mode = np.asarray(image), image.mode
    # Pillow raises any of these for damaged chunks, data and text.
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error) as error:
        raise MaskError(f"{name}: the PNG is damaged ({str(error)[:80]}); save the mask again") from error
    if pixels.ndim == 2:  # gray, bits, or indices into a palette, of which 0 is the background
        return np.asarray(pixels != 0, np.bool_)
    colors, visible = pixels, np.ones(pixels.shape[:2], np.bool_)
    if mode in ("LA", "RGBA"):
        colors, visible = pixels[..., :-1], pixels[..., -1] != 0
    if (colors[visible] != colors[visible][:, :1]).any():
        raise MaskError(f"{name}: a color image, not a mask; save tissue as white and the rest as black")
    return np.asarray(visible & (colors[..., 0] != 0), np.bool_)


def _to_png(mask: TissueMask) -> bytes:
    text = PngInfo()
    text.add_text("wsi2ihc", json.dumps({"origin_px": mask.origin, "pixel_size_px": mask.pixel_size}))
    buffer = io.BytesIO()
    Image.fromarray(mask.pixels.astype(np.uint8) * 255).save(buffer, "PNG", pnginfo=text, optimize=True)
    return buffer.getvalue()
