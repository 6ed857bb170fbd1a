"""What a virtual slide says of where it comes from: in the report beside it, or, where that is lost, in itself."""

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
from wsi2ihc.pyramid.omexml import NAMESPACE
from wsi2ihc.registration.transform import SlideFrame
from wsi2ihc.registration.warp_plan import is_comparable
from wsi2ihc.slide import SlideInfo

TILE_PX = 512
"""Of the output's tiles, where nothing tells."""


@dataclass(frozen=True, slots=True)
class CellGrid:
    """A grid on which seams can lie: what it is of, width and height of a cell, where the first one begins; px.

    ``overlap_px`` is how wide one cell fades into the next.
    """

    what: str
    cell_px: tuple[int, int]
    origin_px: tuple[int, int] = (0, 0)
    overlap_px: int = 0


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a virtual slide comes from, as far as it is known.

    position_um:  of its corner on its source, from the corner of level 0
    source:       base name of the slide that it was made from; "" where unknown
    quickhash:    of that slide; "" where unknown
    grids:        on which seams can lie
    seams:        what the translation has reported of seams; None where it has not
    is_reported:  whether there is a report beside it
    """

    position_um: tuple[float, float] = (0.0, 0.0)
    source: str = ""
    quickhash: str = ""
    grids: tuple[CellGrid, ...] = (CellGrid(f"tiles of {TILE_PX} px", (TILE_PX, TILE_PX)),)
    seams: Mapping[str, Any] | None = field(default=None, hash=False)
    is_reported: bool = False


def origin_of(virtual: str, size: Size) -> Origin:
    """What a virtual slide of this size (level-0 px) says of itself; nothing, of a slide from elsewhere."""
    if (report := _report_beside(virtual, size)) is not None:
        return Origin(
            position_um=_position(report),
            source=str(report["source"].get("name", "")),
            quickhash=str(report["source"].get("quickhash", "")),
            grids=tuple(_grids(report)),
            seams=report.get("seams"),
            is_reported=True,
        )
    return _from_file(virtual)


def check_source(origin: Origin, fixed: SlideFrame | None, he: SlideInfo | None, virtual: str) -> None:
    """Refuse an H&E slide, or a transform of one, that the virtual slide was not made from.

    Raises
    ------
    DatasetError
        If the hashes of both are known, and differ.
    """
    others = [] if fixed is None else [("the transform was made for", fixed.name, fixed.quickhash)]
    others += [] if he is None else [("--he names", he.name, he.quickhash)]
    for what, name, quickhash in others:
        if is_comparable(origin.quickhash, quickhash) and origin.quickhash != quickhash:
            raise DatasetError(
                f"{virtual} was made from {origin.source}, but {what} {name}, which is another file; give what belongs "
                "together"
            )


def _report_beside(virtual: str, size: Size) -> dict[str, Any] | None:
    """The translation's report; None where there is none, or one of another file."""
    try:
        report = read_json(Path(f"{virtual}.json"))
        own = report["output_size"]
        is_own = (own["width"], own["height"]) == (size.width, size.height) and isinstance(report["source"], dict)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return report if is_own else None


def _position(report: Mapping[str, Any]) -> tuple[float, float]:
    try:
        x, y = report["position_um"]
        return float(x), float(y)
    except (KeyError, TypeError, ValueError):
        return 0.0, 0.0


def _grids(report: Mapping[str, Any]) -> Iterator[CellGrid]:
    """Tiles; and the cells that were translated, unless each pixel was translated by itself."""
    try:
        tile_px = int(report["options"]["pyramid"]["tile_px"])
    except (KeyError, TypeError, ValueError):
        tile_px = TILE_PX
    yield CellGrid(f"tiles of {tile_px} px", (tile_px, tile_px))
    try:
        plan = report["plan"]
        (width, height), (x, y) = plan["cell"], plan["cell_origin"]
        overlap_px = int(plan["overlap_px"])
        if overlap_px > 0 or plan["halo_px"] > 0:
            what = "blended windows" if overlap_px else "cores"
            yield CellGrid(f"{what} of {width}×{height} px", (int(width), int(height)), (int(x), int(y)), overlap_px)
    except (KeyError, TypeError, ValueError):
        return


def _from_file(virtual: str) -> Origin:
    """Of the OME-XML that the file carries: position, and source with its hash."""
    try:
        with tifffile.TiffFile(virtual) as file:
            root = ET.fromstring(file.ome_metadata or "")
    except (OSError, ValueError, ET.ParseError, tifffile.TiffFileError):
        return Origin()
    told = {entry.get("K", ""): entry.text or "" for entry in root.iter(f"{{{NAMESPACE}}}M")}
    plane = next(root.iter(f"{{{NAMESPACE}}}Plane"), None)
    try:
        at = {} if plane is None else plane.attrib
        position = float(at.get("PositionX", 0)), float(at.get("PositionY", 0))
    except ValueError:
        position = 0.0, 0.0
    return Origin(position, told.get("source", ""), told.get("source quickhash", ""))
