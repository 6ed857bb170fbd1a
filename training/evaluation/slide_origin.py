"""The source of a virtual slide, and the grids on which it may have seams, by its translation report or OME-XML."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tifffile

from wsi2ihc.errors import DatasetError
from wsi2ihc.files import read_json
from wsi2ihc.geometry import Size
from wsi2ihc.pyramid.ome_xml import NAMESPACE
from wsi2ihc.registration.transform import SlideFrame
from wsi2ihc.registration.warped_slide import is_comparable
from wsi2ihc.slide import SlideInfo

TILE_PX = 512
"""Tile size that is assumed for a virtual slide without a report."""


@dataclass(frozen=True, slots=True)
class BorderGrid:
    """A grid at whose borders the virtual slide may have seams."""

    label: str  # what the grid divides the slide into
    spacing_px: tuple[int, int]
    origin_px: tuple[int, int] = (0, 0)
    overlap_px: int = 0  # width over which neighbors are blended


@dataclass(frozen=True, slots=True)
class Origin:
    """Source of a virtual slide, as far as it is known."""

    position_um: tuple[float, float] = (0.0, 0.0)  # of the corner of the virtual slide, from the corner of its source
    source: str = ""  # base name of the slide from which it was made; "" if unknown
    quickhash: str = ""  # of that slide; "" if unknown
    grids: tuple[BorderGrid, ...] = (BorderGrid(f"tiles of {TILE_PX} px", (TILE_PX, TILE_PX)),)
    # seam metrics in the translation report; None if there are none
    seams: Mapping[str, Any] | None = field(default=None, hash=False)
    is_reported: bool = False  # whether there is a translation report beside the virtual slide


def read_origin(virtual: str, size: Size) -> Origin:
    """Read the source of a virtual slide of this size (level-0 px) from its report, or else from its OME-XML.

    Raises `DatasetError` if a value in the report is missing or invalid: positions or grids would be wrong.
    """
    report = _report_beside(virtual, size)
    if report is None:
        return _from_file(virtual)
    try:
        # null without a resolution, without which slides are not compared
        x_um, y_um = (0.0 if value is None else float(value) for value in report["position_um"])
        seams = report["seams"]
        return Origin(
            position_um=(x_um, y_um),
            source=str(report["source"].get("name", "")),
            quickhash=str(report["source"].get("quickhash", "")),
            grids=tuple(_grids(report)),
            seams=None if seams is None else dict(seams),
            is_reported=True,
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DatasetError(
            f"{virtual}.json: the translation report has a missing or invalid value ({type(error).__name__}: "
            f"{error!s:.80}); translate again, or move it away"
        ) from error


def check_source(origin: Origin, fixed: SlideFrame | None, he: SlideInfo | None, virtual: str) -> None:
    """Check that the virtual slide was made from this H&E slide, and from the fixed slide of the transform.

    Raises
    ------
    DatasetError
        If the hashes of both are known and differ.
    """
    others = [] if fixed is None else [("the transform was made for", fixed.name, fixed.quickhash)]
    others += [] if he is None else [("--he names", he.name, he.quickhash)]
    for what, name, quickhash in others:
        if is_comparable(origin.quickhash, quickhash) and origin.quickhash != quickhash:
            raise DatasetError(
                f"{virtual} was made from {origin.source or 'another slide'}, but {what} {name}, which is another "
                "file; give matching files"
            )


def _report_beside(virtual: str, size: Size) -> dict[str, Any] | None:
    """Read the translation report; None if there is none, or if it is that of another file."""
    try:
        report = read_json(Path(f"{virtual}.json"))
        stated = report["output_size"]
        is_own = (stated["width"], stated["height"]) == (size.width, size.height) and isinstance(report["source"], dict)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return report if is_own else None


def _grids(report: Mapping[str, Any]) -> Iterator[BorderGrid]:
    """Yield the grid of the tiles, and that of the cores unless the model translates single pixels."""
    tile_px = int(report["options"]["pyramid"]["tile_px"])
    yield BorderGrid(f"tiles of {tile_px} px", (tile_px, tile_px))
    plan = report["plan"]
    width, height, x, y = (int(value) for key in ("core_size", "core_origin") for value in plan[key])
    overlap_px, halo_px = int(plan["overlap_px"]), int(plan["halo_px"])
    if min(tile_px, width, height) < 1 or overlap_px < 0:
        raise ValueError("a size that is not above zero")
    if overlap_px or halo_px > 0:
        label = "blended windows" if overlap_px else "cores"
        yield BorderGrid(f"{label} of {width}×{height} px", (width, height), (x, y), overlap_px)


def _from_file(virtual: str) -> Origin:
    """Read position, source and its hash from the OME-XML of the file."""
    try:
        with tifffile.TiffFile(virtual) as file:
            root = ET.fromstring(file.ome_metadata or "")
    except (OSError, ValueError, ET.ParseError, tifffile.TiffFileError):
        return Origin()
    annotations = {entry.get("K", ""): entry.text or "" for entry in root.iter(f"{{{NAMESPACE}}}M")}
    plane = next(root.iter(f"{{{NAMESPACE}}}Plane"), None)
    try:
        attributes = {} if plane is None else plane.attrib
        position = float(attributes.get("PositionX", 0)), float(attributes.get("PositionY", 0))
    except ValueError:
        position = 0.0, 0.0
    return Origin(position, annotations.get("source", ""), annotations.get("source quickhash", ""))
