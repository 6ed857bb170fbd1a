"""Peak memory of the process tree for a slide of 100,000² px with 5 % tissue, and one of half the height."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
import numpy.typing as npt
import tifffile

from benchmarks.harness import Context, Row, child
from benchmarks.networks import checkpoint, tissue
from wsi2ihc.geometry import RGBImage

SIDE_PX = 100_000
TILE_PX = 512
ISLAND_PX = 4096
"""Side of a square of tissue, in level-0 px: two millimeters."""


def measure(context: Context) -> list[Row]:
    side = SIDE_PX // 5 if context.quick else SIDE_PX
    # Half a gigapixel of tissue would keep ResNet-9 in fp32 busy for an hour; memory is constant after some windows.
    cases = (("identity", "identity", 1.5, 0.05), ("ResNet-9 fp32", str(checkpoint(context)), 6.0, 0.001))
    return [_row(context, name, model, bar, side, share) for name, model, bar, share in cases]


def _row(context: Context, name: str, model: str, bar_gb: float, side: int, share: float) -> Row:
    output = context.work / "memory.ome.tiff"
    answers = {
        height: child("benchmarks.memory", model, str(sparse_slide(context, side, height, share)), str(output))
        for height in (side // 2, side)
    }
    half, full = (answers[height]["peak_bytes"] / 1e9 for height in (side // 2, side))
    measured = (
        f"{full:.2f} GB at {side}×{side} px with {share:.1%} tissue in {answers[side]['seconds']:.0f} s; "
        f"{half:.2f} GB at half the height"
    )
    met = max(half, full) <= bar_gb and full <= half * 1.15 + 0.05
    return Row(f"peak memory, {name}; and no growth with height", f"≤ {bar_gb} GB", measured, met, answers)


def sparse_slide(context: Context, width: int, height: int, share: float) -> Path:
    """Write a tiled-JPEG slide with islands of real tissue; all background tiles are shared."""
    path = context.work / f"sparse-{width}x{height}-{share}.tif"
    if path.exists():
        return path
    partial = path.with_suffix(".partial.tif")
    with tifffile.TiffWriter(partial, bigtiff=True) as tiff:
        for factor in (1, 8, 64):
            tiff.write(
                _tiles(tissue(context), width, height, factor, share),
                shape=(height // factor, width // factor, 3),
                dtype=np.uint8,
                tile=(TILE_PX, TILE_PX),
                photometric="rgb",
                compression="jpeg",
                subsampling=(2, 2),
                metadata=None,
                resolution=(1e4 / 0.499 / factor, 1e4 / 0.499 / factor),
                resolutionunit="CENTIMETER",
                subfiletype=0 if factor == 1 else 1,
            )
    partial.rename(path)
    return path


def _tiles(pixels: RGBImage, width: int, height: int, factor: int, share: float) -> Iterator[tuple[bytes, int]]:
    """Yield the encoded tiles of one level with their lengths."""
    rows, columns = (-(-side // factor // TILE_PX) for side in (height, width))
    island_px = ISLAND_PX // factor
    texture = cv2.resize(pixels[400:2448, 400:1936], None, fx=1 / factor, fy=1 / factor, interpolation=cv2.INTER_AREA)
    texture = np.tile(texture, (3 * factor, 3 * factor, 1))
    blank = np.full((TILE_PX, TILE_PX, 3), 243, dtype=np.uint8)
    shared = _encoded(blank)
    for row in range(rows):
        for column in range(columns):
            place = np.indices((TILE_PX, TILE_PX)) + np.array([row, column])[:, None, None] * TILE_PX
            island = _is_island(place[0, ::16, ::16] // island_px, place[1, ::16, ::16] // island_px, share)
            if not island.any():
                yield shared, len(shared)
                continue
            full = np.kron(island, np.ones((16, 16), dtype=bool))
            part = texture[:TILE_PX, :TILE_PX]
            data = _encoded(np.where(full[..., None], part, blank))
            yield data, len(data)


def _is_island(rows: npt.NDArray[np.int64], columns: npt.NDArray[np.int64], share: float) -> npt.NDArray[np.bool_]:
    """Choose squares pseudorandomly, equal on every level."""
    hashed = (rows * 73_856_093 ^ columns * 19_349_663) * 2_654_435_761 % 2**32
    return hashed < share * 2**32


def _encoded(tile: RGBImage) -> bytes:
    return bytes(
        imagecodecs.jpeg8_encode(
            np.ascontiguousarray(tile), level=80, colorspace="RGB", outcolorspace="YCBCR", subsampling="420"
        )
    )


def _run(model: str, slide: Path, output: Path) -> dict[str, float]:
    from wsi2ihc.models.registry import load_model
    from wsi2ihc.slide import open_slide
    from wsi2ihc.translation.job import prepare
    from wsi2ihc.translation.options import TranslateOptions
    from wsi2ihc.translation.translate import translate_job

    started = time.perf_counter()
    options = TranslateOptions(overwrite=True, precision="fp32")
    with open_slide(slide) as opened:
        report = translate_job(prepare(opened, load_model(model), options), output)
    return {
        "windows": report.plan["windows"],
        "tissue_share": report.tissue_share,
        "seconds": time.perf_counter() - started,
    }


if __name__ == "__main__":
    print(json.dumps(_run(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))))
