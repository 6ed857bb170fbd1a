"""What a batch takes beside the translations themselves."""

from __future__ import annotations

import dataclasses
import shutil
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.harness import Context, Row
from wsi2ihc.batch.checking import check_folder, check_rows
from wsi2ihc.batch.local import LocalEngine
from wsi2ihc.batch.manifest import read_rows
from wsi2ihc.batch.options import BatchOptions
from wsi2ihc.batch.runner import run_batch
from wsi2ihc.demo import synthetic_tissue
from wsi2ihc.demo.slide_file import write_slide_file
from wsi2ihc.generator.registry import load_generator
from wsi2ihc.geometry import Size
from wsi2ihc.slide import open_slide
from wsi2ihc.translation.options import TranslateOptions
from wsi2ihc.translation.pipeline import prepare, run

SIDE_PX = 1000
SLIDES = 20
ALLOWED_S = 0.3


def measure(context: Context) -> list[Row]:
    count = 5 if context.quick else SLIDES
    folder = _slides(context.work / "batch-slides", count + 1)
    rounds = [_once(folder, context.work / "batch-out", count) for _ in range(1 if context.quick else 3)]
    batch_s, alone_s = (statistics.median(values) for values in zip(*rounds, strict=True))
    overhead_s = batch_s - alone_s
    what = f"a batch per slide beyond the first, over the translation alone ({count} slides of {SIDE_PX}² px)"
    measured = f"{overhead_s:+.3f} s ({batch_s:.3f} s against {alone_s:.3f} s)"
    return [Row(what, f"≤ {ALLOWED_S} s", measured, overhead_s <= ALLOWED_S, {"rounds": rounds})]


def _slides(folder: Path, count: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(2) as workers:
        for number in range(count):
            path = folder / f"{number:02d}.tiff"
            if not path.exists():
                image = synthetic_tissue(SIDE_PX, SIDE_PX, seed=number)
                write_slide_file(path, Size(SIDE_PX, SIDE_PX), iter([image]), workers, "wsi2ihc synthetic H&E")
    return folder


def _once(slides: Path, out: Path, count: int) -> tuple[float, float]:
    """Seconds a slide in a batch beyond its first, and of the same slides translated one after the other here."""
    seconds = {}
    for many in (1, count + 1):
        shutil.rmtree(out, ignore_errors=True)
        rows, _ = read_rows(str(slides), "identity", TranslateOptions(device="cpu"))
        check_folder(out)
        tasks, _ = check_rows(rows[:many], out, rows)
        started = time.perf_counter()
        states = run_batch(tasks, lambda: LocalEngine(out, "cpu", BatchOptions()), BatchOptions())
        seconds[many] = time.perf_counter() - started
        assert all(state.status == "done" for state in states)
    shutil.rmtree(out)
    out.mkdir()
    generator, options = load_generator("identity"), TranslateOptions(device="cpu")
    started = time.perf_counter()
    for task in tasks[1:]:
        with open_slide(task.slide) as slide:
            run(prepare(slide, generator, dataclasses.replace(options, overwrite=True)), task.output)
    alone_s = (time.perf_counter() - started) / count
    return (seconds[count + 1] - seconds[1]) / count, alone_s
