"""The study's claims in small: its three recipes under one budget, λ, and another task; one run per process and core.

Runs that are finished are kept in the work folder, so the measurement can be stopped and gone on with. Two runs at a
time, of one thread each, do a third more than one run of two threads (measured on two cores).
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness import Context

SMALL = "--ngf 16 --ndf 32 --crop-size 128 --batch-size 8 --validate-every 4 --checkpoint-every 100 --no-tensorboard"
HEMIT = f"{SMALL} --mpp 0.5 --stain pan-CK --epochs 12"
FACADES = f"{SMALL} --mpp 1 --stain facade --epochs 30 --order BA --split-by-patch --validate-every 10"


@dataclass(frozen=True, slots=True)
class Run:
    """One training run: the folder of its data, and its options."""

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
    }.items()
} | {
    f"facades-{recipe}-seed0": Run("facades", f"{FACADES} --recipe {recipe} --seed 0")
    for recipe in ("pyramid", "variance")
} | {
    "unet-seed0": Run("hemit256", f"{HEMIT} --seed 0 --recipe pix2pix --depth 7"),
    "resize-seed0": Run("hemit256", f"{HEMIT} --seed 0 --recipe variance --upsampling resize"),
}  # fmt: skip


def train_all(context: Context, at_once: int = 2) -> dict[str, Path]:
    """Train what is not trained yet; the folder of each run."""
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
