"""OME-Zarr 0.5: what it says of an image, and the arrays of its levels.

Arrays are (c, y, x), since the specification wants the channel axis before those of space. A chunk is one tile of the
output, all channels. Chunks lie in shards one row of tiles high, so that a writer whose rows of tiles are its own never
meets another in one shard: two writers there would lose pixels without a word.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import zarr
from zarr.codecs import ZstdCodec

from ..errors import OutputError
from ..geometry import Size
from .levels import Level
from .omexml import OmeImage

VERSION = "0.5"
AXES = ("c", "y", "x")

COMPRESSION_LEVEL = 1
"""Of Zstandard. On real tissue 1.17 bytes a px, as with level 3, which takes a third more time (measured)."""

SHARD_PX = 1 << 22
"""Of one shard, at most: 16 tiles of 512². Files of a few MB, and a bound for what is in memory."""

MOST_CHUNKS = 256

_WRITE_ALL: Any = {"write_empty_chunks": True}
"""Every shard has a file, also one that is black: else nobody could tell it from one that is missing."""

_CHANNELS = (("Red", "FF0000"), ("Green", "00FF00"), ("Blue", "0000FF"))
"""QuPath takes three channels of uint8 for RGB only by these names and colours."""


def shard_columns(level: Level) -> int:
    """How many tiles side by side make up a shard."""
    return max(1, min(level.columns, MOST_CHUNKS, SHARD_PX // level.tile_px**2))


def shard_grid(level: Level) -> tuple[int, int]:
    """(rows, columns) of shards that cover a level."""
    return level.rows, -(-level.columns // shard_columns(level))


def shard_path(number: int, row: int, column: int) -> Path:
    """Where a shard of a level lies in the image's folder (the key encoding "default" of Zarr 3)."""
    return Path(str(number), "c", "0", str(row), str(column))


def create_image(folder: Path, image: OmeImage, sizes: Sequence[Size]) -> None:
    """Make a folder a group that describes an image with levels of these sizes; what it said before is replaced.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    for leftover in folder.glob("zarr.*.partial"):  # of a run that was killed right here
        leftover.unlink()
    group = zarr.open_group(str(folder), mode="a", zarr_format=3)
    group.attrs.put(_attributes(image, sizes))


def create_level(folder: Path, number: int, level: Level) -> zarr.Array[Any]:
    """Make the empty array of one level; one that is there is replaced.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    return zarr.create_array(
        str(folder),
        name=str(number),
        **_arrangement(level),
        dtype="uint8",
        fill_value=0,
        compressors=ZstdCodec(level=COMPRESSION_LEVEL, checksum=True),
        dimension_names=AXES,
        zarr_format=3,
        overwrite=True,
        config=_WRITE_ALL,
    )


def _arrangement(level: Level) -> dict[str, Any]:
    """What of an array follows from its level."""
    return {
        "shape": (3, level.size.height, level.size.width),
        "chunks": (3, level.tile_px, level.tile_px),
        "shards": (3, level.tile_px, level.tile_px * shard_columns(level)),
    }


def open_level(folder: Path, number: int, *, write: bool = False) -> zarr.Array[Any]:
    """The array of one level.

    Raises
    ------
    OutputError
        If it is not there, or its metadata are damaged.
    OSError
        If the file system refuses.
    """
    try:
        array = zarr.open_array(str(folder), path=str(number), mode="r+" if write else "r")
    except (FileNotFoundError, ValueError, LookupError, TypeError, AttributeError) as error:  # zarr's own
        raise OutputError(f"{folder.name}: level {number} cannot be opened ({type(error).__name__})") from error
    return array.with_config(_WRITE_ALL)


def check_level(folder: Path, number: int, level: Level) -> None:
    """Refuse an array that is not there, or not the one that `create_level` makes.

    Raises
    ------
    OutputError
        If it is so.
    OSError
        If the file system refuses.
    """
    array = open_level(folder, number)
    for name, expected in _arrangement(level).items():
        if getattr(array, name) != expected:
            raise OutputError(f"{folder.name}: level {number} has {name} {getattr(array, name)} instead of {expected}")


def count_levels(folder: Path) -> int:
    """How many levels the image has, as it says itself."""
    attributes = cast("dict[str, Any]", zarr.open_group(str(folder), mode="r").attrs["ome"])
    return len(attributes["multiscales"][0]["datasets"])


def _attributes(image: OmeImage, sizes: Sequence[Size]) -> dict[str, Any]:
    """The attributes of the image's group: "ome" as the specification has it, and "wsi2ihc" with the provenance."""
    space = [{"name": axis, "type": "space", "unit": "micrometer"} for axis in AXES[1:]]
    scale = {
        "name": image.name,
        "axes": [{"name": AXES[0], "type": "channel"}, *space],
        "datasets": [
            {"path": str(number), "coordinateTransformations": _transformations(image, number)}
            for number in range(len(sizes))
        ],
        "type": "mean",
        "metadata": {"method": "2x2 means, rounded, of pixels that were never encoded lossily"},
    }
    window = {"min": 0, "max": 255, "start": 0, "end": 255}
    channels = [
        {"label": label, "color": colour, "window": window, "active": True, "family": "linear", "coefficient": 1,
         "inverted": False}
        for label, colour in _CHANNELS
    ]  # fmt: skip
    omero = {"name": image.name, "channels": channels, "rdefs": {"defaultT": 0, "defaultZ": 0, "model": "color"}}
    facts = {
        "notice": image.notice,
        "description": image.description,
        "channel": image.channel,
        "magnification": image.magnification,
        "provenance": dict(image.provenance),
    }
    return {"ome": {"version": VERSION, "multiscales": [scale], "omero": omero}, "wsi2ihc": facts}


def _transformations(image: OmeImage, number: int) -> list[dict[str, Any]]:
    """From the array of a level to µm. A px of a lower level lies in the middle of the px that it is the mean of."""
    factor, (left, top) = 2**number, image.position_um or (0.0, 0.0)
    x_um, y_um = image.mpp
    shift = (factor - 1) / 2
    return [
        {"type": "scale", "scale": [1.0, y_um * factor, x_um * factor]},
        {"type": "translation", "translation": [0.0, top + y_um * shift, left + x_um * shift]},
    ]
