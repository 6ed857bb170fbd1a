"""Paired datasets whose stain strength depends on the HER2 level, with a table of slides."""

from __future__ import annotations

import csv
from pathlib import Path

from make_images import stained_image
from PIL import Image

from wsi2ihc.geometry import RGBImage

STRENGTHS = {"0": 0.05, "1+": 0.3, "2+": 0.6, "3+": 1.2}


def save(image: RGBImage, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


def write_data(
    folder: Path, *, patches: int = 2, size: int = 48, test_levels: tuple[str, ...] = ("0", "1+", "3+")
) -> Path:
    """``pairs.csv`` with a slide for every level in train (two) and in test, of so many patches each.

    The H&E is the stained image, mirrored in color, so that a color regression can find it again.
    """
    rows = []
    for split, slides in (("train", 2), ("test", 1)):
        for level in STRENGTHS if split == "train" else test_levels:
            for slide in range(slides):
                for patch in range(patches):
                    name = f"{split}_{level.rstrip('+')}_{slide}_{patch}"
                    seed = sum(map(ord, name)) * 7 + patch
                    ihc = stained_image(seed, size, STRENGTHS[level])
                    save(ihc, folder / "IHC" / f"{name}.png")
                    save(ihc[..., ::-1], folder / "HE" / f"{name}.png")
                    slide_name = f"{split}{level}{slide}"
                    rows.append({
                        "he": f"HE/{name}.png", "ihc": f"IHC/{name}.png", "split": split, "her2": level, "mpp": "1.0",
                        "patient": f"P{slide_name}", "slide": slide_name,
                    })  # fmt: skip
    with (folder / "pairs.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        table.writerows(rows)
    return folder
