"""Computed px per kept px, and kept px per tissue px, without running a network."""

from __future__ import annotations

import time

import numpy as np
from scipy import ndimage

from benchmarks.harness import Context, Row
from wsi2ihc.geometry import Region
from wsi2ihc.translation.windows import Plan, TissueGrid, WindowLayout, plan_windows

RESNET = WindowLayout(halo_px=84, stride_px=4, multiple_px=4, max_window_px=2_600_000)


def measure(context: Context) -> list[Row]:
    from wsi2ihc.slide import open_slide
    from wsi2ihc.translation.inference_setup import prepare_slide
    from wsi2ihc.translation.options import TranslateOptions

    with open_slide(context.slide) as slide:
        scene = prepare_slide(slide, None, TranslateOptions())
    plans = {"the real slide (2220×2967)": plan_windows(scene.extent, scene.covered, RESNET)}
    for share in (0.05, 0.4):
        started = time.perf_counter()
        plans[f"100,000² px, {share:.0%} tissue"] = plan_windows(
            Region(0, 0, 100_000, 100_000), blobs(100_000, share), RESNET
        )
        print(f"  planned in {time.perf_counter() - started:.1f} s")
    return [row for name, plan in plans.items() for row in _rows(name, plan, barred=name.startswith("the real"))]


def blobs(side_px: int, share: float, mask_px: int = 16) -> TissueGrid:
    """Generate pieces of tissue of some millimeters with irregular borders that cover the fraction ``share`` of a
    square.
    """
    rng = np.random.default_rng(7)
    side = side_px // mask_px // 16 * 16
    noise = rng.normal(size=(side // 16, side // 16))
    smooth = ndimage.zoom(ndimage.gaussian_filter(noise, 12), 16, order=1)[:side, :side]
    ragged = (
        smooth / smooth.std() + 0.15 * ndimage.zoom(rng.normal(size=(side // 8, side // 8)), 8, order=1)[:side, :side]
    )
    # Real masks are closed and have a margin.
    pixels = ndimage.binary_dilation(
        ndimage.binary_opening(ragged > np.quantile(ragged, 1 - share), iterations=3), iterations=6
    )
    return TissueGrid(pixels, (0.0, 0.0), (side_px / pixels.shape[1], side_px / pixels.shape[0]))


def _rows(name: str, plan: Plan, *, barred: bool) -> list[Row]:
    work, kept = plan.window_px / plan.kept_px, plan.kept_px / plan.tissue_px
    cell = f"{len(plan.windows)} windows in cores of {plan.core_size}"
    return [
        Row(
            f"window px over kept core px, {name}",
            "≤ 1.5" if barred else "reported",
            f"{work:.3f} ({cell})",
            work <= 1.5 if barred else None,
        ),
        Row(
            f"kept core px over mask px, {name}",
            "≤ 1.25" if barred else "reported",
            f"{kept:.3f}",
            kept <= 1.25 if barred else None,
        ),
    ]
