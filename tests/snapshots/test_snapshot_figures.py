"""Figures: losses and metrics of short training runs, metrics of an evaluation."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from snapshot_commands import RECIPES, Ended
from snapshot_compare import Snapshot
from snapshot_structure import without_keys

Made = tuple[Path, Ended]

TIMES = frozenset({"seconds", "images_per_s"})


def rows(path: Path) -> list[dict[str, float | str]]:
    """Return the rows of a table, without times and hashes."""
    with path.open(newline="", encoding="utf-8") as file:
        return [
            {name: _cell(value) for name, value in row.items() if name not in TIMES and "sha256" not in name}
            for row in csv.DictReader(file)
        ]


def _cell(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return without_keys(text)


@pytest.mark.parametrize("name", RECIPES)
def test_losses_and_metrics_of_a_run(snapshot: Snapshot, trained: dict[str, Made], name: str) -> None:
    folder, ended = trained[name]
    assert len(rows(folder / "steps.csv")) == 2
    snapshot.numbers(f"training/{name}", {
        "steps": rows(folder / "steps.csv"), "validation": rows(folder / "validation.csv"),
        "summary": without_times(ended.json),
    })  # fmt: skip


def test_losses_of_a_longer_run_with_stain_augmentation(snapshot: Snapshot, trained: dict[str, Made]) -> None:
    """Without metrics: after four steps they depend on the CPU, by up to 5e-4."""
    steps = rows(trained["augmented"][0] / "steps.csv")
    assert len(steps) == 4
    snapshot.numbers("training/augmented", {"steps": steps})


@pytest.mark.parametrize("report", ["evaluated", "evaluated_slides", "inspected"])
def test_metrics_of_reports(snapshot: Snapshot, request: pytest.FixtureRequest, report: str) -> None:
    folder, _ = request.getfixturevalue(report)
    found = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    snapshot.numbers(f"metrics/{report}", without_times(found), relative=1e-6, absolute=1e-6)


def test_metrics_of_patches(snapshot: Snapshot, pair_dataset: Made) -> None:
    snapshot.numbers("metrics/patches", {"patches": rows(pair_dataset[0] / "pairs.csv")})


def without_times(value: Any) -> Any:
    """Return the numbers of a JSON value, as they are nested; no texts, times or versions."""
    if isinstance(value, dict):
        kept = {name: without_times(below) for name, below in value.items() if name not in TIMES | {"versions"}}
        return {name: below for name, below in kept.items() if below is not None and below != {}}
    if isinstance(value, list):
        kept_list = [without_times(below) for below in value]
        return [below for below in kept_list if below is not None and below != {}]
    return value if isinstance(value, int | float) else None
