"""Parse the metadata of an OME-Zarr: which arrays are the levels of an image, their axes and scales.

Versions 0.4 and 0.5 are supported. Features that a brightfield slide does not have (other axes, several planes,
channels other than red, green and blue) are refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..geometry import Size
from ..text import pluralize
from .pixel_kinds import PixelKind
from .resolution import Mpp, positive_number, unit_um

METADATA = ("zarr.json", ".zarray", ".zgroup", ".zattrs", ".zmetadata")
"""Names of the files that hold metadata, in both formats of Zarr."""

MAX_METADATA_BYTES = 16 * 2**20
"""Largest file of metadata."""

VERSIONS = ("0.4", "0.5")

_AXES = frozenset("tczyx")

_RGB_COLORS = ("FF0000", "00FF00", "0000FF")

MAX_LEVELS = 64


class NotAnImageError(ValueError):
    """Metadata that do not describe a supported image; the message follows the name of the file."""


@dataclass(frozen=True, slots=True)
class ZarrLevel:
    """One dataset of a multiscale image: its path in the group, and µm per px along (x, y) if known."""

    path: str
    mpp: Mpp | None


@dataclass(frozen=True, slots=True)
class Multiscale:
    """A multiscale image.

    axes:      names of the arrays' axes
    levels:    in the order of the metadata, which has the largest first
    channels:  kind of the channels: "rgb", "other" or "" (not stated)
    problems:  warnings, one sentence each
    """

    axes: tuple[str, ...]
    levels: tuple[ZarrLevel, ...]
    channels: str
    problems: tuple[str, ...]


def multiscale_of(attributes: Mapping[str, Any]) -> Multiscale | None:
    """Parse the image that the attributes of a group describe; None if they do not describe one.

    Raises
    ------
    NotAnImageError
        If they describe an unsupported image.
    """
    facts = attributes.get("ome", attributes)
    if not isinstance(facts, Mapping):
        raise NotAnImageError("its metadata are damaged")
    if "plate" in facts or "well" in facts:
        raise NotAnImageError("it is a plate of wells, not a slide; name one of its images")
    entries = facts.get("multiscales")
    if entries is None:
        return None
    if not isinstance(entries, list) or not entries or not isinstance(entries[0], Mapping):
        raise NotAnImageError("its metadata are damaged")
    entry = entries[0]
    version = str(facts.get("version") or entry.get("version") or "")
    if version and version not in VERSIONS:
        raise NotAnImageError(f"it is OME-Zarr {version:.10}; versions {' and '.join(VERSIONS)} are read")
    axes, units = _axes(entry.get("axes"))
    levels, problems = _levels(entry, axes, units)
    if len(entries) > 1:
        problems = (*problems, f"It has {len(entries)} multiscale images in one group; the first is used.")
    return Multiscale(axes, levels, _channels(facts.get("omero")), problems)


def _axes(stated: Any) -> tuple[tuple[str, ...], dict[str, str]]:
    """Parse the names of the axes, and their units if stated."""
    if not isinstance(stated, list) or not all(isinstance(axis, Mapping) for axis in stated):
        raise NotAnImageError(f"it does not describe its axes as OME-Zarr {VERSIONS[0]} does")
    names = tuple(str(axis.get("name")) for axis in stated)
    if not set(names) <= _AXES or len(set(names)) != len(names) or not {"c", "y", "x"} <= set(names):
        shown = ", ".join(names)[:60]
        raise NotAnImageError(f"its axes are {shown}; a slide has c, y and x, beside t and z of one plane")
    return names, {str(axis.get("name")): str(axis["unit"]) for axis in stated if axis.get("unit")}


def _levels(
    entry: Mapping[str, Any], axes: Sequence[str], units: Mapping[str, str]
) -> tuple[tuple[ZarrLevel, ...], tuple[str, ...]]:
    datasets = entry.get("datasets")
    if not isinstance(datasets, list) or not 0 < len(datasets) <= MAX_LEVELS:
        raise NotAnImageError("it does not name its levels")
    common = _scale(entry.get("coordinateTransformations"), len(axes))
    levels = []
    problems: list[str] = []
    scales_um = {name: unit_um(units[name]) if name in units else None for name in "xy"}
    for name, scale in scales_um.items():
        if scale is None:
            stated = f"in {units[name]!r:.30}, which is not a known unit" if name in units else "without a unit"
            problems.append(f"It states the size of pixels along {name} {stated}.")
    for dataset in datasets:
        path = dataset.get("path") if isinstance(dataset, Mapping) else None
        parts = path.split("/") if isinstance(path, str) else [""]
        if any(part in ("", ".", "..") or "\\" in part for part in parts):
            raise NotAnImageError("it names a level that lies outside of it")
        own = _scale(dataset.get("coordinateTransformations"), len(axes))
        sides = [
            None if scales_um[name] is None else own[at] * common[at] * (scales_um[name] or 0)
            for name in "xy"
            for at in (axes.index(name),)
        ]
        known = sides[0] is not None and sides[1] is not None and own[axes.index("x")] > 0
        levels.append(ZarrLevel(str(path), (sides[0], sides[1]) if known else None))  # type: ignore[arg-type]
    return tuple(levels), tuple(problems)


def _scale(transformations: Any, count: int) -> list[float]:
    """Return the scale in a list of transformations; ones if there is none."""
    for one in transformations if isinstance(transformations, list) else ():
        if isinstance(one, Mapping) and one.get("type") == "scale":
            values = one.get("scale")
            numbers = [positive_number(value) for value in values] if isinstance(values, list) else []
            if len(numbers) != count or None in numbers:
                raise NotAnImageError("its scale is not one positive number for each axis")
            return [number for number in numbers if number is not None]
    return [1.0] * count


def _channels(omero: Any) -> str:
    """Determine the kind of the channels from the rendering settings."""
    channels = omero.get("channels") if isinstance(omero, Mapping) else None
    if not isinstance(channels, list) or not channels:
        return ""
    stated = [one.get("color") if isinstance(one, Mapping) else None for one in channels]
    colors = tuple(str(color).lstrip("#").upper()[:6] for color in stated)
    return "rgb" if colors == _RGB_COLORS else "other"


def multiscale_kind(image: Multiscale, shape: Sequence[int], dtype: str) -> PixelKind:
    """Determine the kind of the pixels of level 0."""
    if len(shape) != len(image.axes):
        return PixelKind(0, 0, f"have {len(shape)} axes, while the metadata name {len(image.axes)}")
    sides = dict(zip(image.axes, shape, strict=True))
    samples = sides["c"]
    if dtype != "uint8":
        return PixelKind(samples, 0, f"are of the type {dtype:.20}")
    planes = sides.get("t", 1) * sides.get("z", 1)
    if planes != 1:
        return PixelKind(samples, 8, f"lie in {planes} planes (a focus stack or a time series)")
    if samples != 3:
        return PixelKind(samples, 8, f"have {pluralize(samples, 'channel')}")
    if image.channels == "other":
        return PixelKind(samples, 8, "have three channels that are not red, green and blue (omero, color)")
    unsaid = "It does not say what its three channels are; they are taken for red, green and blue."
    return PixelKind(samples, 8, note="" if image.channels else unsaid)


def size_in(axes: Sequence[str], shape: Sequence[int]) -> Size:
    """Return the size of an array in px."""
    return Size(int(shape[axes.index("x")]), int(shape[axes.index("y")]))
