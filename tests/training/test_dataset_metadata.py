"""Precedence of dataset metadata: options, then the dataset, then a preset."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from make_pairs import kinds_first

from wsi2ihc.training.data import PairedData, assign_groups, assign_roles, find_pairs
from wsi2ihc.training.options import resolve_options
from wsi2ihc.training.training_setup import prepare, resolve_metadata, splits_by_patch

OWN = {"mpp": 0.25, "stain": "ER", "license": "CC0", "name": "ours"}
BCI_NAMES = {"train": [f"{number:05}_train_2+" for number in range(8)]}


def data_of(folder: Path, statement: dict[str, Any] | None = None, *, grouped: bool = False) -> PairedData:
    kinds_first(folder, BCI_NAMES)
    if statement is not None:
        (folder / "dataset.json").write_text(json.dumps(statement))
    if grouped:
        rows = [
            f"HE/train/{name}.png,IHC/train/{name}.png,P{number % 4}" for number, name in enumerate(BCI_NAMES["train"])
        ]
        (folder / "pairs.csv").write_text("\n".join(["he,ihc,patient", *rows]))
    return assign_groups(find_pairs(folder), None)


def test_preset_fills_in_missing_metadata(tmp_path: Path) -> None:
    data, options = data_of(tmp_path), resolve_options({"preset": "bci"})
    facts = resolve_metadata(data, options)
    assert (facts.mpp, facts.stain, facts.name) == (0.46, "HER2", "BCI")
    assert "non-commercial" in facts.license
    assert facts.notes == ()
    assert splits_by_patch(data, options)


def test_dataset_takes_precedence_over_preset_with_a_note(tmp_path: Path) -> None:
    facts = resolve_metadata(data_of(tmp_path, OWN), resolve_options({"preset": "bci"}))
    assert (facts.mpp, facts.stain, facts.license, facts.name) == (0.25, "ER", "CC0", "ours")
    assert len(facts.notes) == 4
    assert (
        "states the stain ER, the preset bci HER2: the dataset takes precedence (override with --stain"
        in facts.notes[1]
    )


def test_options_take_precedence(tmp_path: Path) -> None:
    said = {"preset": "bci", "mpp": 1.0, "stain": "PR", "data_license": "mine", "data_name": "me"}
    facts = resolve_metadata(data_of(tmp_path, OWN), resolve_options(said))
    assert (facts.mpp, facts.stain, facts.license, facts.name, facts.notes) == (1.0, "PR", "mine", "me", ())


def test_agreement_causes_no_note(tmp_path: Path) -> None:
    facts = resolve_metadata(data_of(tmp_path, {"mpp": 0.4601, "stain": "HER2"}), resolve_options({"preset": "bci"}))
    assert facts.notes == ()
    assert (facts.mpp, facts.name) == (0.4601, "BCI")


def test_defaults_are_noted(tmp_path: Path) -> None:
    folder = tmp_path / "ours"
    facts = resolve_metadata(data_of(folder), resolve_options())
    assert (facts.mpp, facts.stain, facts.license, facts.name) == (0.5, "IHC", "", "ours")
    assert len(facts.notes) == 2


def test_preset_does_not_split_patients(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data, options = data_of(tmp_path, grouped=True), resolve_options({"preset": "bci"})
    assert not splits_by_patch(data, options)
    (note,) = resolve_metadata(data, options).notes
    assert "states groups of patches (patient)" in note
    split = assign_roles(data, split_by_patch=splits_by_patch(data, options))
    assert not {pair.group for pair in split.of("train")} & {pair.group for pair in split.of("validation")}
    assert "flatter" not in caplog.text
    asked = resolve_options({"preset": "bci", "split_by_patch": True})
    assert splits_by_patch(data, asked)
    assert resolve_metadata(data, asked).notes == ()


def test_job_has_the_metadata(tmp_path: Path) -> None:
    data_of(tmp_path, {"stain": "ER"}, grouped=True)
    small = {"batch_size": 2, "crop_size": 32, "octaves": 1, "preset": "bci"}
    job = prepare(tmp_path, resolve_options(small))
    assert (job.spec.stain, job.spec.mpp, job.data_name, job.data.grouped_by) == ("ER", 0.46, "BCI", "patient")
    assert len(job.notes) == 2


def test_split_by_patch_can_be_disabled(tmp_path: Path) -> None:
    assert not splits_by_patch(data_of(tmp_path), resolve_options({"preset": "bci", "split_by_patch": False}))
