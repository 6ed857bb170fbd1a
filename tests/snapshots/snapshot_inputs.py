"""Inputs of the snapshot tests; the only module here that imports internals of the program.

Pixels and weights come from integers and NumPy's generators, so that they are the same on every CPU.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import torch
from make_slides import halves, write_slide
from PIL import Image

from wsi2ihc.geometry import RGBImage, Size
from wsi2ihc.models.model_file import build_network, save_checkpoint
from wsi2ihc.models.model_spec import GeneratorSpec, Norm
from wsi2ihc.pyramid import PyramidOptions
from wsi2ihc.registration.transform import LocalField, SlideFrame, Transform
from wsi2ihc.registration.transform_io import save_transform
from wsi2ihc.training.data.stain_jitter import DRAWS, augment_stains
from wsi2ihc.translation.options import TranslateOptions

BANDED = TranslateOptions(
    device="cpu", precision="fp32", workers=1, tissue="none", resume=True, band_px=64,
    pyramid=PyramidOptions(tile_px=64, compression="deflate"),
)  # fmt: skip
"""Options that resume, in several bands."""

BACKGROUND = (243, 241, 240)
WIDTH, HEIGHT = 460, 430
MPP = 2.0


def stained_pixels(width: int, height: int, seed: int, ihc: bool = False) -> RGBImage:
    """Stroma with nuclei, purple on pink; as IHC blue and brown on pale. Integer arithmetic only."""
    rng = np.random.default_rng(seed)
    image = np.empty((height, width, 3), np.int64)
    image[:] = (214, 208, 206) if ihc else (222, 150, 196)
    for block, strength in ((48, 9), (12, 7), (3, 5)):
        values = rng.integers(-strength, strength + 1, (-(-height // block), -(-width // block), 3))
        image += values.repeat(block, axis=0).repeat(block, axis=1)[:height, :width]
    rows, columns = np.mgrid[:height, :width]
    for number in range(width * height // 300):
        x, y, radius = rng.integers(0, width), rng.integers(0, height), rng.integers(3, 7)
        inside = (columns - x) ** 2 + (rows - y) ** 2 <= radius**2
        brown = ihc and number % 3 == 0
        image[inside] = (120, 82, 60) if brown else (104, 118, 160) if ihc else (96, 62, 146)
    return (image + rng.integers(-3, 4, image.shape)).clip(0, 255).astype(np.uint8)


def slide_pixels(seed: int = 0, ihc: bool = False) -> RGBImage:
    """A round piece of tissue on noisy background, which shows where a translation fades into its fill."""
    noise = np.random.default_rng(seed).integers(-2, 3, (HEIGHT, WIDTH, 3))
    image = (np.array(BACKGROUND) + noise).astype(np.uint8)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    inside = (columns - 225) ** 2 + (rows - 220) ** 2 <= 150**2
    image[inside] = stained_pixels(WIDTH, HEIGHT, seed, ihc)[inside]
    return image


def write_pixels(path: Path, image: RGBImage) -> Path:
    """Write a pyramidal slide whose pixels can be read back exactly."""
    return write_slide(path, halves(image, 2), style="aperio", compression="deflate", tile=256, mpp=MPP)


def write_network(path: Path, norm: Norm) -> Path:
    """Write a small network with fixed random weights; only "instance" depends on the whole window."""
    rng = np.random.default_rng(7)
    spec = GeneratorSpec(depth=1, width=8, norm=norm, mpp=MPP, stain="HER2")
    network = build_network(spec)
    with torch.no_grad():
        for name, weights in network.named_parameters():
            scale = 1.6 / np.sqrt(np.prod(weights.shape[1:])) if weights.ndim > 1 else 0.1
            mean = 1 if weights.ndim == 1 and name.endswith("weight") else 0
            weights.copy_(torch.from_numpy(rng.normal(mean, scale, tuple(weights.shape)).astype(np.float32)))
    save_checkpoint(path, network, spec)
    return path


def write_transform(folder: Path) -> Path:
    """Write a transform with a turn of 20° and a local field, onto an H&E slide of 3.2 µm per px."""
    angle = np.deg2rad(20)
    matrix = np.array([[np.cos(angle), -np.sin(angle), 200], [np.sin(angle), np.cos(angle), -120]])
    field = LocalField((-200.0, -200.0), 240.0, np.random.default_rng(0).normal(0, 12, (8, 8, 2)))
    return save_transform(folder, Transform(matrix, field, SlideFrame("he.svs", Size(300, 280), (3.2, 3.2), "abc")))


def write_patches(folder: Path, counts: dict[str, int], side: int = 64, seed: int = 100) -> Path:
    """Write pairs of patches into HE/SPLIT and IHC/SPLIT."""
    for split, count in counts.items():
        for number in range(count):
            for kind in ("HE", "IHC"):
                path = folder / kind / split / f"{split}{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(stained_pixels(side, side, seed, ihc=kind == "IHC")).save(path)
            seed += 1
    return folder


def write_slide_pairs(folder: Path) -> Path:
    """Write pairs of slides and a manifest of them, of which the last row names a file that does not exist."""
    folder.mkdir(exist_ok=True)
    rows = [["patient_id", "slide_id", "he_path", "ihc_path", "her2", "split", "transform"]]
    for number, (level, split) in enumerate([("0", "train"), ("3+", "val")]):
        names = [f"{kind}{number}.tif" for kind in ("he", "ihc")]
        for name, ihc in zip(names, (False, True), strict=True):
            pixels = stained_pixels(600, 560, 50 + number, ihc)
            write_slide(folder / name, halves(pixels, 2), compression="deflate")
        rows.append([f"P{number}", f"S{number}", *names, level, split, "identity"])
    lost = ["P9", "S9", "lost-he.tif", "lost-ihc.tif", "0", "train", "identity"]
    for name, own in (("manifest.csv", rows), ("partial.csv", [*rows, lost])):
        with (folder / name).open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(own)
    return folder


def augmented_stain(image: RGBImage) -> RGBImage:
    """Augment the stain of a crop as training does with a strength of 0.3."""
    return augment_stains(image, 0.3, np.linspace(0.1, 0.9, DRAWS))
