"""Speed of the pyramid writer, from pixels in memory to a file, compared with libvips and with encoding alone.

    python benchmarks/pyramid_writer.py [--side 16384] [--threads 2] [--rounds 5] [--json out.json]

Every contender gets the same pixels, tile size, quality and subsampling and writes a full pyramid to the same folder;
rounds are interleaved and ratios are medians over rounds, of wall-clock time and of CPU time. libvips halves color
both ways below quality 90 (4:2:0), so the comparison uses 4:2:0; the default of this program, 4:2:2, is reported beside
it. "encoding alone" runs the same encoder over the tiles of level 0 (× 4/3 for the pyramid) in as many threads and
writes nothing. The tiles are cut beforehand: in the program they come as separate arrays. libvips reads one array
without copying. Nothing is synchronized with the disk, as libvips does not either.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np

from wsi2ihc.geometry import Size
from wsi2ihc.pyramid import ImageDescription, PyramidOptions, Tile, ome_xml, write_pyramid
from wsi2ihc.pyramid.encode import make_encoder
from wsi2ihc.pyramid.levels import halve_into

MPP = (0.25, 0.25)
FILL = (243, 242, 244)


def tissue_like(side_px: int, seed: int = 0) -> np.ndarray:
    """Generate noise on three scales between background, eosin and hematoxylin, with about the bits per px of real
    tissue.
    """
    rng = np.random.default_rng(seed)
    patch_px = min(side_px, 4096)
    density = np.zeros((patch_px, patch_px), np.float32)
    for cell_px, weight in ((256, 0.9), (16, 0.9), (4, 0.25)):
        coarse = rng.normal(size=(patch_px // cell_px + 2,) * 2).astype(np.float32)
        density += weight * cv2.resize(coarse, (patch_px, patch_px), interpolation=cv2.INTER_CUBIC)
    stains = np.stack([1 / (1 + np.exp(-4 * density)), 1 / (1 + np.exp(3 * density))], axis=-1)
    absorbed = stains @ np.array([[0.65, 0.70, 0.29], [0.07, 0.45, 0.11]], np.float32)
    patch = (243 * np.exp(-absorbed) + rng.normal(size=absorbed.shape) * 1.5).clip(0, 255).astype(np.uint8)
    repeats = -(-side_px // patch_px)
    return np.ascontiguousarray(np.tile(patch, (repeats, repeats, 1))[:side_px, :side_px])


def cut(image: np.ndarray, tile_px: int) -> list[Tile]:
    rows, columns = image.shape[0] // tile_px, image.shape[1] // tile_px
    grid = image.reshape(rows, tile_px, columns, tile_px, 3)
    places = np.ndindex(rows, columns)
    return [Tile(column, row, np.ascontiguousarray(grid[row, :, column])) for row, column in places]


def seconds(work: Callable[[], object]) -> tuple[float, float]:
    """Return wall-clock seconds, and CPU seconds of all threads (less affected by other processes)."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def contenders(
    image: np.ndarray, tiles: list[Tile], folder: Path, options: PyramidOptions, threads: int
) -> Iterator[tuple[str, Callable[[], object]]]:
    size = Size(image.shape[1], image.shape[0])
    occupied = np.ones((size.height // options.tile_px, size.width // options.tile_px), bool)
    text = ome_xml(ImageDescription("benchmark", size, MPP))

    def ours(subsampling: str) -> Callable[[], object]:
        chosen = PyramidOptions(options.tile_px, quality=options.quality, subsampling=subsampling)  # type: ignore[arg-type]

        def write() -> None:
            with ThreadPoolExecutor(threads) as pool:
                write_pyramid(
                    folder / f"ours_{subsampling}.ome.tiff", tiles, occupied, size, MPP, FILL, chosen,
                    ome_xml=text, icc_profile=None, executor=pool,
                )  # fmt: skip

        return write

    def encoding_alone(subsampling: str) -> Callable[[], object]:
        encode = make_encoder(PyramidOptions(options.tile_px, quality=options.quality, subsampling=subsampling))  # type: ignore[arg-type]

        def encode_some(start: int) -> None:
            for tile in tiles[start : start + 16]:  # few, long jobs: no time is lost between them
                encode(tile.pixels)

        def run() -> None:
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(encode_some, range(0, len(tiles), 16)))

        return run

    def halving_alone() -> None:
        target = np.empty((options.tile_px // 2, options.tile_px // 2, 3), np.uint8)
        for tile in tiles:
            halve_into(tile.pixels, target)

    yield "ours 4:2:0", ours("420")
    yield "ours 4:2:2", ours("422")
    yield "encoding alone 4:2:0", encoding_alone("420")
    yield "encoding alone 4:2:2", encoding_alone("422")
    yield "halving alone, 1 thread", halving_alone
    try:
        import pyvips
    except ImportError:
        return

    def libvips() -> None:
        source = pyvips.Image.new_from_memory(image.data, size.width, size.height, 3, "uchar")
        source.tiffsave(
            str(folder / "vips.tiff"), tile=True, tile_width=options.tile_px, tile_height=options.tile_px, pyramid=True,
            compression="jpeg", Q=options.quality, bigtiff=True, subifd=True, depth="onetile", properties=True,
        )  # fmt: skip

    yield "libvips 4:2:0", libvips


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=16384, help="side of the square image, px; multiple of 512")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to write; a temporary folder by default")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    os.environ["VIPS_CONCURRENCY"] = str(arguments.threads)

    options = PyramidOptions()
    image = tissue_like(arguments.side)
    tiles = cut(image, options.tile_px)
    megapixels = image.shape[0] * image.shape[1] / 1e6
    times: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        works = list(contenders(image, tiles, folder, options, arguments.threads))
        works[0][1]()  # libraries load what they load on first use
        for _ in range(arguments.rounds):
            for label, work in works:
                times.setdefault(label, []).append(seconds(work))
        bits = {file.name: file.stat().st_size * 8 / megapixels / 1e6 for file in sorted(folder.iterdir())}

    result = report(times, megapixels, arguments.threads)
    result["bits_per_px"] = bits
    for label, value in result.items():
        print(f"{label:42} {value}")
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


def report(times: dict[str, list[tuple[float, float]]], megapixels: float, threads: int) -> dict[str, object]:
    """Return medians, and median ratios over rounds."""
    result: dict[str, object] = {"megapixels": round(megapixels, 1), "threads": threads}
    for label, values in times.items():
        wall, cpu = (statistics.median(value) for value in zip(*values, strict=True))
        result[f"{label}: Mpx/s"] = round(megapixels / wall, 1)
        result[f"{label}: CPU ns/px"] = round(1000 * cpu / megapixels, 2)

    def ratios(name: str, above: str, below: str, factor: float = 1.0) -> None:
        pairs = list(zip(times[above], times[below], strict=True))
        for number, clock in enumerate(("wall", "CPU")):
            result[f"{name}, {clock}"] = round(statistics.median(factor * a[number] / b[number] for a, b in pairs), 3)

    for sampling in ("4:2:0", "4:2:2"):
        ratios(f"fraction of pure encoding {sampling}", f"encoding alone {sampling}", f"ours {sampling}", 4 / 3)
    if "libvips 4:2:0" in times:
        ratios("ours / libvips 4:2:0", "ours 4:2:0", "libvips 4:2:0")
    return result


if __name__ == "__main__":
    main()
