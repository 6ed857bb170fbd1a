"""Complete pipeline compared with the generator alone on the same windows (ResNet-9 on the CPU), without start-up."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import numpy as np

from benchmarks.harness import Context, Row
from benchmarks.networks import checkpoint
from wsi2ihc.models.registry import load_model
from wsi2ihc.slide import open_slide
from wsi2ihc.translation.job import TranslationJob, prepare
from wsi2ihc.translation.options import TranslateOptions
from wsi2ihc.translation.translate import translate_job


def measure(context: Context) -> list[Row]:
    with open_slide(context.slide) as slide:
        job = prepare(slide, load_model(checkpoint(context)), TranslateOptions(overwrite=True))
        output = context.work / "end_to_end.ome.tiff"
        patches = [job.prepared.reader(window.region)[np.newaxis] for window in job.plan.windows]
        alone, whole = [], []
        for _ in range(1 if context.quick else 5):
            alone.append(_alone(job, patches))
            whole.append(_whole(job, output))
    ratio = statistics.median(whole) / statistics.median(alone)
    measured = (
        f"{ratio:.3f} ({statistics.median(whole):.2f} s against {statistics.median(alone):.2f} s, "
        f"{len(patches)} windows of {job.plan.window_px / 1e6:.1f} Mpx, {job.inference.precision})"
    )
    return [Row("end to end over the generator alone", "≤ 1.05", measured, ratio <= 1.05)]


def _alone(job: TranslationJob, patches: list[np.ndarray]) -> float:
    started = time.perf_counter()
    for patch in patches:
        job.inference.translators[0](patch)
    return time.perf_counter() - started


def _whole(job: TranslationJob, output: Path) -> float:
    started = time.perf_counter()
    translate_job(job, output)
    return time.perf_counter() - started
