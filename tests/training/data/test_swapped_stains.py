"""Detection of swapped stains before training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from make_pairs import kinds_first, save
from tiny_runs import tiny

from wsi2ihc.demo import synthetic_tissue
from wsi2ihc.demo.ihc_pair import restain
from wsi2ihc.errors import DatasetError
from wsi2ihc.training.data import find_pairs
from wsi2ihc.training.data.images import describe_swapped_stains
from wsi2ihc.training.training_setup import prepare


def stained_pairs(folder: Path, he: str, ihc: str) -> Path:
    """Three pairs to train on and one to validate, of tissue."""
    for number, split in enumerate(("train", "train", "train", "val")):
        tissue = synthetic_tissue(128, 128, seed=number)
        save(tissue, folder / he / split / f"{number}.png")
        save(restain(tissue, number, 3.0), folder / ihc / split / f"{number}.png")
    return folder


def test_correct_stains_cause_no_warning(tmp_path: Path) -> None:
    assert describe_swapped_stains(find_pairs(stained_pairs(tmp_path, "HE", "IHC")).pairs) == ""


def test_letters_that_contradict_the_pixels_are_an_error(tmp_path: Path) -> None:
    stained_pairs(tmp_path, "B", "A")
    with pytest.raises(DatasetError, match=r"look like IHC, .* use the other --order"):
        prepare(tmp_path, tiny())
    assert prepare(tmp_path, tiny(order="BA")).notes == ()


def test_names_that_contradict_the_pixels_are_a_warning(tmp_path: Path) -> None:
    (note,) = prepare(stained_pairs(tmp_path, "IHC", "HE"), tiny()).notes
    assert "look like IHC, and their partners like H&E" in note


def test_other_images_cause_no_warning(tmp_path: Path) -> None:
    assert describe_swapped_stains(find_pairs(kinds_first(tmp_path)).pairs) == ""
    for kind in ("HE", "IHC"):
        save(np.full((64, 64, 3), 240, np.uint8), tmp_path / "blank" / kind / "x.png")
    assert describe_swapped_stains(find_pairs(tmp_path / "blank").pairs) == ""
