"""Small version of the training study: three recipes with one budget, λ, and another task; one process per run and
core.

Runs that are finished are kept in the work folder, so the measurement can be stopped and resumed. Two runs at a
time, of one thread each, do a third more than one run of two threads (measured on two cores).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.harness import Context, Row
from wsi2ihc.geometry import RGBImage
from wsi2ihc.models.model_file import load_checkpoint
from wsi2ihc.models.registry import counterstain
from wsi2ihc.training.data import Pair, read_pair
from wsi2ihc.training.evaluation.methods import fit_color_regression
from wsi2ihc.training.metrics.bootstrap import ImageMetadata, Scores, Subset, differences
from wsi2ihc.training.metrics.pair_statistics import GRADES, Scale
from wsi2ihc.training.options import resolve_options
from wsi2ihc.training.reports.document import Estimate
from wsi2ihc.training.training_curves import draw_curves
from wsi2ihc.training.training_setup import prepare
from wsi2ihc.training.validation import validate

SMALL = "--ngf 16 --ndf 32 --crop-size 128 --batch-size 8 --validate-every 4 --checkpoint-every 100 --no-tensorboard"
HEMIT = f"{SMALL} --mpp 0.5 --stain pan-CK --epochs 12"
FACADES = f"{SMALL} --mpp 1 --stain facade --epochs 30 --order BA --split-by-patch --validate-every 10"


@dataclass(frozen=True, slots=True)
class Run:
    """One training run: folder of its data, and options."""

    data: str
    options: str


RUNS: Mapping[str, Run] = {
    f"{name}-seed{seed}": Run("hemit256", f"{HEMIT} --seed {seed} {options}")
    for seed in (0, 1)
    for name, options in {
        "pix2pix": "--recipe pix2pix --architecture resnet",
        "pyramid": "--recipe pyramid",
        "variance-10": "--recipe variance --variance-weight 10",
        "variance-100": "--recipe variance --variance-weight 100",
        "variance-1": "--recipe variance --variance-weight 1",
        "variance-300": "--recipe variance --variance-weight 300",
    }.items()
} | {
    f"facades-{recipe}-seed0": Run("facades", f"{FACADES} --seed 0 --recipe {recipe} {weight}")
    for recipe, weight in (("pyramid", ""), ("variance", "--variance-weight 10"))
} | {
    "bilinear-seed0": Run("hemit256", f"{HEMIT} --seed 0 --recipe variance --variance-weight 10 --upsampling bilinear"),
}  # fmt: skip


def train_all(context: Context, at_once: int = 2) -> dict[str, Path]:
    """Run missing trainings; return the folder of each run."""
    folders = {name: context.work / "study" / name for name in RUNS}
    with ThreadPoolExecutor(at_once) as pool:
        for name, code in pool.map(lambda name: (name, _train(context, name, folders[name])), RUNS):
            print(f"  {name}: {'done' if not code else f'failed with {code}'}", flush=True)
    return folders


def _train(context: Context, name: str, folder: Path) -> int:
    if (folder / "summary.json").exists():
        return 0
    run = RUNS[name]
    data = context.data / run.data
    command = [sys.executable, "-m", "wsi2ihc.cli.main", "train", str(data), "--out", str(folder), *run.options.split()]
    if (data / "regions.csv").exists():
        command += ["--group-by", str(data / "regions.csv")]
    if (folder / "checkpoints" / "last.pt").exists():
        command = [*command[:5], "--resume", "--out", str(folder)]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f"{name}.log").open("a") as log:
        return subprocess.run(command, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"}).returncode


def measure(context: Context) -> list[Row]:
    folders = train_all(context)
    baselines = _baselines(context)
    scores = {name: _scores(context, name, folder) for name, folder in folders.items()}
    hemit = {name: one for name, one in scores.items() if RUNS[name].data == "hemit256"}
    facades = {name: one for name, one in scores.items() if RUNS[name].data == "facades"}
    rows = [Row(f"{name} on the validation groups", "reported", _line(one), None, one.values())
            for name, one in (baselines | hemit).items()]  # fmt: skip
    best_baseline = max(baselines.values(), key=lambda one: one.values()["stain_r_64px"])
    name = "variance-100-seed0"
    gain = differences(scores[name], best_baseline, ["stain_r_64px"])["stain_r_64px"]
    spent = json.loads((folders[name] / "summary.json").read_text()).get("seconds", float("nan"))
    rows.append(Row(f"correlation in blocks over the better baseline, {name}, one core for {spent / 60:.0f} min",
                    "≥ 0.15, interval without 0", _interval(gain), gain.value >= 0.15 and gain.low > 0))  # fmt: skip
    for seed in (0, 1):
        compared = [(f"variance-{weight}", "pyramid") for weight in (1, 10, 100, 300)]
        for one, other in (*compared, ("pyramid", "pix2pix"), ("variance-100", "pix2pix")):
            rows.append(_difference(scores, f"{one}-seed{seed}", f"{other}-seed{seed}"))
    rows += [Row(name, "reported", _line(one), None) for name, one in facades.items()]
    shown = [folders[f"{name}-seed0"] for name in ("pix2pix", "pyramid", "variance-100")]
    draw_curves(shown, context.work / "study" / "curves.png")
    return rows


def _scores(context: Context, name: str, folder: Path) -> Subset:
    """Evaluate the model of a finished run on all validation patches."""
    options = resolve_options(config=folder / "config.toml")
    job = prepare(context.data / RUNS[name].data, options)
    module, _, _ = load_checkpoint(folder / "model.safetensors")
    _, images = validate(
        module, job.validation, torch.device("cpu"), batch_size=8, multiple=options.size_multiple,
        samples=len(job.validation),
    )  # fmt: skip
    return _scored((pair, virtual, reference) for pair, (_, reference, virtual) in images)


def _baselines(context: Context) -> dict[str, Subset]:
    folder = context.data / "hemit256"
    job = prepare(folder, resolve_options({"group_by": str(folder / "regions.csv"), "mpp": 0.5, "stain": "pan-CK"}))
    regression = fit_color_regression(read_pair(pair) for pair in job.train)
    pairs = [(pair, *read_pair(pair)) for pair in job.validation]
    return {
        name: _scored((pair, translate(he[np.newaxis])[0], ihc) for pair, he, ihc in pairs)
        for name, translate in (("counterstain (baseline)", counterstain), ("color regression (baseline)", regression))
    }


def _scored(images: Iterable[tuple[Pair, RGBImage, RGBImage]]) -> Subset:
    """Score virtual images against their references; without groups each patch is its own group."""
    known = [(ImageMetadata(pair.name, pair.group or str(pair.ihc)), *both) for pair, *both in images]
    scores = Scores([image for image, *_ in known], Scale(GRADES[0], None))
    for image, virtual, reference in known:
        scores.add(image, virtual, reference)
    return scores.subset()


def _line(scores: Subset) -> str:
    values = scores.values()
    return (
        f"PSNR {values['psnr']:.2f} dB, SSIM {values['ssim']:.3f}, stain R {values['stain_r']:.3f} per pixel, "
        f"{_interval(scores.estimates()['stain_r_64px'])} in blocks, variance ratio {values['variance_ratio']:.2f}, "
        f"checkerboard {values['checkerboard_2']:.1f} and {values['checkerboard_4']:.1f}"
    )


def _difference(scores: Mapping[str, Subset], one: str, other: str) -> Row:
    names = ("psnr", "ssim", "stain_r", "stain_r_64px")
    parts = [f"{name} {_interval(gain)}" for name, gain in differences(scores[one], scores[other], names).items()]
    return Row(f"{one} less {other}", "reported", ", ".join(parts), None)


def _interval(estimate: Estimate) -> str:
    return f"{estimate.value:+.3f} ({estimate.low:+.3f} to {estimate.high:+.3f})"
