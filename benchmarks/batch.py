"""Overhead of a batch over the translations themselves."""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.harness import Context, Row
from wsi2ihc.demo import make_demo_slide, synthetic_tissue
from wsi2ihc.demo.demo_slide import write_slide_file
from wsi2ihc.geometry import Size
from wsi2ihc.models.registry import load_model
from wsi2ihc.slide import open_slide
from wsi2ihc.translation.job import prepare
from wsi2ihc.translation.options import TranslateOptions
from wsi2ihc.translation.translate import translate, translate_job

SIDE_PX = 1000
SLIDES = 20
ALLOWED_S = 0.3


def measure(context: Context) -> list[Row]:
    count = 5 if context.quick else SLIDES
    folder = _slides(context.work / "batch-slides", count + 1)
    rounds = [_once(folder, context.work / "batch-out", count) for _ in range(1 if context.quick else 3)]
    batch_s, alone_s = (statistics.median(values) for values in zip(*rounds, strict=True))
    overhead_s = batch_s - alone_s
    what = f"`wsi2ihc batch`, a slide beyond the first, over its translation alone ({count} slides of {SIDE_PX}² px)"
    measured = f"{overhead_s:+.3f} s ({batch_s:.3f} s against {alone_s:.3f} s)"
    return [
        Row(what, f"≤ {ALLOWED_S} s", measured, overhead_s <= ALLOWED_S, {"rounds": rounds}),
        _in_bands(context),
    ]


def _slides(folder: Path, count: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        path = folder / f"{number:02d}.tiff"
        if not path.exists():
            image = synthetic_tissue(SIDE_PX, SIDE_PX, seed=number)
            write_slide_file(path, Size(SIDE_PX, SIDE_PX), iter([image]), "wsi2ihc synthetic H&E")
    return folder


def _once(slides: Path, out: Path, count: int) -> tuple[float, float]:
    """Return seconds per slide of the batch command after the first, and of sequential translation in this process."""
    files = sorted(slides.iterdir())[: count + 1]
    seconds = {}
    for many in (1, count + 1):
        shutil.rmtree(out, ignore_errors=True)
        links = out.with_name(f"{out.name}-links")
        shutil.rmtree(links, ignore_errors=True)
        links.mkdir()
        for file in files[:many]:
            (links / file.name).symlink_to(file)
        command = [sys.executable, "-m", "wsi2ihc.cli.main", "batch", str(links), str(out), "--model", "identity"]
        started = time.perf_counter()
        subprocess.run([*command, "--device", "cpu", "-q"], check=True)
        seconds[many] = time.perf_counter() - started
    shutil.rmtree(out)
    out.mkdir()
    generator, options = load_model("identity"), TranslateOptions(device="cpu")
    started = time.perf_counter()
    for file in files[1:]:
        with open_slide(file) as slide:
            translate_job(prepare(slide, generator, options), out / f"{file.stem}.ome.tiff")
    alone_s = (time.perf_counter() - started) / count
    return (seconds[count + 1] - seconds[1]) / count, alone_s


def _in_bands(context: Context) -> Row:
    """Measure the overhead of resumable bands with an almost free model."""
    slide_path, out = context.work / "bands.tiff", context.work / "bands.ome.tiff"
    if not slide_path.exists():
        make_demo_slide(slide_path)
    generator = load_model("identity")
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(1 if context.quick else 5):
        for resume, one in seconds.items():
            options = TranslateOptions(device="cpu", overwrite=True, resume=resume, tissue="none")
            started = time.perf_counter()
            with open_slide(slide_path) as slide:
                report = translate(slide, generator, out, options)
            one.append(time.perf_counter() - started)
    mpx = report.plan["kept_px"] / 1e6
    once, twice = (statistics.median(seconds[resume]) for resume in (False, True))
    measured = f"{1000 * (twice - once) / mpx:.0f} ms per Mpx more ({twice:.1f} s against {once:.1f} s)"
    return Row(f"`--resume`: bands, over one pass ({mpx:.0f} Mpx, `identity`)", "reported", measured, None)
