"""Synthetic paired datasets in every layout.

The IHC of a pair is the H&E's negative, pixel by pixel, so that a test can check whether a pair stayed aligned. Pixels
come from the pair's name alone. All files are PNG.
"""

from __future__ import annotations

import csv
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from wsi2ihc.geometry import RGBImage

SIZE = (40, 32)
"""Width and height; not square, so that a turn shows."""

SPLITS = {"train": ("a_1", "a_2", "b_1", "b_2", "c_1", "c_2", "d_1"), "val": ("v_1", "v_2"), "test": ("t_1",)}


def he_pixels(name: str, size: tuple[int, int] = SIZE) -> RGBImage:
    """Smooth blobs with a little noise, from the name."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    coarse = rng.integers(40, 216, (4, 4, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC), np.int16)
    return np.clip(smooth + rng.integers(-20, 21, smooth.shape), 0, 255).astype(np.uint8)


def ihc_pixels(name: str, size: tuple[int, int] = SIZE) -> RGBImage:
    """The negative of the H&E."""
    return np.asarray(255 - he_pixels(name, size), np.uint8)


def save(pixels: RGBImage, path: Path) -> Path:
    """Write an image in the format of its suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def kinds_first(
    folder: Path,
    splits: Mapping[str, Iterable[str]] = SPLITS,
    he: str = "HE",
    ihc: str = "IHC",
    size: tuple[int, int] = SIZE,
) -> Path:
    """HE/{train,val,test} and IHC/{train,val,test}; a split "" puts the images straight into HE/ and IHC/."""
    for split, names in splits.items():
        for name in names:
            save(he_pixels(name, size), folder / he / split / f"{name}.png")
            save(ihc_pixels(name, size), folder / ihc / split / f"{name}.png")
    return folder


def splits_first(
    folder: Path,
    splits: Mapping[str, Iterable[str]] = SPLITS,
    he: str = "HE",
    ihc: str = "IHC",
    size: tuple[int, int] = SIZE,
) -> Path:
    """{train,val,test}/HE and {train,val,test}/IHC."""
    for split, names in splits.items():
        kinds_first(folder / split, {"": names}, he, ihc, size)
    return folder


def side_by_side(
    folder: Path, splits: Mapping[str, Iterable[str]] = SPLITS, order: str = "AB", size: tuple[int, int] = SIZE
) -> Path:
    """Images with both halves in {train,val,test}, or (split "") straight in the folder."""
    for split, names in splits.items():
        for name in names:
            halves = he_pixels(name, size), ihc_pixels(name, size)
            save(np.hstack(halves if order == "AB" else halves[::-1]), folder / split / f"{name}.png")
    return folder


def table(folder: Path, rows: Sequence[Mapping[str, object]], size: tuple[int, int] = SIZE) -> Path:
    """A pairs.csv, with the images that its columns he and ihc name."""
    for row in rows:
        name = Path(str(row["he"])).stem
        save(he_pixels(name, size), folder / str(row["he"]))
        save(ihc_pixels(name, size), folder / str(row["ihc"]))
    write_csv(folder / "pairs.csv", rows)
    return folder


def rows(splits: Mapping[str, Iterable[str]] = SPLITS) -> list[dict[str, object]]:
    """The least that a pairs.csv holds: split, he, ihc."""
    return [
        {"split": split, "he": f"he/{name}.png", "ihc": f"ihc/{name}.png"}
        for split, names in splits.items()
        for name in names
    ]


def write_csv(path: Path, rows: Sequence[Mapping[str, object]]) -> Path:
    """Rows as a CSV file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path
