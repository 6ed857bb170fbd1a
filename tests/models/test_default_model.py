"""The trained model that comes with the program: its file, its card, and what it does to the demo's tissue."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from wsi2ihc.demo.histology import Structures
from wsi2ihc.demo.layout import SURFACE_EPITHELIUM_PX, enlarged
from wsi2ihc.demo.render import paint, synthetic_structures
from wsi2ihc.demo.textures import filled
from wsi2ihc.geometry import Region, Size
from wsi2ihc.models.model_spec import Translator, file_sha256
from wsi2ihc.models.registry import BUNDLED, DEFAULT_MODEL, Model, load_model, make_translator
from wsi2ihc.stains import dab_density

FILE = BUNDLED / f"{DEFAULT_MODEL}.safetensors"
STAINED_FROM = 0.26
"""Density of DAB from which the card calls a pixel stained."""

CARD = Path(__file__).resolve().parents[2] / "docs" / "models" / DEFAULT_MODEL


IN_THE_CARD = (
    "PSNR, dB",
    "SSIM",
    "Stain R per pixel",
    "Stain R per pixel, mean over units",
    "Stain R, blocks of 64 px",
    "Stain R, blocks of 64 px, mean over units",
    "Stained area, MCC",
    "Stained area, Dice",
    "Dice if all were stained",
    "Batch variance / reference's",
    "Power at 2 px / reference's",
    "Power at 4 px / reference's",
)


@pytest.fixture(scope="module")
def model() -> Model:
    return load_model()


def test_its_file_is_small_and_in_half_precision() -> None:
    assert FILE.stat().st_size <= 12_000_000
    with safe_open(FILE, "pt") as file:
        slices = [file.get_slice(name) for name in file.keys()]  # noqa: SIM118 (no mapping)
    assert {one.get_dtype() for one in slices if len(one.get_shape()) == 4} == {"F16"}


def test_its_description_states_its_use_and_limits(model: Model) -> None:
    assert (model.stain, model.mpp) == ("pan-CK", 0.5)
    assert model.description.startswith("Demonstration, not HER2:")
    assert "MIT" in model.license
    assert "CC BY 4.0" in model.license
    assert model.spec is not None
    assert model.spec.training["recipe"] == "variance"
    assert str(model.spec.training["statistics"]).startswith("re-estimated")
    assert model.dependency.is_local


def test_its_card_describes_this_file() -> None:
    assert file_sha256(FILE) in (CARD / "README.md").read_text(encoding="utf-8")


def test_its_card_gives_the_metrics_of_the_evidence() -> None:
    card = (CARD / "README.md").read_text(encoding="utf-8").replace("−", "-")
    rows: dict[str, dict[str, str]] = {}
    for table in ("figures_grid", "figures_stain", "summary"):
        with (CARD / "evidence" / f"{table}.csv").open(newline="", encoding="utf-8") as file:
            rows |= {row.pop("figure"): row for row in csv.DictReader(file)}
    for name in IN_THE_CARD:
        (line,) = re.findall(rf"^\| {re.escape(name)} \|(.*)\|$", card, re.MULTILINE)
        stated = re.findall(r"-?\d+\.\d+", line)
        for text, value in zip(stated, filter(None, rows[name].values()), strict=True):
            decimals = len(text.partition(".")[2])
            assert float(text) == pytest.approx(float(value), abs=0.501 * 10**-decimals), name


def test_its_card_is_finished() -> None:
    assert not re.findall(r"@[A-Z]+@", (CARD / "README.md").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def scene() -> Structures:
    return synthetic_structures(Size(4000, 3000), seed=1)


def test_glands_of_the_demo_are_stained_and_most_stroma_is_not(model: Model, scene: Structures) -> None:
    """Most of it: the walls of fat cells and of some vessels come out as brown as glands (the card says so)."""
    translate = make_translator(model, "cpu", "fp32", exact=True)
    is_stained: dict[str, list[np.ndarray]] = {"glands": [], "stroma": []}
    for x in range(504, 2500, 504):  # places that are multiples of the layout's step
        for y in range(600, 2400, 600):
            region = Region(x, y, 256, 256)
            found = translated(translate, scene, region) > STAINED_FROM
            glands = filled(scene.glands, region) > 0
            empty = (filled(scene.lumens, region) > 0) | (filled(scene.fat, region) > 0)
            below_surface = enlarged(scene.layout.depth_px, region) > SURFACE_EPITHELIUM_PX + 10
            tissue = (enlarged(scene.layout.tissue_px, region) > 10) & ~empty
            is_stained["glands"].append(found[tissue & glands])
            is_stained["stroma"].append(found[tissue & ~glands & below_surface])
    share = {part: float(np.concatenate(values).mean()) for part, values in is_stained.items()}
    assert share["glands"] > 0.6
    assert share["stroma"] < 0.06
    background = translated(translate, scene, Region(96, 96, 256, 256))
    assert background.max() < STAINED_FROM / 2, "a tint is not a stain"


def translated(translate: Translator, scene: Structures, region: Region) -> np.ndarray:
    """Density of DAB of a region."""
    window = region.grown(translate.halo_px)
    return dab_density(np.asarray(translate(paint(scene, window)[np.newaxis])))[0]
