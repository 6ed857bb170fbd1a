"""Pixels of outputs: hashes where they come from integers, else means of squares."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import snapshot_inputs as inputs
import tifffile
import zarr
from PIL import Image
from snapshot_commands import CPU, LOSSLESS, Ended, Run
from snapshot_compare import Snapshot

Made = tuple[Path, Ended]

HASHED = ("exact", "counterstain", "blended", "resumed", "zarr", "region", "whole")
COMPARED = ("rescaled", "network", "network blended")
SQUARE_PX = 64


def levels(output: Path) -> list[npt.NDArray[np.uint8]]:
    """Return the pixels of all levels of an output."""
    if output.is_dir():
        group = zarr.open_group(output, mode="r")
        return [np.moveaxis(np.asarray(group[name]), 0, -1) for name in sorted(group.array_keys())]
    with tifffile.TiffFile(output) as tiff:
        return [level.asarray() for level in tiff.series[0].levels]


def hashed(pixels: npt.NDArray[np.uint8]) -> str:
    return f"{'×'.join(map(str, pixels.shape))} {hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()}"


def means(pixels: npt.NDArray[np.uint8]) -> list[Any]:
    """Return the mean of each channel in each square, between 0 and 1."""
    rows, columns = (range(0, side, SQUARE_PX) for side in pixels.shape[:2])
    return [[(pixels[y : y + SQUARE_PX, x : x + SQUARE_PX].mean((0, 1)) / 255).tolist() for x in columns] for y in rows]


@pytest.mark.parametrize("way", HASHED)
def test_hashes_of_outputs(snapshot: Snapshot, translated: dict[str, Made], way: str) -> None:
    snapshot.lines(f"pixels/{way}", [hashed(level) for level in levels(translated[way][0])])


def test_ways_agree(translated: dict[str, Made]) -> None:
    whole = levels(translated["counterstain"][0])
    for way in ("resumed", "zarr"):
        for one, other in zip(whole, levels(translated[way][0]), strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("way", COMPARED)
def test_means_of_outputs(snapshot: Snapshot, translated: dict[str, Made], way: str) -> None:
    pixels = levels(translated[way][0])[0]
    assert pixels.std() > 10
    snapshot.numbers(f"pixels/{way.replace(' ', '_')}", {"shape": list(pixels.shape), "means": means(pixels)})


def test_figures_of_translations(snapshot: Snapshot, translated: dict[str, Made]) -> None:
    """Plans, fills and seams, which no pixel may show."""
    names = ("blend", "plan", "seams", "tissue_share", "output_mpp", "warnings", "fill")
    found = {
        way: {name: value for name, value in ended.json.items() if name in names} | {"keys": len(ended.json)}
        for way, (_, ended) in translated.items()
    }
    for facts in found.values():
        facts["warnings"] = len(facts["warnings"])
    snapshot.numbers("pixels/figures", found, relative=1e-4)


def test_preview(snapshot: Snapshot, translated: dict[str, Made]) -> None:
    with Image.open(translated["exact"][0].parent / "exact.png") as image:
        snapshot.numbers("pixels/preview", {"size": list(image.size), "means": means(np.asarray(image.convert("RGB")))})


def test_color_profile_and_slide_statistics(
    snapshot: Snapshot, succeed: Run, slide: Path, networks: dict[str, Path], tmp_path: Path
) -> None:
    found = {}
    for name, more in (
        ("statistics of the slide", ["--statistics", "slide", "--seed", 1, "--model", networks["batch"]]),
        ("JPEG", ["--compression", "jpeg", "--quality", 40, "--model", "counterstain"]),
    ):
        output = tmp_path / f"{name[0]}.ome.tiff"
        succeed("translate", slide, output, *CPU, *LOSSLESS, "-q", *more)
        found[name] = means(levels(output)[0])
    snapshot.numbers("pixels/variants", found)


def test_tissue_mask(snapshot: Snapshot, succeed: Run, slide: Path, tmp_path: Path) -> None:
    ended = succeed("tissue", slide, tmp_path / "mask.png", "--json")
    with Image.open(tmp_path / "mask.png") as image:
        mask = np.asarray(image.convert("L"))
    snapshot.numbers("pixels/tissue", {
        "share": ended.json["tissue_share"], "background": ended.json["background"], "size": list(mask.shape),
        "rows": (mask > 0).mean(axis=1).tolist(),
    })  # fmt: skip


def test_warped_pixels(snapshot: Snapshot, warped: Made) -> None:
    pixels = levels(warped[0])[0]
    snapshot.numbers("pixels/warped", {"shape": list(pixels.shape), "means": means(pixels)})


def test_transform_found_by_registration(snapshot: Snapshot, registered: Made) -> None:
    """To a micrometer: OpenCV with and without AVX2 differ by up to 0.5 µm."""
    output, ended = registered
    transform = json.loads((output / "transform.json").read_text(encoding="utf-8"))
    report = ended.json
    matrix = np.array(transform["matrix"])
    points = np.array([[x, y, 1] for x in (0, 300, 600) for y in (0, 225, 450)])
    snapshot.numbers("registration", {
        "status": report["status"], "mirrored": report["mirrored"],
        "score in tenths": round(report["score"] * 10),
        "positions, um": (points @ matrix.T).tolist(),
        "stages": [
            {"name": stage["name"], "control points": stage["control_points"],
             "median error, um": stage["landmarks"]["median_um"]}
            for stage in report["stages"]
        ],
    }, relative=0, absolute=1.0)  # fmt: skip


def test_stain_augmentation_of_a_crop(snapshot: Snapshot) -> None:
    crop = inputs.stained_pixels(64, 64, 5)
    snapshot.numbers("pixels/augmented", {"means": means(inputs.augmented_stain(crop)), "unchanged": means(crop)})
