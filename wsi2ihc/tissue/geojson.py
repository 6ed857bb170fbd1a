"""Masks as GeoJSON outlines, in the dialect that QuPath reads and writes.

Coordinates are level-0 px from the top left corner of the slide's scanned area (its bounds), as QuPath counts them.
Accepted are a FeatureCollection, a Feature, a Geometry, a GeometryCollection, or a list of these (QuPath exports
lists); of the geometries, Polygon and MultiPolygon. As in QuPath, a class whose name ends in an asterisk (``Ignore*``)
marks what is not to be looked at, except ``Region*``, which outlines where to look. Missing cores of tissue microarrays
are passed over.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NoReturn, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

from ..arrays import BoolImage
from ..errors import MaskError
from ..text import printable

Ring: TypeAlias = npt.NDArray[np.float64]
"""Corners of one outline: (n, 2), x and y."""

Polygon: TypeAlias = list[Ring]
"""An outer outline and the outlines of its holes."""


@dataclass(frozen=True, slots=True)
class Area:
    """A polygon with the class and the name of its annotation; "" where it has none."""

    polygon: Polygon
    classification: str = ""
    name: str = ""

    @property
    def is_ignored(self) -> bool:
        """Whether the annotation says what is not tissue."""
        own = self.classification.rpartition(":")[2].strip()  # of derived classes ("Tumor: Ignore*") the last counts
        return own.endswith("*") and own.lower() != "region*"


TISSUE_COLOUR = (200, 0, 100)
"""How QuPath draws the outlines."""

LONGEST_NAME = 100
"""Characters of a class or a name that are kept."""

_FRACTION_BITS = 8
_FARTHEST_PX = 1 << 20
"""Corners farther out, in mask px, are moved here: fixed-point drawing has 32 bits."""


def parse_areas(text: str | bytes, name: str) -> list[Area]:
    """All polygons in a GeoJSON text, those of ignored classes included.

    Parameters
    ----------
    text
        The file's content.
    name
        The file's name, for errors.

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
        raise MaskError(f"{name}: holds no polygon; draw the tissue as areas, not as points or lines")
    if all(area.is_ignored for area in areas):
        classes = ", ".join(sorted({area.classification for area in areas}))
        raise MaskError(f"{name}: holds only areas to ignore ({classes[:80]}); draw the tissue as well")
    return areas


def draw_areas(
    areas: list[Area], origin: tuple[float, float], pixel_size: tuple[float, float], shape: tuple[int, int]
) -> BoolImage:
    """Rasterize areas: all that are not ignored, less those that are. See `draw_polygons`.

    Px that the outline of an ignored area passes through stay what they are.
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
    """Rasterize polygons: px whose center lies inside, and px that an outline passes through.

    Parameters
    ----------
    polygons
        Outlines in px of some frame. In each, what lies in an odd number of rings is inside; polygons add up.
    origin
        The mask's top left corner in that frame, as (x, y).
    pixel_size
        Size of a mask px in that frame, as (x, y).
    shape
        (rows, columns) of the mask.
    outlines
        Whether px that an outline passes through belong to the polygon.
    """
    mask = np.zeros(shape, np.uint8)
    for polygon in polygons:
        # Px are squares around whole numbers here.
        rings = [(ring - origin) / pixel_size - 0.5 for ring in polygon]
        rings = [np.clip(ring, -_FARTHEST_PX, _FARTHEST_PX) for ring in rings]
        low = np.maximum(np.floor(rings[0].min(axis=0)).astype(int) - 1, 0)
        high = np.minimum(np.ceil(rings[0].max(axis=0)).astype(int) + 2, (shape[1], shape[0]))
        if (low >= high).any():
            continue
        # Each polygon apart, since an overlap of two would cancel out.
        part = np.zeros((high[1] - low[1], high[0] - low[0]), np.uint8)
        corners = [np.rint((ring - low) * (1 << _FRACTION_BITS)).astype(np.int32) for ring in rings]
        cv2.fillPoly(part, corners, 1, cv2.LINE_8, _FRACTION_BITS)
        if not outlines:
            cv2.polylines(part, corners, True, 0, 1, cv2.LINE_8, _FRACTION_BITS)
        mask[low[1] : high[1], low[0] : high[0]] |= part
    return mask > 0


def outlines(mask: BoolImage) -> list[Polygon]:
    """The pieces of a mask as polygons with holes, in mask px from its top left corner.

    Outlines run a quarter of a px inside the edge of the piece, so that they never cross or touch each other, and
    `draw_polygons` on the same grid gives the mask back. Pieces that meet only in a corner are joined there.
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


def to_geojson(polygons: list[Polygon]) -> str:
    """A FeatureCollection of QuPath annotations of the class "Tissue", one per polygon."""
    properties = {
        "objectType": "annotation",
        "classification": {"name": "Tissue", "color": list(TISSUE_COLOUR)},
    }
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [_closed(ring) for ring in polygon]},
            "properties": properties,
        }
        for polygon in polygons
    ]
    return json.dumps({"type": "FeatureCollection", "features": features}, separators=(",", ":"))


class _MalformedError(ValueError):
    """What is wrong, in a few words."""


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number")


def _areas(item: Any, classification: str = "", name: str = "") -> Iterator[Area]:
    """All areas in a JSON value; they have the class and the name of the feature that they are in."""
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
        if item.get("geometry") is not None and not _is_missing(item):
            yield from _areas(item["geometry"], *_class_and_name(item))
    elif kind == "Polygon":
        yield Area(_polygon(_list_of(item, "coordinates")), classification, name)
    elif kind == "MultiPolygon":
        for polygon in _list_of(item, "coordinates"):
            yield Area(_polygon(polygon), classification, name)
    elif kind not in ("Point", "MultiPoint", "LineString", "MultiLineString"):
        raise _MalformedError(f"unknown type {_shown(kind)}")


def _is_missing(feature: dict[str, Any]) -> bool:
    """Whether a feature is a core of a tissue microarray that is not there."""
    properties = feature.get("properties")
    return isinstance(properties, dict) and properties.get("isMissing") is True


def _class_and_name(feature: dict[str, Any]) -> tuple[str, str]:
    """Class and name of a feature. QuPath has had the class as an object with a name or with names, and as a text."""
    properties = feature.get("properties")
    if not isinstance(properties, dict):
        return "", ""
    given = properties.get("classification")
    if isinstance(given, dict):
        given = given.get("name") or given.get("names")
    if isinstance(given, list):
        given = ": ".join(one for one in given if isinstance(one, str))
    name = properties.get("name")
    return _line(given), _line(name)


def _line(value: Any) -> str:
    """A text of a file on one line of bounded length; "" of anything else."""
    return printable(value[:LONGEST_NAME]) if isinstance(value, str) else ""


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
        raise _MalformedError("an outline of fewer than 3 corners")
    return np.array([_corner(corner) for corner in corners], np.float64)


def _corner(corner: Any) -> tuple[float, float]:
    if not isinstance(corner, list) or len(corner) < 2:
        raise _MalformedError(f"{_shown(corner)} is no corner")
    for value in corner[:2]:
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e12:
            raise _MalformedError(f"{_shown(value)} is no coordinate")
    return float(corner[0]), float(corner[1])


def _shown(value: Any) -> str:
    """A short form of any JSON value, on one line."""
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
    """The mask with px added until no two px meet in a corner alone."""
    joined = mask.copy()
    while True:
        a, b, c, d = joined[:-1, :-1], joined[:-1, 1:], joined[1:, :-1], joined[1:, 1:]
        falling, rising = a & d & ~b & ~c, b & c & ~a & ~d
        if not (falling.any() or rising.any()):
            return joined
        joined[:-1, 1:] |= falling
        joined[:-1, :-1] |= rising
