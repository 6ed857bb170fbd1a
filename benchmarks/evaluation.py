"""Time of an evaluation relative to scikit-image's PSNR and SSIM alone, and its memory."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import imagecodecs
import numpy as np

from benchmarks.harness import Context, Row, child, interleaved
from wsi2ihc.demo import synthetic_tissue
from wsi2ihc.demo.ihc_pair import restain
from wsi2ihc.geometry import RGBImage

SIDE_PX = 256
IMAGES = 1000
UNITS = 50

ALLOWED_BYTES, BYTES_PER_IMAGE = 1_000_000_000, 32_000


def measure(context: Context) -> list[Row]:
    count = 100 if context.quick else IMAGES
    folder = _images(context.work / f"evaluation-{count}", count)
    return [_time(folder, count), _memory(folder, count, "folders"), _memory(folder, count, "models")]


def _images(folder: Path, count: int) -> Path:
    """Create references and blurred, noisy virtual images from pieces of synthetic slides, once."""
    if (folder / "done").exists():
        return folder
    pieces = list(_pieces())

    def write(number: int) -> None:
        reference = np.roll(pieces[number % len(pieces)], number * 7, axis=(0, 1))
        noise = np.random.default_rng(number).normal(0, 5, reference.shape)
        virtual = np.clip(cv2.GaussianBlur(reference, (0, 0), 1.5) + noise, 0, 255).astype(np.uint8)
        for name, image in (("reference", reference), ("virtual", virtual)):
            (folder / name).mkdir(parents=True, exist_ok=True)
            content = imagecodecs.png_encode(np.ascontiguousarray(image))
            (folder / name / f"unit{number % UNITS}_{number:05d}.png").write_bytes(content)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write, range(count)))
    (folder / "done").touch()
    return folder


def _pieces() -> Iterator[RGBImage]:
    for seed in range(4):
        slide = restain(synthetic_tissue(4 * SIDE_PX, 4 * SIDE_PX, seed=seed), seed, 2.0)
        for y in range(0, slide.shape[0], SIDE_PX):
            for x in range(0, slide.shape[1], SIDE_PX):
                yield slide[y : y + SIDE_PX, x : x + SIDE_PX]


def _time(folder: Path, count: int) -> Row:
    """Measure images in memory, alternating in groups of one hundred."""
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    from wsi2ihc.training.data import read_image
    from wsi2ihc.training.metrics.bootstrap import ImageMetadata, Scores
    from wsi2ihc.training.metrics.pair_statistics import Scale

    files = sorted((folder / "reference").iterdir(), key=lambda file: file.stem[::-1])[:100]  # of all units
    pairs = [(read_image(folder / "virtual" / file.name), read_image(file)) for file in files]
    images = [ImageMetadata(file.stem, file.stem.split("_")[0]) for file in files]

    def plain() -> float:
        started = time.perf_counter()
        for virtual, reference in pairs:
            peak_signal_noise_ratio(reference, virtual, data_range=255)
            structural_similarity(reference, virtual, channel_axis=-1, data_range=255)
        return time.perf_counter() - started

    def own() -> float:
        started = time.perf_counter()
        scores = Scores(images, Scale(0.2, 0.5))
        for image, pair in zip(images, pairs, strict=True):
            scores.add(image, *pair)
        scores.subset().estimates(
            resamples=2000 * len(pairs) // count
        )  # its part of the bootstrap, which runs once per set
        return time.perf_counter() - started

    seconds = interleaved({"plain": plain, "own": own}, max(2, count // len(pairs)))
    ratio = statistics.median(
        mine / theirs for mine, theirs in zip(seconds["own"], seconds["plain"], strict=True)
    )  # fmt: skip
    each = {name: 1000 * statistics.median(values) / len(pairs) for name, values in seconds.items()}
    measured = f"{ratio:.2f}× ({each['own']:.1f} ms a pair against {each['plain']:.1f} ms)"
    return Row("all metrics except FID and KID, over scikit-image's PSNR and SSIM alone, 256² px", "≤ 2×", measured,
               ratio <= 2, seconds)  # fmt: skip


def _memory(folder: Path, count: int, how: str) -> Row:
    """Return arguments of ``folders`` (one method, 50 resampling units) or ``models`` (a model, both baselines, one
    unit per image).
    """
    answer = child("benchmarks.evaluation", str(folder), how)
    allowed = ALLOWED_BYTES + BYTES_PER_IMAGE * count
    measured = f"{answer['peak_bytes'] / 1e9:.2f} GB; {answer['seconds']:.0f} s with the report"
    methods = {"folders": "one method, 50 units", "models": "three methods, a unit for every image"}[how]
    what = f"peak memory of evaluating {count} pairs of {SIDE_PX}² px, {methods}"
    return Row(what, f"≤ {allowed / 1e9:.2f} GB", measured, answer["peak_bytes"] <= allowed, answer)


def _run(folder: Path, how: str) -> dict[str, float]:
    from wsi2ihc.training.evaluation.image_folders import evaluate_folders
    from wsi2ihc.training.evaluation.options import EvaluateOptions
    from wsi2ihc.training.evaluation.patches import evaluate_patches
    from wsi2ihc.training.evaluation.report import make_report

    started = time.perf_counter()
    if how == "folders":
        options = EvaluateOptions(group_by="(?P<unit>unit[0-9]+)_")
        report = make_report(evaluate_folders(folder / "reference", [folder / "virtual"], None, options))
    else:
        _write_table(folder)
        report = make_report(evaluate_patches(folder, ["identity"]))
    return {"sections": len(report.sections), "seconds": time.perf_counter() - started}


def _write_table(folder: Path) -> None:
    """Write a ``pairs.csv`` without patients: twenty images for training, all others for test."""
    rows = ["he,ihc,split,her2"]
    names = sorted(file.name for file in (folder / "virtual").iterdir())
    for number, name in enumerate(names):
        split = "train" if number < 20 else "test"
        rows.append(f"virtual/{name},reference/{name},{split},{number % 4}")
    (folder / "pairs.csv").write_text("\n".join(rows) + "\n")


if __name__ == "__main__":
    print(json.dumps(_run(Path(sys.argv[1]), sys.argv[2])))
