"""Speed of reading slides: OpenSlide, tiffslide and direct decoding of JPEG tiles compared on one slide.

    python benchmarks/reading.py SLIDE.svs
    python benchmarks/reading.py SLIDE.svs --repeat 12 --window 2048x1024 --halo 84

With ``--repeat N`` the slide's level 0 is first tiled N × N times into a temporary file, by copying its compressed
tiles, so that a small slide can stand for a large one. Prints a table, and with ``--json`` one JSON object. Times are
medians of interleaved rounds; compare them as ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from tiffslide import TiffSlide

from wsi2ihc.geometry import Region, Size
from wsi2ihc.slide.jpeg_tiles import DirectTiles, LocalFile, cache_bytes
from wsi2ihc.slide.readers.openslide_reader import OpenSlideReader
from wsi2ihc.slide.tiff_metadata import TileTable, read_tiff_metadata
from wsi2ihc.slide.tile_codecs import tile_decoder

Read = Callable[[Region], Any]


def repeated(source: Path, target: Path, times: int) -> None:
    """Write level 0 of a tiled JPEG slide, complete tiles only, ``times`` × ``times`` side by side."""
    with tifffile.TiffFile(source) as tiff:
        page = tiff.pages.first
        side = page.tilewidth
        columns, rows = page.imagewidth // side, page.imagelength // side
        per_row = -(-page.imagewidth // side)
        tiles = list(_stored(tiff, page))

        def stream() -> Iterator[bytes]:
            for row in range(rows * times):
                for column in range(columns * times):
                    yield tiles[row % rows * per_row + column % columns]

        with tifffile.TiffWriter(target, bigtiff=True) as writer:
            writer.write(
                stream(), shape=(rows * times * side, columns * times * side, 3), dtype=np.uint8, tile=(side, side),
                photometric="rgb", compression="jpeg", jpegtables=page.jpegtables, metadata=None,
                compressionargs={"outcolorspace": "rgb"} if page.photometric == 2 else None,
                resolution=(20_000, 20_000), resolutionunit="CENTIMETER",
            )  # fmt: skip


def _stored(tiff: tifffile.TiffFile, page: tifffile.TiffPage) -> Iterator[bytes]:
    for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
        tiff.filehandle.seek(offset)
        yield tiff.filehandle.read(count)


def windows(size: Size, window: Size, halo_px: int, limit_px: float) -> list[Region]:
    """Yield cores with halos in rows over the level, up to a number of px."""
    cores = [
        Region(x, y, window.width, window.height)
        for y in range(0, size.height - window.height + 1, window.height)
        for x in range(0, size.width - window.width + 1, window.width)
    ]
    return [core.grown(halo_px) for core in cores[: max(1, int(limit_px / window.area_px))]]


def decode_only(path: Path, table: TileTable, tiles: int) -> Callable[[], int]:
    """Read and decode a number of tiles in one thread; return the number of px."""
    decode = tile_decoder(table)
    assert decode is not None
    out = np.empty((table.tile.height, table.tile.width, 3), np.uint8)
    places = list(zip(table.offsets.ravel().tolist(), table.byte_counts.ravel().tolist(), strict=True))[:tiles]

    def run() -> int:
        with path.open("rb", buffering=0) as file:
            for offset, count in places:
                decode(os.pread(file.fileno(), count, offset), out)
        return len(places) * table.tile.area_px

    return run


def timed(read: Read, regions: list[Region], core_px: int, threads: int) -> tuple[float, float]:
    """Return Mpx of cores per second of wall-clock time and of CPU time."""
    started, cpu_started = time.perf_counter(), time.process_time()
    if threads == 1:
        for region in regions:
            read(region)
    else:
        with ThreadPoolExecutor(threads) as pool:
            for _ in pool.map(read, regions):
                pass
    return rates(len(regions) * core_px, started, cpu_started)


def rates(px: int, started: float, cpu_started: float) -> tuple[float, float]:
    """Return Mpx per second of wall-clock time and of CPU time since the start."""
    return px / (time.perf_counter() - started) / 1e6, px / (time.process_time() - cpu_started) / 1e6


def measure(path: Path, window: Size, halo_px: int, mpx: float, rounds: int) -> dict[str, Any]:
    """Measure all readers on one file."""
    facts = read_tiff_metadata(path)
    assert facts is not None
    table = facts.tables[0]
    regions = windows(table.size, window, halo_px, mpx * 1e6)
    plain = OpenSlideReader(path, None, None)
    tiffslide = TiffSlide(path)

    def direct(cached: bool) -> tuple[DirectTiles, Read]:
        reader = DirectTiles(LocalFile(path), {0: (table, 1.0)}, cache_bytes(table.size, table.tile) if cached else 0)
        level = Region(0, 0, table.size.width, table.size.height)

        def read(region: Region) -> None:
            inside = region.intersection(level)
            out = np.empty((inside.height, inside.width, 3), np.uint8)
            reader.read(0, inside, out, (255, 255, 255))

        return reader, read

    results: dict[str, list[tuple[float, float]]] = {}
    slow = max(1, len(regions) // 8)
    for _ in range(rounds):
        started, cpu_started = time.perf_counter(), time.process_time()
        px = decode_only(path, table, sum(region.area_px for region in regions) // table.tile.area_px)()
        results.setdefault("decoding alone, 1", []).append(rates(px, started, cpu_started))
        for threads in (1, 2):
            for name, cached in (("direct", True), ("direct, no cache", False)):
                reader, read = direct(cached)
                results.setdefault(f"{name}, {threads}", []).append(timed(read, regions, window.area_px, threads))
                reader.close()
            libraries: dict[str, Read] = {
                "openslide": lambda region: plain.read_level(0, region),
                "tiffslide": lambda region: tiffslide.read_region(
                    (region.x, region.y), 0, (region.width, region.height), as_array=True
                ),
            }
            for name, read in libraries.items():
                rate = timed(read, regions[:slow], window.area_px, threads)
                results.setdefault(f"{name}, {threads}", []).append(rate)
    plain.close()
    tiffslide.close()
    return {
        "slide": f"{table.size} px, tiles of {table.tile}, {path.stat().st_size / 1e6:.0f} MB",
        "windows": f"{len(regions)} of {window}, halo {halo_px} px",
        "mpx_per_s": {name: _median(values, 0) for name, values in sorted(results.items())},
        "mpx_per_cpu_s": {name: _median(values, 1) for name, values in sorted(results.items())},
    }


def _median(values: list[tuple[float, float]], index: int) -> float:
    return round(statistics.median(value[index] for value in values), 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slide", type=Path)
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--window", default="2048x1024")
    parser.add_argument("--halo", type=int, default=0)
    parser.add_argument("--mpx", type=float, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    width, height = (int(side) for side in options.window.split("x"))
    with tempfile.TemporaryDirectory() as folder:
        path = options.slide
        if options.repeat > 1:
            path = Path(folder) / "repeated.tif"
            repeated(options.slide, path, options.repeat)
        result = measure(path, Size(width, height), options.halo, options.mpx, options.rounds)
    if options.json:
        print(json.dumps(result))
        return
    print(result["slide"], "|", result["windows"])
    for name, rate in result["mpx_per_s"].items():
        print(f"  {name:22} {rate:8.1f} Mpx/s {result['mpx_per_cpu_s'][name]:8.1f} Mpx per CPU second")


if __name__ == "__main__":
    sys.exit(main())
