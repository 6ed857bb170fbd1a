"""Maximum generator speed that the pipeline supports, with a stub that sleeps for the time of a GPU."""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness import Context, Row, child
from benchmarks.large_slides import gigapixel_slide
from wsi2ihc.geometry import RGBBatch

RATES_MPX_PER_S = (10, 30, 100, 300)


@dataclass(slots=True)
class SleepingTranslator:
    """Stub that returns its windows without a halo of 84 px, like ResNet-9, at a given rate; it releases the GIL."""

    mpx_per_s: float
    halo_px: int = 84
    stride_px: int = 4
    multiple_px: int = 16
    is_exact: bool = True
    bytes_per_px: float = 0.0

    def __call__(self, windows: RGBBatch) -> RGBBatch:
        time.sleep(windows.shape[0] * windows.shape[1] * windows.shape[2] / (self.mpx_per_s * 1e6))
        return windows[:, self.halo_px : -self.halo_px, self.halo_px : -self.halo_px]


def measure(context: Context) -> list[Row]:
    side = (9_000, 7_500) if context.quick else (36_000, 30_000)
    slide = gigapixel_slide(context.slide, context.work / f"gigapixel-{side[0]}.tif", width=side[0], height=side[1])
    rows = []
    for rate in RATES_MPX_PER_S:
        answer = child("benchmarks.stub_rates", str(rate), str(slide), str(context.work / "stub.ome.tiff"))
        share = answer["asleep_s"] / answer["seconds"]
        measured = (
            f"{share:.3f} ({answer['seconds']:.1f} s for {answer['window_px'] / 1e9:.2f} Gpx of windows; "
            f"{answer['cpu_s']:.1f} s of CPU in reading, Python and writing)"
        )
        rows.append(
            Row(
                f"fraction of a generator's {rate} Mpx/s sustained",
                "≥ 0.95" if rate == 30 else "reported",
                measured,
                share >= 0.95 if rate == 30 else None,
                answer,
            )
        )
    return rows


def _run(rate: float, slide: Path, output: Path) -> dict[str, float]:
    from wsi2ihc.models.registry import load_model
    from wsi2ihc.slide import open_slide
    from wsi2ihc.translation.job import prepare
    from wsi2ihc.translation.options import TranslateOptions
    from wsi2ihc.translation.translate import translate_job

    options = TranslateOptions(tissue="none", overwrite=True)
    with open_slide(slide) as opened:
        job = prepare(opened, load_model("identity"), options, translators=[SleepingTranslator(rate)])
        started, cpu = time.perf_counter(), os.times()
        report = translate_job(job, output)
        seconds, cpu_after = time.perf_counter() - started, os.times()
    window_px = report.plan["window_px"]
    return {
        "seconds": seconds,
        "asleep_s": window_px / (rate * 1e6),
        "window_px": window_px,
        "cpu_s": cpu_after.user + cpu_after.system - cpu.user - cpu.system,
    }


if __name__ == "__main__":
    print(json.dumps(_run(float(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))))
