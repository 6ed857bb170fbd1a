"""Cells of a manifest as options of a translation."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..errors import ManifestError
from ..geometry import Region
from ..translation.options import TranslateOptions

_UNITS = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3}


def option_cells(cells: Mapping[str, str], folder: Path, options: TranslateOptions) -> dict[str, Any]:
    """Fields of `TranslateOptions` from cells by the names that the options have on the command line.

    Parameters
    ----------
    cells
        Not empty; heads with underscores.
    folder
        What a mask's path is relative to.
    options
        Whose pyramid is changed where a cell asks for it.

    Raises
    ------
    ManifestError
        If a column is no option, or a cell cannot be read.
    """
    fields: dict[str, Any] = {}
    pyramid: dict[str, Any] = {}
    for name, cell in cells.items():
        target = pyramid if name in _PYRAMID else fields
        known = _PYRAMID.get(name) or _FIELDS.get(name)
        if known is None:
            raise ManifestError(f"there is no option {name!r:.40}; columns are path, output, mpp, model, "
                                f"{', '.join((*_FIELDS, *_PYRAMID))}")  # fmt: skip
        field, read = known
        try:
            target[field] = read(cell)
        except ValueError:
            raise ManifestError(f"{name} is {cell!r:.40}, which cannot be understood") from None
    if "tissue" in fields and fields["tissue"] not in ("auto", "none"):
        fields["tissue"] = folder / fields["tissue"]
        try:
            is_there = fields["tissue"].is_file()
        except OSError:  # a name that no file system takes
            is_there = False
        if not is_there:
            raise ManifestError(f"there is no tissue mask {cells['tissue']}")
    if pyramid:
        fields["pyramid"] = dataclasses.replace(options.pyramid, **pyramid)
    return fields


def _region(text: str) -> Region:
    x, y, width, height = (int(part) for part in text.replace(";", ",").split(","))
    return Region(x, y, width, height)


def _bytes(text: str) -> int:
    parts = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?)(?:i?B)?", text, re.IGNORECASE)
    if parts is None:
        raise ValueError(text)
    return int(float(parts[1]) * _UNITS[parts[2].upper()])


Known = Mapping[str, tuple[str, Callable[[str], Any]]]

_FIELDS: Known = {
    "region": ("region", _region),
    "precision": ("precision", str),
    "batch_size": ("batch_size", int),
    "workers": ("workers", int),
    "max_memory": ("max_memory_bytes", _bytes),
    "tissue": ("tissue", str),
    "statistics": ("statistics", str),
    "blend": ("blend", str),
    "overlap": ("overlap_px", int),
    "core_size": ("core_px", int),
    "icc": ("icc", str),
    "on_read_error": ("on_read_error", str),
    "seed": ("seed", int),
}

_PYRAMID: Known = {
    "tile_size": ("tile_px", int),
    "compression": ("compression", str),
    "quality": ("quality", int),
}
