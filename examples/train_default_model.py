"""Train the model that comes with the program, and what it is compared with, and say how good they are.

python examples/train_default_model.py HEMIT256 OUT [NAME...]

HEMIT256 holds ``train/`` (H&E and pan-cytokeratin side by side) and ``regions.csv`` (which regions belong together).
NAME is one or more of variance, pyramid, pix2pix (compared under one budget) and model (trained three times as long,
and with its crops stained anew); without any, all are trained, two at a time, one thread each. Run it again to go on.
At the end OUT/report compares all on the test groups, and OUT/pan-ck-demo.safetensors is the model, in half precision.
"""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from wsi2ihc.generator.checkpoint import load_checkpoint, save_checkpoint
from wsi2ihc.training.stain import dab_density

CONFIG = Path(__file__).with_suffix(".toml")

RUNS = {
    "model": ["--recipe", "variance", "--stain-jitter", "0.2", "--epochs", "60"],
    "variance": ["--recipe", "variance"],
    "pyramid": ["--recipe", "pyramid"],
    "pix2pix": ["--recipe", "pix2pix", "--architecture", "resnet"],  # so that losses are compared, not networks
}

CHOSEN, NAME = "model", "pan-ck-demo"

WRONG_REGION = "15379_58805"
"""Its IHC does not belong to its H&E (found by `wsi2ihc dataset`)."""

STRETCHED_FROM = 0.05
"""Where a field held no epithelium, the contrast of its fluorescence was stretched until something became brown:
stroma, lymphocytes, even glass. Then the palest pixels, which elsewhere hold no DAB, have a density above this."""


def main() -> None:
    if len(sys.argv) < 3 or not RUNS.keys() >= set(sys.argv[3:]):
        sys.exit((__doc__ or "").strip())
    data, out, *names = sys.argv[1:]
    folder = Path(out)
    pairs = plausible(Path(data), folder / "hemit256")
    with ThreadPoolExecutor(2) as pool:
        codes = dict(zip(names or RUNS, pool.map(lambda name: train(name, pairs, folder), names or RUNS), strict=True))
    if failed := [name for name, code in codes.items() if code]:
        sys.exit(f"failed: {', '.join(failed)}; see their logs in {folder}, then run this again")
    if all((folder / name / "model.safetensors").exists() for name in RUNS):
        finish(pairs, folder)


def plausible(data: Path, view: Path) -> Path:
    """A folder of links to the pairs whose reference can be true."""
    (view / "train").mkdir(parents=True, exist_ok=True)
    for file in sorted((data / "train").iterdir()):
        link = view / "train" / file.name
        if WRONG_REGION not in file.name and not link.exists() and not is_stretched(file):
            link.symlink_to(file.resolve())
    with (data / "regions.csv").open(newline="", encoding="utf-8") as source:
        rows = [row for row in csv.reader(source) if row[0] != WRONG_REGION]
    with (view / "regions.csv").open("w", newline="", encoding="utf-8") as target:
        csv.writer(target).writerows(rows)
    return view


def is_stretched(pair: Path) -> bool:
    with Image.open(pair) as image:
        pixels = np.asarray(image.convert("RGB"))
    reference = np.ascontiguousarray(pixels[:, pixels.shape[1] // 2 :])
    return float(np.percentile(dab_density(reference), 5)) > STRETCHED_FROM


def train(name: str, pairs: Path, folder: Path) -> int:
    run = folder / name
    command = [sys.executable, "-m", "wsi2ihc.cli.main", "train", str(pairs), "--config", str(CONFIG), *RUNS[name]]
    command += ["--upsampling", "bilinear"]  # without the checkerboard of transposed convolutions
    command += ["--workers", "0", "--no-tensorboard", "--out", str(run)]
    if (run / "model.safetensors").exists():
        return 0
    if (run / "checkpoints" / "last.pt").exists():
        command.append("--resume")
    with (folder / f"{name}.log").open("a") as log:
        return subprocess.run(command, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"}).returncode


def finish(pairs: Path, folder: Path) -> None:
    models = [one for name in RUNS for one in ("--model", str(folder / name / "model.safetensors"))]
    subprocess.run(
        [sys.executable, "-m", "wsi2ihc.cli.main", "evaluate", str(pairs), *models, "--group-by", "regions.csv",
         "--out", str(folder / "report"), "--overwrite"], check=True,
    )  # fmt: skip
    module, spec, _ = load_checkpoint(folder / CHOSEN / "model.safetensors")
    print(f"{NAME}.safetensors: SHA-256 {save_checkpoint(folder / f'{NAME}.safetensors', module, spec, half=True)}")


if __name__ == "__main__":
    main()
