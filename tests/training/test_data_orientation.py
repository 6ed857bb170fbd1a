"""Stains that are exchanged are noticed before a model learns the wrong way round."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from make_pairs import kinds_first, save
from tiny_runs import tiny

from wsi2ihc.demo import synthetic_tissue
from wsi2ihc.demo.restained import restain
from wsi2ihc.errors import DatasetError
from wsi2ihc.training.data import find_pairs
from wsi2ihc.training.data.orientation import exchanged
from wsi2ihc.training.job import prepare


def stained_pairs(folder: Path, he: str, ihc: str) -> Path:
    """Three pairs to train on and one to validate, of tissue."""
    for number, split in enumerate(("train", "train", "train", "val")):
        tissue = synthetic_tissue(128, 128, seed=number)
        save(tissue, folder / he / split / f"{number}.png")
        save(restain(tissue, number, 3.0), folder / ihc / split / f"{number}.png")
    return folder


def test_stains_in_their_places_are_no_doubt(tmp_path: Path) -> None:
    assert exchanged(find_pairs(stained_pairs(tmp_path, "HE", "IHC")).pairs) == ""


def test_letters_that_the_pixels_contradict_are_refused(tmp_path: Path) -> None:
    stained_pairs(tmp_path, "B", "A")
    with pytest.raises(DatasetError, match=r"look like IHC, .* give the other --order"):
        prepare(tmp_path, tiny())
    assert prepare(tmp_path, tiny(order="BA")).notes == ()


def test_names_that_the_pixels_contradict_are_warned_of(tmp_path: Path) -> None:
    (note,) = prepare(stained_pairs(tmp_path, "IHC", "HE"), tiny()).notes
    assert "look like IHC, and their partners like H&E" in note


def test_images_that_are_neither_are_no_doubt(tmp_path: Path) -> None:
    assert exchanged(find_pairs(kinds_first(tmp_path)).pairs) == ""
    for kind in ("HE", "IHC"):
        save(np.full((64, 64, 3), 240, np.uint8), tmp_path / "blank" / kind / "x.png")
    assert exchanged(find_pairs(tmp_path / "blank").pairs) == ""
