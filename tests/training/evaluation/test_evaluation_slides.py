"""A virtual slide against a stained one, square by square."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from make_slides import halves, write_slide

from wsi2ihc.arrays import RGBImage
from wsi2ihc.demo import synthetic_tissue
from wsi2ihc.demo.restained import IHC_GLASS, restain
from wsi2ihc.errors import DatasetError
from wsi2ihc.registration.files import save_transform
from wsi2ihc.registration.transform import affine
from wsi2ihc.slide.memory_slide import MemorySlide
from wsi2ihc.training.evaluation.grid_seams import measure_grid
from wsi2ihc.training.evaluation.options import EvaluateOptions
from wsi2ihc.training.evaluation.slide_presenting import present_slide
from wsi2ihc.training.evaluation.slides import area_agreement, evaluate_slides

QUICK = EvaluateOptions(resamples=100)
SHIFT_PX = 40
"""By which the reference lies off the virtual slide, right and down; 20 µm."""


@pytest.fixture(scope="module")
def ihc() -> RGBImage:
    return restain(synthetic_tissue(700, 600, seed=1), 1, 3.0)


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory, ihc: RGBImage) -> Path:
    folder = tmp_path_factory.mktemp("slides")
    write_slide(folder / "virtual.tif", halves(ihc, 2), compression="deflate")
    moved = np.full((600 + SHIFT_PX, 700 + SHIFT_PX, 3), IHC_GLASS, np.uint8)
    moved[SHIFT_PX:, SHIFT_PX:] = ihc
    write_slide(folder / "reference.tif", halves(moved, 2), compression="deflate")
    pale = restain(synthetic_tissue(700, 600, seed=1), 1, 0.5)
    write_slide(folder / "pale.tif", halves(pale, 2))
    save_transform(folder / "transform.json", affine([[1, 0, SHIFT_PX / 2], [0, 1, SHIFT_PX / 2]]))
    return folder


def test_the_right_transform_finds_the_same_pixels(slides: Path) -> None:
    result = evaluate_slides(
        str(slides / "reference.tif"), str(slides / "virtual.tif"), slides / "transform.json", QUICK, square_um=50
    )
    values = result.evaluation.methods[0].scores.subset().values()
    assert values["stain_r"] > 0.9999
    assert result.squares.coverage > 0.95
    agreement, difference = area_agreement(result.maps)
    assert agreement > 0.99
    assert difference < 0.01
    unplaced = evaluate_slides(str(slides / "reference.tif"), str(slides / "virtual.tif"), None, QUICK, square_um=50)
    assert unplaced.evaluation.methods[0].scores.subset().values()["stain_r"] < 0.6
    assert any("no transform" in note for note in unplaced.evaluation.notes)


def test_too_little_stain_shows_in_the_maps_and_the_report(slides: Path) -> None:
    result = evaluate_slides(str(slides / "virtual.tif"), str(slides / "pale.tif"), None, QUICK, square_um=50)
    known = np.isfinite(result.maps.reference)
    assert known.sum() == len(result.squares.chosen) > 10
    assert (result.maps.virtual[known] - result.maps.reference[known]).mean() < -0.02
    report = present_slide(result, resamples=100)
    names = {one.name for section in report.sections for one in section.contents}
    assert {"map_reference", "map_virtual", "map_error", "places", "seams", "overview_virtual"} <= names
    json.dumps(report.data, allow_nan=False)
    assert len(report.data["slide"]["squares"]) == len(result.squares.chosen)


def test_a_part_of_a_slide_lies_where_its_report_says(slides: Path, tmp_path: Path, ihc: RGBImage) -> None:
    part = tmp_path / "part.tif"
    write_slide(part, halves(np.ascontiguousarray(ihc[100:500, 200:680]), 2), compression="deflate")
    (tmp_path / "part.tif.json").write_text(
        json.dumps({
            "extent": {"x": 200, "y": 100, "width": 480, "height": 400}, "output_mpp": [0.5, 0.5],
            "plan": {"cell": [128, 128]}, "seams": {"z": 0.7},
        })
    )  # fmt: skip
    result = evaluate_slides(str(slides / "virtual.tif"), str(part), None, QUICK, square_um=50)
    assert result.evaluation.methods[0].scores.subset().values()["stain_r"] > 0.9999
    assert [one.what for one in result.seams] == ["tiles of 512 px", "cores of 128×128 px"]
    assert result.reported == {"z": 0.7}


def test_slides_without_tissue_in_the_same_place_are_refused(slides: Path, tmp_path: Path) -> None:
    save_transform(tmp_path / "far.json", affine([[1, 0, 5000], [0, 1, 5000]]))
    with pytest.raises(DatasetError, match="no tissue in the same place"):
        evaluate_slides(str(slides / "reference.tif"), str(slides / "virtual.tif"), tmp_path / "far.json", QUICK)
    with pytest.raises(DatasetError, match="smaller than one square"):
        evaluate_slides(str(slides / "reference.tif"), str(slides / "virtual.tif"), None, QUICK, square_um=2000)


def test_a_grid_of_steps_stands_out_and_plain_tissue_does_not(ihc: RGBImage) -> None:
    tissue = np.tile(ihc, (2, 2, 1))
    smooth = measure_grid(MemorySlide(tissue, "tissue", (0.5, 0.5)), "cells", (256, 256))
    assert smooth.z is not None
    assert abs(smooth.z) < 3
    steps = tissue.astype(int)
    rows, columns = np.mgrid[: tissue.shape[0], : tissue.shape[1]]
    steps += np.where((rows // 256 + columns // 256) % 2, 12, 0)[..., np.newaxis]
    seamed = np.clip(steps, 0, 255).astype(np.uint8)
    found = measure_grid(MemorySlide(seamed, "seamed", (0.5, 0.5)), "cells", (256, 256))
    assert found.z is not None
    assert found.z > 5
    assert found.contrast is not None
    assert found.contrast > 1.2
    blank = np.full_like(tissue, 240)
    assert measure_grid(MemorySlide(blank, "blank", (0.5, 0.5)), "cells", (256, 256)).z is None
