"""Peak memory of the process tree on a slide of 100,000² px with 5 % tissue, and of one half as high."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import tifffile

from benchmarks.harness import Context, Row, child
from benchmarks.networks import checkpoint, tissue

SIDE_PX = 100_000
GIB = 1024**3


def measure(context: Context) -> list[Row]:
    rows = []
    for model, bar, side in (
        ("identity", 1.5, SIDE_PX),
        ("resnet", 6.0, SIDE_PX if not context.quick else SIDE_PX // 5),
    ):
        peaks = {}
        for height in (side // 2, side):
            slide = sparse_slide(context, side, height)
            name = str(checkpoint(context)) if model == "resnet" else model
            if model == "resnet" and height == side and not context.quick:
                # The network would take hours over 500 Mpx; memory is settled after a few rows of cells.
                slide = sparse_slide(context, side, height, share=0.002)
            answer = child("benchmarks.memory", name, str(slide), str(context.work / "memory.ome.tiff"))
            peaks[height] = answer["peak_bytes"] / GIB
            if model == "resnet":
                break
        growth = f"; {peaks[side // 2]:.2f} GiB at half the height" if len(peaks) > 1 else ""
        height = max(peaks)
        told = f"{peaks[height]:.2f} GiB at {side}×{height} px{growth}"
        rows.append(Row(f"peak memory, {model}", f"≤ {bar} GB", told, max(peaks.values()) * GIB <= bar * 1e9, peaks))
    return rows


def sparse_slide(context: Context, width: int, height: int, share: float = 0.05) -> Path:
    """A tiled-JPEG slide with islands of real tissue; glass everywhere else, as tiles that share their bytes."""
    path = context.work / f"sparse-{width}x{height}-{share}.tif"
    if path.exists():
        return path
    pixels, tile = tissue(context)[512:1536, 512:1536], 512
    blank = np.full((tile, tile, 3), 243, dtype=np.uint8)
    rng = np.random.default_rng(3)
    partial = path.with_suffix(".partial.tif")
    with tifffile.TiffWriter(partial, bigtiff=True) as tiff:
        for factor in (1, 8, 64):
            rows, columns = (-(-side // factor // tile) for side in (height, width))
            islands = _islands(rng, rows, columns, share)
            tiff.write(
                (
                    pixels[(r % 2) * tile : (r % 2 + 1) * tile, (c % 2) * tile : (c % 2 + 1) * tile] if islands[r, c] else blank
                    for r in range(rows)
                    for c in range(columns)
                ),
                shape=(height // factor, width // factor, 3), dtype=np.uint8, tile=(tile, tile), photometric="rgb",
                compression="jpeg", compressionargs={"level": 80}, metadata=None,
                resolution=(1e4 / 0.499 / factor, 1e4 / 0.499 / factor), resolutionunit="CENTIMETER",
                subfiletype=0 if factor == 1 else 1,
            )  # fmt: skip
    partial.rename(path)
    return path


def _islands(rng: np.random.Generator, rows: int, columns: int, share: float) -> np.ndarray:
    """Squares of tiles that together cover the share."""
    seeded = np.random.default_rng(11)  # the same islands on every level
    side = 8
    coarse = seeded.random((-(-200 // side), -(-200 // side))) < share
    full = np.kron(coarse, np.ones((side, side), dtype=bool))[:196, :196]
    ys = (np.arange(rows) * 196 // max(rows, 1)) if rows < 196 else np.arange(rows) % 196
    xs = (np.arange(columns) * 196 // max(columns, 1)) if columns < 196 else np.arange(columns) % 196
    del rng
    return full[np.ix_(ys, xs)]


def _run(model: str, slide: Path, output: Path) -> dict[str, float]:
    from wsi2ihc.generator.registry import load_generator
    from wsi2ihc.slide import open_slide
    from wsi2ihc.translation.options import TranslateOptions
    from wsi2ihc.translation.pipeline import prepare, run

    options = TranslateOptions(overwrite=True, precision="fp32")
    with open_slide(slide) as opened:
        report = run(prepare(opened, load_generator(model), options), output)
    return {"windows": report.plan["windows"], "tissue_share": report.tissue_share}


if __name__ == "__main__":
    print(json.dumps(_run(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))))
