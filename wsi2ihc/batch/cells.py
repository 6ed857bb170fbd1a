"""Cells of a manifest as options of a translation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..errors import ManifestError
from ..notation import parse_auto, parse_bytes, parse_region
from ..translation.options import TranslateOptions


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
            raise ManifestError(f"there is no option {name!r:.40}; columns are path, output, mpp, series, page, model, "
                                f"{', '.join((*_FIELDS, *_PYRAMID))}")  # fmt: skip
        field, read = known
        try:
            target[field] = read(cell)
        except ValueError as error:
            raise ManifestError(f"{name}: {cell!r:.40} {error}") from None
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


def _switch(text: str) -> bool:
    try:
        return {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}[text.lower()]
    except KeyError:
        raise ValueError("is neither yes nor no") from None


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError("is no whole number") from None


Known = Mapping[str, tuple[str, Callable[[str], Any]]]

_FIELDS: Known = {
    "region": ("region", lambda text: parse_region(text.replace(";", ","))),
    "precision": ("precision", str),
    "batch_size": ("batch_size", parse_auto),
    "workers": ("workers", parse_auto),
    "max_memory": ("max_memory_bytes", parse_bytes),
    "tissue": ("tissue", str),
    "statistics": ("statistics", str),
    "blend": ("blend", str),
    "overlap": ("overlap_px", parse_auto),
    "core_size": ("core_px", parse_auto),
    "icc": ("icc", str),
    "on_read_error": ("on_read_error", str),
    "seed": ("seed", _whole),
}

_PYRAMID: Known = {
    "tile_size": ("tile_px", _whole),
    "compression": ("compression", str),
    "quality": ("quality", _whole),
    "openslide_compatible": ("openslide_compatible", _switch),
}
