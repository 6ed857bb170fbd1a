"""The generator alone on this CPU: speed against plain eager execution, error of bfloat16, exactness, memory.

``python -m benchmarks.generator_cpu`` prints a table; `measure` is for ``python -m benchmarks``.
"""

from __future__ import annotations

import json
import statistics
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.harness import Context, Row, child, interleaved
from benchmarks.networks import tissue
from wsi2ihc.geometry import RGBBatch, RGBImage
from wsi2ihc.models.device import cpu_has_fast_bf16
from wsi2ihc.models.fused_resnet import to_network
from wsi2ihc.models.inference import TorchTranslator
from wsi2ihc.models.networks import ResnetGenerator
from wsi2ihc.models.normalization import estimate_statistics
from wsi2ihc.models.registry import counterstain

MEMORY_SIDE_PX = 1200
"""A core of 1,024 px with its halo."""

CONTRAST_LEVELS = 35
"""Standard deviation of the output on tissue; pan-cytokeratin and HER2 with DAB have 30 to 45 gray levels."""


def measure(context: Context) -> list[Row]:
    pixels = tissue(context)
    module = stain_like_resnet(pixels, seed=0)
    rows = _speed(module, pixels, context.quick)
    rows += [_bf16_error(pixels, seed, CONTRAST_LEVELS) for seed in ((0,) if context.quick else (0, 1, 2))]
    rows += [_exactness(module, pixels, precision) for precision in ("fp32", "bf16")]
    rows += [_memory(precision) for precision in ("fp32", "bf16")]
    return [*rows, _counterstain_speed(pixels)]


def stain_like_resnet(pixels: RGBImage, *, seed: int, contrast_levels: float = CONTRAST_LEVELS) -> ResnetGenerator:
    """Return a ResNet-9 with random weights, statistics of tissue, and an output with the contrast of a stain."""
    torch.manual_seed(seed)
    crops = [pixels[y : y + 128, x : x + 128] for y in (900, 1800, 2400) for x in (900, 1200)]
    batch = to_network(torch.from_numpy(np.stack(crops)))
    module = estimate_statistics(ResnetGenerator(), [batch]).module
    assert isinstance(module, ResnetGenerator)
    head = module.model[-2]
    assert isinstance(head, torch.nn.Conv2d)
    with torch.inference_mode():
        flat = module(batch).clamp(-0.9999, 0.9999).atanh()
    factors = np.geomspace(0.01, 10, 200)
    spreads = [float((flat * factor).tanh().std()) * 127.5 for factor in factors]
    with torch.no_grad():
        head.weight.mul_(float(np.interp(contrast_levels, spreads, factors)))
    return module.eval()


def _speed(module: ResnetGenerator, pixels: RGBImage, quick: bool) -> list[Row]:
    side = 432 if quick else 688
    windows = np.ascontiguousarray(pixels[np.newaxis, 1800 : 1800 + side, 700 : 700 + side])
    plain = to_network(torch.from_numpy(windows)).contiguous()
    translators = {name: TorchTranslator(module, "cpu", name, exact=True) for name in ("fp32", "bf16")}  # type: ignore[arg-type]

    def eager() -> None:
        with torch.inference_mode():
            module(plain)

    runs = {"eager fp32": _timed(eager)}
    runs |= {name: _timed(lambda one=one: one(windows)) for name, one in translators.items()}
    for run in list(runs.values())[1:]:
        run()
    seconds = interleaved(runs, 1 if quick else 3)
    per_mpx = {name: statistics.median(values) * 1e9 / side**2 for name, values in seconds.items()}
    told = ", ".join(f"{name} {value:.0f}" for name, value in per_mpx.items())
    ratios = {name: per_mpx["eager fp32"] / per_mpx[name] for name in translators}
    met = ratios["bf16"] >= 2.5 if cpu_has_fast_bf16() else None
    return [
        Row(f"ResNet-9 on {torch.get_num_threads()} threads, windows of {side}²: ms per Mpx", "reported", told, None),
        Row("bf16 against plain eager fp32, contiguous", "≥ 2.5×", f"{ratios['bf16']:.1f}×", met),
        Row("fp32 against plain eager fp32, contiguous", "reported", f"{ratios['fp32']:.1f}×", None),
    ]


def _timed(run: Callable[[], object]) -> Callable[[], float]:
    def timed() -> float:
        started = time.perf_counter()
        run()
        return time.perf_counter() - started

    return timed


def _bf16_error(pixels: RGBImage, seed: int, contrast_levels: float) -> Row:
    module = stain_like_resnet(pixels, seed=seed, contrast_levels=contrast_levels)
    window = np.ascontiguousarray(pixels[np.newaxis, 2000:2440, 850:1290])
    exact, rough = (TorchTranslator(module, "cpu", p, exact=True)(window).astype(int) for p in ("fp32", "bf16"))  # type: ignore[arg-type]
    difference = np.abs(exact - rough)
    mean, high = float(difference.mean()), float(np.quantile(difference, 0.999))
    return Row(
        f"bf16 against fp32 on tissue, random weights {seed}, contrast {exact.std():.0f} gray levels",
        "mean ≤ 0.5, 99.9th percentile ≤ 3",
        f"mean {mean:.2f}, 99.9th percentile {high:.0f}, greatest {difference.max()}",
        mean <= 0.5 and high <= 3,
    )


def _exactness(module: ResnetGenerator, pixels: RGBImage, precision: str) -> Row:
    """Compare windows of random size and position on the stride with one pass over the whole image."""
    translator = TorchTranslator(module, "cpu", precision, exact=True)  # type: ignore[arg-type]
    halo = translator.halo_px
    image = pixels[1900:2420, 800:1300]
    whole = translator(image[np.newaxis])[0].astype(int)
    rng = np.random.default_rng(0)
    worst, tried = 0, 5
    for _ in range(tried):
        rows, columns = (4 * int(rng.integers(1, length // 4)) for length in whole.shape[:2])
        y, x = (4 * int(rng.integers(0, (n - m) // 4 + 1)) for n, m in zip(whole.shape, (rows, columns), strict=False))
        part = translator(image[np.newaxis, y : y + rows + 2 * halo, x : x + columns + 2 * halo])[0]
        worst = max(worst, int(np.abs(part - whole[y : y + rows, x : x + columns]).max()))
    bar = "0 gray levels" if precision == "fp32" else "reported"
    return Row(f"windows against whole, {precision}", bar, f"{worst} in {tried} windows", worst == 0 or None)


def _memory(precision: str) -> Row:
    found = child("benchmarks.generator_cpu", precision)
    measured, stated = found["measured"], found["stated"]
    return Row(
        f"working memory for a window of {MEMORY_SIDE_PX}², {precision}",
        "stated within 20 %",
        f"{measured / 1e6:.0f} MB measured, {stated / 1e6:.0f} MB stated ({stated / MEMORY_SIDE_PX**2:.0f} B/px)",
        abs(stated / measured - 1) <= 0.2,
    )


def _run_memory(precision: str) -> dict[str, float]:
    """Return the growth of resident memory during the translation of one window."""
    import psutil

    translator = TorchTranslator(ResnetGenerator().eval(), "cpu", precision, exact=True)  # type: ignore[arg-type]
    translator(np.zeros((1, 256, 256, 3), np.uint8))
    windows: RGBBatch = np.zeros((1, MEMORY_SIDE_PX, MEMORY_SIDE_PX, 3), np.uint8)
    process, peak, done = psutil.Process(), [0], threading.Event()
    before = process.memory_info().rss

    def watch() -> None:
        while not done.wait(0.002):
            peak[0] = max(peak[0], process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    translator(windows)
    done.set()
    watcher.join()
    return {"measured": peak[0] - before, "stated": translator.bytes_per_px * MEMORY_SIDE_PX**2}


def _counterstain_speed(pixels: RGBImage) -> Row:
    import cv2

    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    windows = np.ascontiguousarray(pixels[np.newaxis, :2048, :2048])
    run = _timed(lambda: counterstain(windows))
    rate = windows.shape[1] * windows.shape[2] / statistics.median(run() for _ in range(7)) / 1e6
    cv2.setNumThreads(threads)
    return Row("counterstain, one thread", "≥ 30 Mpx/s", f"{rate:.0f} Mpx/s", rate >= 30)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(_run_memory(sys.argv[1])))
    else:
        from benchmarks.__main__ import _default_data, _line

        for row in measure(Context(_default_data(), Path("build/benchmarks"))):
            print(_line(row), flush=True)
