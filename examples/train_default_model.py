"""Train the model that comes with the program, and what it is compared with, and evaluate both.

python examples/train_default_model.py HEMIT256 OUT [NAME...]

HEMIT256 holds ``train/``: pairs side by side, H&E and pan-cytokeratin; the model's card says where they come from. NAME
is one or more of variance, pyramid, pix2pix (compared under one budget) and model (trained three times as long, and
with its crops augmented); without any, all are trained, two at a time, one thread each. Run it again to resume. When
all are there, OUT/pan-ck-demo.safetensors is the model in half precision, for wsi2ihc/generator/bundled; OUT/report
compares it with the others on the test groups, with figures; and OUT/evidence is what docs/models keeps of that.
"""

from __future__ import annotations

import csv
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from wsi2ihc.models.model_file import load_checkpoint, save_checkpoint
from wsi2ihc.models.registry import DEFAULT_MODEL
from wsi2ihc.stains import dab_density

CONFIG = Path(__file__).with_suffix(".toml")

RUNS = {
    "model": ["--recipe", "variance", "--stain-jitter", "0.2", "--epochs", "60"],
    "variance": ["--recipe", "variance"],
    "pyramid": ["--recipe", "pyramid"],
    "pix2pix": ["--recipe", "pix2pix", "--architecture", "resnet"],  # so that losses are compared, not networks
}

SPLIT = {
    "test": "13157_47492 13215_61369 14672_43991 15227_46112 16191_57044 17780_53623 18074_53645 8899_45052",
    "val": "10868_48536 12669_43301 15346_53883 16450_61612 16589_45753 18680_52433 6778_47441 7367_43385",
}
"""Regions, named by their place in the slide, that are not trained on; groups (see below) are whole in one split."""

NEAR = 900
"""Regions that are nearer to each other than this are one group: some overlap."""

NAME = re.compile(r"\d+_\d+_\d+(__M2)?\.jpg")

RUNNING: list[subprocess.Popen[bytes]] = []

WRONG_REGION = "15379_58805"
"""Its IHC does not belong to its H&E (found by `wsi2ihc dataset`)."""

STRETCHED_FROM = 0.05
"""Where a field holds no epithelium, something else is brown: stroma, lymphocytes, even background. (Most probably the
contrast of its weak fluorescence was stretched.) Then its palest pixels, which elsewhere hold no DAB, are denser."""


def main() -> None:
    if len(sys.argv) < 3 or not RUNS.keys() >= set(sys.argv[3:]):
        sys.exit((__doc__ or "").strip())
    pairs, out, *names = sys.argv[1:]
    source, folder = Path(pairs) / "train", Path(out)
    files = sorted(file for file in source.glob("*.jpg") if NAME.fullmatch(file.name))
    if not files:
        sys.exit(f"{source} holds no pairs (number_x_y.jpg): HEMIT256 is the folder above train/")
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    data = plausible(files, folder / "hemit256")
    with ThreadPoolExecutor(2) as pool:
        codes = dict(zip(names or RUNS, pool.map(lambda name: train(name, data, folder), names or RUNS), strict=True))
    if failed := [name for name, code in codes.items() if code]:
        sys.exit(f"failed: {', '.join(failed)}; see their logs in {folder}, then run this again")
    if all((folder / name / "model.safetensors").exists() for name in RUNS):
        finish(data, folder)


def plausible(files: Sequence[Path], folder: Path) -> Path:
    """A data set of links to all test pairs, and to those others whose reference can be true."""
    (folder / "train").mkdir(parents=True, exist_ok=True)
    split_of = {region: split for split, regions in SPLIT.items() for region in regions.split()}
    targets = {file.resolve() for file in files}
    for link in (folder / "train").iterdir():
        if link.resolve() not in targets:
            link.unlink()
    for file in files:
        link, region = folder / "train" / file.name, region_of(file)
        is_wrong = split_of.get(region) != "test" and (region == WRONG_REGION or is_stretched(file))
        if is_wrong:
            link.unlink(missing_ok=True)
        elif not link.exists():
            link.symlink_to(file.resolve())
    with (folder / "regions.csv").open("w", newline="", encoding="utf-8") as target:
        writer = csv.writer(target)
        writer.writerow(("region", "group", "split"))
        for number, group in enumerate(groups_of(map(region_of, files)), 1):
            writer.writerows((region, number, split_of.get(region, "train")) for region in group)
    return folder


def region_of(pair: Path) -> str:
    """The region of ``number_x_y.jpg``, or of ``number_x_y__M2.jpg``, a second image of the same field."""
    return "_".join(pair.stem.split("__")[0].split("_")[1:])


def groups_of(regions: Iterable[str]) -> list[list[str]]:
    """Regions that are joined by steps shorter than `NEAR`."""
    left, groups = sorted(set(regions)), []
    while left:
        group = [left.pop(0)]
        for one in group:
            near = [other for other in left if math.dist(place_of(one), place_of(other)) < NEAR]
            left = [other for other in left if other not in near]
            group += near
        groups.append(group)
    return groups


def place_of(region: str) -> tuple[int, ...]:
    return tuple(map(int, region.split("_")))


def is_stretched(pair: Path) -> bool:
    with Image.open(pair, formats=["PNG", "JPEG"]) as image:
        pixels = np.asarray(image.convert("RGB"))
    reference = np.ascontiguousarray(pixels[:, pixels.shape[1] // 2 :])
    return float(np.percentile(dab_density(reference), 5)) > STRETCHED_FROM


def train(name: str, pairs: Path, folder: Path) -> int:
    run = folder / name
    if (run / "model.safetensors").exists():
        return 0
    resume = ["--resume"] if (run / "checkpoints" / "last.pt").exists() else []
    with (folder / f"{name}.log").open("a") as log:
        process = subprocess.Popen(
            command("train", pairs, "--config", CONFIG, *RUNS[name], "--out", run, *resume),
            stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        RUNNING.append(process)
        return process.wait()


def stop(number: int, _: object) -> None:
    """Stop the trainings too; run again to resume from their last checkpoints."""
    for process in RUNNING:
        process.terminate()
    sys.exit(128 + number)


def finish(pairs: Path, folder: Path) -> None:
    """Write the model in half precision, compare all on the test groups, and keep what is small of the comparisons."""
    evidence, model = folder / "evidence", folder / f"{DEFAULT_MODEL}.safetensors"
    module, spec, _ = load_checkpoint(folder / "model" / "model.safetensors")
    print(f"{model}: SHA-256 {save_checkpoint(model, module, spec, half=True)}")
    recipes = [folder / name / "model.safetensors" for name in ("variance", "pyramid", "pix2pix")]
    report = compare([model, *recipes], pairs, folder / "report")
    among_recipes = compare(recipes, pairs, folder / "report-recipes")  # differences are from the first that is named
    shutil.rmtree(evidence, ignore_errors=True)
    evidence.mkdir()
    # figures and plots, but neither images (which are JPEGs) nor the long table of single images
    for file in [*(report / "tables").glob("*.csv"), *(report / "figures").glob("*.png")]:
        if file.name != "images.csv":
            shutil.copy(file, evidence)
    shutil.copy(among_recipes / "tables" / "differences.csv", evidence / "differences_variance.csv")
    draw = command("curves", *(folder / name for name in RUNS), "--out", evidence / "curves.png", "--overwrite")
    subprocess.run(draw, check=True)


def compare(models: Sequence[Path], pairs: Path, report: Path) -> Path:
    chosen = [one for file in models for one in ("--model", file)]
    score = command("evaluate", pairs, *chosen, "--group-by", "regions.csv", "--out", report, "--overwrite")
    subprocess.run(score, check=True)
    return report


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-P", "-m", "wsi2ihc.cli.main", *map(str, arguments)]


if __name__ == "__main__":
    main()
