"""Two slides of 20,000² px to a dataset of 1024 px pairs: registration, extraction, and the memory of all processes."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np

from benchmarks.harness import Context, Row, child
from wsi2ihc.demo.demo_slide import BAND_PX, WORKERS, write_slide_file
from wsi2ihc.demo.ihc_pair import restain
from wsi2ihc.demo.render import BACKGROUND, paint, synthetic_structures
from wsi2ihc.geometry import Region, RGBImage, Size

SIDE_PX = 20_000
TURN_DEG, SCALE = 7.0, 1.02
WARP_PX, WAVE_PX = 30.0, 800.0
"""Rotation and scale of the IHC, and a smooth displacement of up to 30 px (15 µm)."""

PIECE_PX = 2048
"""Side of the blocks in which the IHC is restained, to bound the memory (60 bytes per px)."""


def measure(context: Context) -> list[Row]:
    side = SIDE_PX // 5 if context.quick else SIDE_PX
    folder = _pair(context.work / f"pairs-{side}", side)
    rows = []
    for name, transform in (("registered", ""), ("given", "identity")):
        answer = child("benchmarks.pairs", str(folder), transform)
        area_mpx = side**2 / 1e6
        measured = (
            f"{answer['kept']} of {answer['places']} places kept in {answer['seconds']:.0f} s "
            f"({area_mpx / answer['seconds']:.1f} Mpx of slide per second); peak {answer['peak_bytes'] / 1e9:.2f} GB"
        )
        what = f"two slides of {side}×{side} px to 1024 px pairs, {name}"
        rows.append(Row(what, "≤ 2 GB", measured, answer["peak_bytes"] <= 2e9, answer))
    return rows


def _pair(folder: Path, side: int) -> Path:
    """Create an H&E slide and its rotated, warped and restained IHC, once."""
    if (folder / "ihc.tiff").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    scene = synthetic_structures(Size(side, side), 1)
    with ThreadPoolExecutor(WORKERS) as workers:
        strips = [Region(0, y, side, min(BAND_PX, side - y)) for y in range(0, side, BAND_PX)]
        he = np.empty((side, side, 3), np.uint8)
        for strip, pixels in zip(strips, workers.map(lambda strip: paint(scene, strip), strips), strict=True):
            he[strip.y : strip.bottom] = pixels
        write_slide_file(folder / "he.tiff", Size(side, side), _bands(he), "wsi2ihc synthetic H&E")
        ihc = _partner(he)
        write_slide_file(folder / "part.tiff", Size(ihc.shape[1], ihc.shape[0]), _bands(ihc), "synthetic IHC")
    (folder / "part.tiff").rename(folder / "ihc.tiff")
    return folder


def _partner(he: RGBImage) -> RGBImage:
    """Rotate and warp the slide (bilinear, which takes a minute instead of ten for splines), then restain it."""
    side = he.shape[0]
    partner = np.empty((int(side * 1.12), int(side * 1.12), 3), np.uint8)
    turn = cv2.invertAffineTransform(cv2.getRotationMatrix2D((side / 2, side / 2), TURN_DEG, SCALE))
    for y in range(0, partner.shape[0], BAND_PX):
        row, column = np.mgrid[y : min(y + BAND_PX, partner.shape[0]), : partner.shape[1]].astype(np.float32)
        row, column = row - np.float32(0.06 * side), column - np.float32(0.06 * side)
        at_x = turn[0, 0] * column + turn[0, 1] * row + turn[0, 2] + WARP_PX * np.sin(row / WAVE_PX)
        at_y = turn[1, 0] * column + turn[1, 1] * row + turn[1, 2] + WARP_PX * np.cos(column / WAVE_PX)
        maps = at_x.astype(np.float32), at_y.astype(np.float32)
        partner[y : y + BAND_PX] = cv2.remap(he, *maps, cv2.INTER_LINEAR, borderValue=BACKGROUND)
    for y in range(0, partner.shape[0], PIECE_PX):
        for x in range(0, partner.shape[1], PIECE_PX):
            piece = partner[y : y + PIECE_PX, x : x + PIECE_PX]
            piece[...] = restain(np.ascontiguousarray(piece), 1, 2.0)
    return partner


def _bands(image: RGBImage) -> Iterator[RGBImage]:
    for y in range(0, image.shape[0], BAND_PX):
        yield image[y : y + BAND_PX]


def _run(folder: Path, transform: str) -> dict[str, float]:
    import shutil

    from wsi2ihc.training.pairs.build import build_pairs
    from wsi2ihc.training.pairs.options import PairsOptions
    from wsi2ihc.training.pairs.quality import Limits

    manifest = folder / "manifest.csv"
    manifest.write_text(f"patient_id,slide_id,he_path,ihc_path,her2,transform\nP1,S1,he.tiff,ihc.tiff,2+,{transform}\n")
    shutil.rmtree(folder / "data", ignore_errors=True)
    # Without limits the pixels of all places with tissue are read and written: the most work there can be.
    limits = Limits() if not transform else Limits(min_tissue=0, min_valid=0, max_residual_um=0, min_correlation=-1)
    started = time.perf_counter()
    report = build_pairs(manifest, folder / "data", PairsOptions(limits=limits))
    (slide,) = report.slides
    return {
        "kept": slide.kept,
        "places": slide.kept + slide.rejected,
        "seconds": time.perf_counter() - started,
    }


if __name__ == "__main__":
    print(json.dumps(_run(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "")))
