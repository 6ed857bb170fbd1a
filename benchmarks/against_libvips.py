"""Pipeline with the `identity` model compared with libvips: equal tiles, pyramid, quality and subsampling.

Each run is a process of its own; it times the work alone and reports start-up apart.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from pathlib import Path

from benchmarks.harness import Context, Row, child, interleaved, ratio_of_medians
from benchmarks.large_slides import gigapixel_slide

CORES = str(len(os.sched_getaffinity(0)))


def measure(context: Context) -> list[Row]:
    side = (9_000, 7_500) if context.quick else (36_000, 30_000)
    name = f"gigapixel-{side[0]}.tif"
    slide = gigapixel_slide(context.slide, context.work / name, width=side[0], height=side[1])
    ours, theirs = context.work / "identity.ome.tiff", context.work / "libvips.tif"
    details: dict[str, list[dict[str, object]]] = {"wsi2ihc": [], "libvips": []}

    def run(who: str, output: Path) -> float:
        answer = child(
            "benchmarks.against_libvips", who, str(slide), str(output), environment={"VIPS_CONCURRENCY": CORES}
        )
        details[who].append(answer)
        return float(answer["seconds"])

    seconds = interleaved(
        {"wsi2ihc": lambda: run("wsi2ihc", ours), "libvips": lambda: run("libvips", theirs)}, 1 if context.quick else 5
    )
    ratio = ratio_of_medians(seconds, "wsi2ihc", "libvips")
    medians = {who: statistics.median(values) for who, values in seconds.items()}
    start_up = statistics.median(float(answer["start_up_s"]) for answer in details["wsi2ihc"])  # type: ignore[arg-type]
    measured = (
        f"{ratio:.2f}× ({medians['wsi2ihc']:.2f} s against {medians['libvips']:.2f} s for "
        f"{side[0] * side[1] / 1e9:.2f} Gpx; start-up, tissue overview included, {start_up:.1f} s apart)"
    )
    return [Row("identity, whole path, over libvips tiffsave", "≤ 1.0×", measured, ratio <= 1.0, details)]


def _ours(slide: Path, output: Path) -> dict[str, float]:
    started = time.perf_counter()
    from wsi2ihc.models.registry import load_model
    from wsi2ihc.pyramid import PyramidOptions
    from wsi2ihc.slide import open_slide
    from wsi2ihc.translation.job import prepare
    from wsi2ihc.translation.options import TranslateOptions
    from wsi2ihc.translation.translate import translate_job

    options = TranslateOptions(tissue="none", overwrite=True, pyramid=PyramidOptions(subsampling="420"))
    with open_slide(slide) as opened:
        job = prepare(opened, load_model("identity"), options)
        ready = time.perf_counter()
        translate_job(job, output)
    return {"start_up_s": ready - started, "seconds": time.perf_counter() - ready, "bytes": output.stat().st_size}


def _theirs(slide: Path, output: Path) -> dict[str, float]:
    started = time.perf_counter()
    import pyvips

    pyvips.Image.black(16, 16).avg()
    ready = time.perf_counter()
    # Below quality 90 libvips halves the colors both ways, as requested.
    pyvips.Image.new_from_file(str(slide), access="sequential").tiffsave(
        str(output), compression="jpeg", Q=85, tile=True, tile_width=512, tile_height=512, pyramid=True, subifd=True,
        bigtiff=True,
    )  # fmt: skip
    return {"start_up_s": ready - started, "seconds": time.perf_counter() - ready, "bytes": output.stat().st_size}


if __name__ == "__main__":
    who, slide, output = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    print(json.dumps({"wsi2ihc": _ours, "libvips": _theirs}[who](slide, output)))
