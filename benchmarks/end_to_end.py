"""The whole pipeline against the generator alone on the same windows (ResNet-9 on the CPU), start-up apart."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import numpy as np

from benchmarks.harness import Context, Row
from benchmarks.networks import checkpoint
from wsi2ihc.generator.registry import load_generator
from wsi2ihc.slide import open_slide
from wsi2ihc.translation.job import Job
from wsi2ihc.translation.options import TranslateOptions
from wsi2ihc.translation.pipeline import prepare, run


def measure(context: Context) -> list[Row]:
    with open_slide(context.slide) as slide:
        job = prepare(slide, load_generator(checkpoint(context)), TranslateOptions(overwrite=True))
        output = context.work / "end_to_end.ome.tiff"
        patches = [job.scene.reader(window.region)[np.newaxis] for window in job.plan.windows]
        alone, whole = [], []
        for _ in range(1 if context.quick else 5):
            alone.append(_alone(job, patches))
            whole.append(_whole(job, output))
    ratio = statistics.median(whole) / statistics.median(alone)
    measured = (
        f"{ratio:.3f} ({statistics.median(whole):.2f} s against {statistics.median(alone):.2f} s, "
        f"{len(patches)} windows of {job.plan.window_px / 1e6:.1f} Mpx, {job.machine.precision})"
    )
    return [Row("end to end over the generator alone", "≤ 1.05", measured, ratio <= 1.05)]


def _alone(job: Job, patches: list[np.ndarray]) -> float:
    started = time.perf_counter()
    for patch in patches:
        job.machine.translators[0](patch)
    return time.perf_counter() - started


def _whole(job: Job, output: Path) -> float:
    started = time.perf_counter()
    run(job, output)
    return time.perf_counter() - started
