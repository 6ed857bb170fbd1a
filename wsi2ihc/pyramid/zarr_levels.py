"""The lower levels of an OME-Zarr, from its level 0: the same pixels as in the OME-TIFF; and a look at the whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from pathlib import Path

import numpy as np

from ..arrays import RGB, RGBImage
from ..errors import OutputError
from ..geometry import Size
from ..ordered import ordered_map
from .cascade import Cascade
from .levels import Level
from .omezarr import count_levels, create_level, open_level, shard_path
from .shards import ShardCollector, read_tiles, write_blank_shards, write_shard
from .tiles import Tile


def write_lower_levels(
    folder: Path,
    levels: Sequence[Level],
    fill: RGB,
    executor: Executor,
    ahead: int,
    on_progress: Callable[[int], None],
) -> None:
    """Read level 0 of an image once, and write all levels below it.

    Memory bound: that of `Cascade`, ``ahead`` shards of level 0, and of each lower level the tiles of one row of
    shards that are not complete.

    Parameters
    ----------
    folder
        The image; level 0 is complete.
    levels
        All levels, largest first.
    fill
        Colour of blank tiles.
    on_progress
        Called in the calling thread with the number of occupied tiles of level 0 done so far.

    Raises
    ------
    DamagedShardError
        If a shard of level 0 cannot be read.
    OSError
        If the disk is full, or the file system refuses.
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

    It has levels of these sizes, of each of which the last tile can be decoded, a file for each shard, and no others:
    a killed writer leaves some.

    Raises
    ------
    OutputError
        If anything of this is not so.
    """
    try:
        problem = next(_problems(folder, sizes), "")
    # whatever goes wrong in a reader or a codec says the same thing here: the image cannot be read
    except Exception as error:
        raise OutputError(f"{folder.name} cannot be read back after writing ({error}): run again") from error
    if problem:
        raise OutputError(f"{folder.name} did not read back as it was written ({problem}): run again")


def _problems(folder: Path, sizes: Sequence[Size]) -> Iterator[str]:
    if count_levels(folder) != len(sizes):
        yield f"{count_levels(folder)} levels instead of {len(sizes)}"
    expected = {Path("zarr.json")}
    for number, size in enumerate(sizes):
        array = open_level(folder, number)
        shards = array.shards or array.chunks
        _, rows, columns = (-(-length // side) for length, side in zip(array.shape, shards, strict=True))
        expected |= {shard_path(number, row, column) for row in range(rows) for column in range(columns)}
        expected.add(Path(str(number), "zarr.json"))
        if array.shape != (3, size.height, size.width):
            yield f"level {number} has shape {array.shape}"
        last = [(length - 1) // side * side for length, side in zip(array.shape, array.chunks, strict=True)]
        np.asarray(array[:, last[1] :, last[2] :])
    found = {path.relative_to(folder) for path in folder.rglob("*") if not path.is_dir()}
    for path in sorted(found ^ expected):
        yield f"{path.as_posix()} {'is missing' if path in expected else 'is no part of it'}"
