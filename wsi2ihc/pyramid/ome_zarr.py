"""Write, read back and publish OME-Zarr 0.5."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import lazy_loader
import numpy as np

from ..atomic_files import (
    check_folder,
    check_name,
    check_writable,
    hidden_files,
    hidden_path,
    output_exists,
    remove_tree,
    sync_folder,
    sync_tree,
)
from ..concurrency import ordered_map
from ..errors import OutputError
from ..geometry import RGB, RGBImage, Size
from .downsample import Cascade
from .levels import PyramidLevel, Tile
from .ome_xml import ImageDescription

if TYPE_CHECKING:
    import zarr
else:
    zarr = lazy_loader.load("zarr")  # 0.1 s, which no other output should cost

VERSION = "0.5"
AXES = ("c", "y", "x")

COMPRESSION_LEVEL = 1
"""Level of Zstandard. On tissue, it takes 1.17 bytes per px, as level 3, and a quarter less time."""

SHARD_PX = 1 << 22  # maximum size of a shard: 16 tiles of 512², which limits files to a few MB, and memory

MAX_TILES_PER_SHARD = 256

ZARR_SUFFIX = ".ome.zarr"

_GROUP_FILES = ("zarr.json", ".zgroup", ".zattrs")  # a Zarr group, of version 2 or 3, has at least one of them

_WRITE_ALL: Any = {"write_empty_chunks": True}
"""Write shards that are all black too: otherwise, they could not be distinguished from missing ones."""

_CHANNELS = (("Red", "FF0000"), ("Green", "00FF00"), ("Blue", "0000FF"))
"""QuPath shows three channels of uint8 as RGB only if they have these names and colors."""


def tiles_per_shard(level: PyramidLevel) -> int:
    """Return the number of tiles in a shard, which lie side by side."""
    return max(1, min(level.columns, MAX_TILES_PER_SHARD, SHARD_PX // level.tile_px**2))


def shard_grid(level: PyramidLevel) -> tuple[int, int]:
    """Return the (rows, columns) of shards that cover a level."""
    return level.rows, -(-level.columns // tiles_per_shard(level))


def shard_path(number: int, row: int, column: int) -> Path:
    """Return the path of a shard in the folder of the image (the key encoding "default" of Zarr 3)."""
    return Path(str(number), "c", "0", str(row), str(column))


def create_image(folder: Path, image: ImageDescription, levels: int) -> None:
    """Write the metadata of an image with this number of levels to a folder; existing metadata are replaced.

    Raises `OSError` if it cannot be written.
    """
    for leftover in folder.glob("zarr.*.partial"):  # a run that was killed while zarr wrote metadata left it
        leftover.unlink()
    group = zarr.open_group(str(folder), mode="a", zarr_format=3)
    group.attrs.put(_attributes(image, levels))


def create_level(folder: Path, number: int, level: PyramidLevel) -> zarr.Array[Any]:
    """Create the empty array of one level; an existing one is replaced.

    Raises `OSError` if it cannot be written.
    """
    from zarr.codecs import ZstdCodec

    return zarr.create_array(
        str(folder),
        name=str(number),
        **_array_layout(level),
        dtype="uint8",
        fill_value=0,
        compressors=ZstdCodec(level=COMPRESSION_LEVEL, checksum=True),
        dimension_names=AXES,
        zarr_format=3,
        overwrite=True,
        config=_WRITE_ALL,
    )


def _array_layout(level: PyramidLevel) -> dict[str, Any]:
    """Return shape, chunks and shards of the array of a level."""
    return {
        "shape": (3, level.size.height, level.size.width),
        "chunks": (3, level.tile_px, level.tile_px),
        "shards": (3, level.tile_px, level.tile_px * tiles_per_shard(level)),
    }


def open_level(folder: Path, number: int, *, write: bool = False) -> zarr.Array[Any]:
    """Open the array of one level; raises `OutputError` if it is missing, or its metadata are damaged."""
    try:
        array = zarr.open_array(str(folder), path=str(number), mode="r+" if write else "r")
    except (FileNotFoundError, ValueError, LookupError, TypeError, AttributeError) as error:  # what zarr raises
        raise OutputError(f"{folder.name}: level {number} cannot be opened ({type(error).__name__})") from error
    return array.with_config(_WRITE_ALL)


def check_level(folder: Path, number: int, level: PyramidLevel) -> None:
    """Check that the array of a level exists and has the layout of `create_level`; raises `OutputError` if not."""
    array = open_level(folder, number)
    for name, expected in _array_layout(level).items():
        if getattr(array, name) != expected:
            raise OutputError(f"{folder.name}: level {number} has {name} {getattr(array, name)} instead of {expected}")


def count_levels(folder: Path) -> int:
    """Return the number of levels in the metadata of an image."""
    attributes = cast("dict[str, Any]", zarr.open_group(str(folder), mode="r").attrs["ome"])
    return len(attributes["multiscales"][0]["datasets"])


def _attributes(image: ImageDescription, levels: int) -> dict[str, Any]:
    """Return the attributes of the group: "ome" of the specification, and "wsi2ihc" with the provenance."""
    space = [{"name": axis, "type": "space", "unit": "micrometer"} for axis in AXES[1:]]
    multiscale = {
        "name": image.name,
        "axes": [{"name": AXES[0], "type": "channel"}, *space],
        "datasets": [
            {"path": str(number), "coordinateTransformations": _transformations(image, number)}
            for number in range(levels)
        ],
        "type": "mean",
        "metadata": {"method": "rounded 2x2 means of uncompressed pixels"},
    }
    window = {"min": 0, "max": 255, "start": 0, "end": 255}
    channels = [
        {"label": label, "color": color, "window": window, "active": True, "family": "linear", "coefficient": 1,
         "inverted": False}
        for label, color in _CHANNELS
    ]  # fmt: skip
    omero = {"name": image.name, "channels": channels, "rdefs": {"defaultT": 0, "defaultZ": 0, "model": "color"}}
    own_attributes = {
        "notice": image.notice,
        "description": image.description,
        "channel": image.channel,
        "magnification": image.magnification,
        "provenance": dict(image.provenance),
    }
    return {"ome": {"version": VERSION, "multiscales": [multiscale], "omero": omero}, "wsi2ihc": own_attributes}


def _transformations(image: ImageDescription, number: int) -> list[dict[str, Any]]:
    """Return the transformation from px of a level to µm. A px is centered on the level-0 px it is the mean of."""
    factor, (left, top) = 2**number, image.position_um or (0.0, 0.0)
    x_um, y_um = image.mpp
    shift = (factor - 1) / 2
    return [
        {"type": "scale", "scale": [1.0, y_um * factor, x_um * factor]},
        {"type": "translation", "translation": [0.0, top + y_um * shift, left + x_um * shift]},
    ]


_RESOURCE_ERRORS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""Errors that say nothing about the shard: the system lacks memory or file handles."""


class DamagedShardError(OutputError):
    """A shard cannot be read back; ``row`` and ``column`` are its position among the shards of the level."""

    def __init__(self, row: int, column: int, reason: str) -> None:
        super().__init__(f"shard ({row}, {column}) cannot be read back ({reason:.80})")
        self.row, self.column = row, column


@dataclass(frozen=True, slots=True)
class Shard:
    """Shard to be written, at its position among the shards of a level."""

    row: int
    column: int
    tiles: dict[int, RGBImage]  # pixels of its occupied tiles, by column among the tiles of the level


@dataclass(slots=True)
class ShardCollector:
    """Collects the tiles of one level until shards are complete. Thread-safe.

    Memory bound: the tiles of incomplete shards. For tiles in raster order, one shard; for tiles that come core by core
    (the areas translated at once, see `translation.windows`), the shards that overlap a core.
    """

    level: PyramidLevel
    rows: range
    _tiles_per_shard: int = field(init=False)
    _incomplete: dict[tuple[int, int], Shard] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._tiles_per_shard = tiles_per_shard(self.level)

    def blank_shards(self) -> Iterator[Shard]:
        """Yield the shards without occupied tiles, which `add` never returns."""
        for row in self.rows:
            for column in range(shard_grid(self.level)[1]):
                if not self._occupied_tiles(row, column):
                    yield Shard(row, column, {})

    def add(self, tile: Tile) -> Shard | None:
        """Add a tile; return its shard if it is complete."""
        position = (tile.row, tile.column // self._tiles_per_shard)
        with self._lock:
            shard = self._incomplete.setdefault(position, Shard(*position, {}))
            shard.tiles[tile.column] = tile.pixels
            if len(shard.tiles) < self._occupied_tiles(*position):
                return None
            return self._incomplete.pop(position)

    def _occupied_tiles(self, row: int, column: int) -> int:
        first = column * self._tiles_per_shard
        return int(self.level.occupied[row, first : first + self._tiles_per_shard].sum())


def shards_ahead(level: PyramidLevel, workers: int) -> int:
    """Return how many shards of a level to read or write at once: at least two, and about four tiles per thread."""
    return max(2, 4 * workers // tiles_per_shard(level))


def write_tiles(
    folder: Path, tiles: Iterable[Tile], level: PyramidLevel, rows: range, fill: RGB, executor: Executor, ahead: int
) -> None:
    """Write the shards of some rows of tiles of level 0; occupied tiles come approximately in raster order.

    Other tiles have the color ``fill``. Memory bound: that of `ShardCollector`, and ``ahead`` shards with a copy each.
    Raises `OSError` if the disk is full, or the file system reports another error.
    """
    collector, array = ShardCollector(level, rows), open_level(folder, 0, write=True)
    write_blank_shards(folder, 0, level, collector, fill)
    shards = (shard for tile in tiles if (shard := collector.add(tile)) is not None)
    for _ in ordered_map(executor, partial(write_shard, array, level, fill), shards, ahead):
        pass


def write_blank_shards(folder: Path, number: int, level: PyramidLevel, collector: ShardCollector, fill: RGB) -> None:
    """Write the shards of a level without occupied tiles.

    Blank shards of equal size have equal files, so each size is encoded once: encoding takes 2 ms per chunk, and most
    of a slide is background. Raises `OSError` if the disk is full, or the file system reports another error.
    """
    array, files = open_level(folder, number, write=True), dict[Size, bytes]()
    for shard in collector.blank_shards():
        size = _valid_part(level, shard.row, shard.column)
        path = folder / shard_path(number, shard.row, shard.column)
        if size not in files:
            write_shard(array, level, fill, shard)
            files[size] = path.read_bytes()
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(files[size])


def write_shard(array: zarr.Array[Any], level: PyramidLevel, fill: RGB, shard: Shard) -> None:
    """Write one shard; missing tiles have the color ``fill``."""
    side, first = level.tile_px, shard.column * tiles_per_shard(level)
    valid = _valid_part(level, shard.row, shard.column)
    pixels = np.empty((3, valid.height, valid.width), np.uint8)
    if len(shard.tiles) < min(tiles_per_shard(level), level.columns - first):
        pixels[:] = np.array(fill, np.uint8)[:, np.newaxis, np.newaxis]
    for column, tile in shard.tiles.items():
        left = (column - first) * side
        part = pixels[:, :, left : left + side]
        part[...] = np.moveaxis(tile[: part.shape[1], : part.shape[2]], 2, 0)
    top, left = shard.row * side, first * side
    array[:, top : top + valid.height, left : left + valid.width] = pixels


def read_tiles(array: zarr.Array[Any], level: PyramidLevel, executor: Executor, ahead: int) -> Iterator[Tile]:
    """Yield the occupied tiles of a level in raster order; their parts outside the image are black.

    Memory bound: ``ahead`` shards. Raises `DamagedShardError` if a shard cannot be read.
    """
    count, (rows, columns) = tiles_per_shard(level), shard_grid(level)
    positions = [
        (row, column)
        for row in range(rows)
        for column in range(columns)
        if level.occupied[row, column * count : (column + 1) * count].any()
    ]
    for tiles in ordered_map(executor, partial(_read_shard, array, level), positions, ahead):
        yield from tiles


def _read_shard(array: zarr.Array[Any], level: PyramidLevel, position: tuple[int, int]) -> list[Tile]:
    (row, shard_column), side, count = position, level.tile_px, tiles_per_shard(level)
    first, valid = shard_column * count, _valid_part(level, *position)
    top, left = row * side, first * side
    try:
        pixels = np.asarray(array[:, top : top + valid.height, left : left + valid.width])
    # zarr and its codecs raise errors of many types for damage: a checksum, a length, an invalid frame
    except Exception as error:
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in _RESOURCE_ERRORS):
            raise
        raise DamagedShardError(row, shard_column, str(error)) from error
    tiles = []
    for column in range(first, min(first + count, level.columns)):
        if not level.occupied[row, column]:
            continue
        part = pixels[:, :, (column - first) * side : (column - first + 1) * side]
        tile = np.zeros((side, side, 3), np.uint8)
        tile[: part.shape[1], : part.shape[2]] = np.moveaxis(part, 0, 2)
        tiles.append(Tile(column, row, tile))
    return tiles


def _valid_part(level: PyramidLevel, row: int, shard_column: int) -> Size:
    """Return the size of the part of a shard inside the image."""
    left, top = shard_column * tiles_per_shard(level) * level.tile_px, row * level.tile_px
    width = min(tiles_per_shard(level) * level.tile_px, level.size.width - left)
    return Size(width, min(level.tile_px, level.size.height - top))


def write_downsampled_levels(
    folder: Path,
    levels: Sequence[PyramidLevel],
    fill: RGB,
    executor: Executor,
    ahead: int,
    on_progress: Callable[[int], None],
) -> None:
    """Read level 0 of an image once, and write all downsampled levels (1 and up).

    Memory bound: that of `Cascade`, ``ahead`` shards of level 0, and for each downsampled level one row of
    incomplete shards.

    ``on_progress`` is called in the calling thread with the number of occupied tiles of level 0 done so far.

    Raises `DamagedShardError` if a shard of level 0 cannot be read, and `OSError` if the file system reports an error.
    """
    side = levels[0].tile_px
    arrays = {number: create_level(folder, number, levels[number]) for number in range(1, len(levels))}
    collectors = {number: ShardCollector(levels[number], range(levels[number].rows)) for number in arrays}

    def keep(number: int, index: int, raw: bytes) -> None:
        level = levels[number]
        pixels: RGBImage = np.frombuffer(raw, np.uint8).reshape(side, side, 3)
        shard = collectors[number].add(Tile(index % level.columns, index // level.columns, pixels))
        if shard is not None:
            write_shard(arrays[number], level, fill, shard)

    blank = np.empty((side, side, 3), np.uint8)
    blank[:] = fill
    cascade = Cascade(levels, blank, np.ndarray.tobytes, keep)
    tiles = read_tiles(open_level(folder, 0), levels[0], executor, ahead)
    for done, _ in enumerate(ordered_map(executor, cascade.finish, tiles, ahead), start=1):
        on_progress(done)
    for number, collector in collectors.items():
        write_blank_shards(folder, number, levels[number], collector, fill)


def validate_image(folder: Path, sizes: Sequence[Size]) -> None:
    """Reopen an image and check that it is complete.

    The levels must have these sizes, the last tile of each level must be decodable, and there must be a file for each
    shard and no other file, such as an interrupted writer leaves. Raises `OutputError` if a check fails.
    """
    try:
        problem = _first_problem(folder, sizes)
    # any error of a reader or codec means that the image cannot be read
    except Exception as error:
        raise OutputError(f"{folder.name} cannot be read back after writing ({error}): run again") from error
    if problem:
        raise OutputError(f"{folder.name} did not read back as it was written ({problem}): run again")


def _first_problem(folder: Path, sizes: Sequence[Size]) -> str:
    if count_levels(folder) != len(sizes):
        return f"{count_levels(folder)} levels instead of {len(sizes)}"
    expected = {Path("zarr.json")}
    for number, size in enumerate(sizes):
        array = open_level(folder, number)
        shards = array.shards or array.chunks  # without sharding, each chunk has a file
        _, rows, columns = (-(-length // side) for length, side in zip(array.shape, shards, strict=True))
        expected |= {shard_path(number, row, column) for row in range(rows) for column in range(columns)}
        expected.add(Path(str(number), "zarr.json"))
        if array.shape != (3, size.height, size.width):
            return f"level {number} has shape {array.shape}"
        last = [(length - 1) // side * side for length, side in zip(array.shape, array.chunks, strict=True)]
        np.asarray(array[:, last[1] :, last[2] :])
    found = {path.relative_to(folder) for path in folder.rglob("*") if not path.is_dir()}
    path = min(found ^ expected, default=None)
    if path is None:
        return ""
    return f"{path.as_posix()} {'is missing' if path in expected else 'is not part of the image'}"


def is_zarr(path: Path) -> bool:
    """Whether the name of an output is that of an OME-Zarr."""
    return path.name.lower().endswith(ZARR_SUFFIX)


def check_zarr_output(path: Path, overwrite: bool) -> None:
    """Check that an OME-Zarr can be written, before any work is done; see `check_output` for files.

    Only a Zarr group is ever replaced: a wrong name must not delete another folder.

    Raises `OutputExistsError` if it exists and may not be replaced, and `OutputError` if its parent folder is missing
    or not writable, or the path is not a Zarr group.
    """
    check_name(path)
    check_folder(path.parent)
    if os.path.lexists(path):
        if path.is_symlink() or not any((path / name).is_file() for name in _GROUP_FILES):
            raise OutputError(f"output {path} exists and is not a Zarr image: choose another name")
        if not overwrite:
            raise output_exists(path)
    check_writable(path.parent)


def publish_folder(folder: Path, path: Path, overwrite: bool) -> None:
    """Force a folder to disk and rename it to ``path``, which must be on the same file system.

    An existing folder is renamed first, and removed after the new one has its name. If the process is killed between
    the two renames, ``path`` does not exist.

    Raises
    ------
    OutputExistsError
        If ``path`` exists and may not be replaced.
    OutputError
        If the file system reports an error.
    """
    check_zarr_output(path, overwrite)
    old = hidden_path(path, "old")
    try:
        sync_tree(folder)
        if os.path.lexists(path):
            path.rename(old)
        try:
            folder.rename(path)
        except OSError:
            with contextlib.suppress(OSError):
                old.rename(path)
            raise
        sync_folder(path.parent)
    except OSError as error:
        raise OutputError(f"cannot finish {path.name} in {path.parent}: {error.strerror}") from error
    remove_old_versions(path)


def remove_old_versions(path: Path) -> None:
    """Remove replaced versions of an existing folder, which an interrupted run can leave beside it."""
    if os.path.lexists(path):  # otherwise the replaced version is the only one
        for leftover in hidden_files(path, "old"):
            remove_tree(leftover)
