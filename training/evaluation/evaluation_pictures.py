"""The pictures of an evaluation: grids of patches, and plots."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from wsi2ihc.arrays import RGBImage

from ..pictures import picture_grid
from ..reporting.document import Estimate, Picture
from ..reporting.plots import bars, confusion, histograms, scatter_density
from ..stain import dab_density
from .figure_tables import Estimator
from .figures import FIGURES
from .levels import LEVELS
from .results import Evaluation, Example, MethodResult
from .sums import BINS, DENSITY_PER_BIN, JOINT_BINS, PLANES

BARS = ("psnr", "ssim", "stain_r", "stain_r_64px")
DIFFERENCE_OD = 0.8
"""Difference of density at which the colour of a picture of differences is full."""

NEGLIGIBLE = 1e-6
"""Share of the pixels below which a bin is not worth the room."""

_LESS, _NONE, _MORE = (33, 102, 172), (247, 247, 247), (178, 24, 43)


def density_difference(virtual: RGBImage, reference: RGBImage) -> RGBImage:
    """Density of DAB of the virtual image less that of the reference: red where there is too much, blue too little."""
    difference = np.clip((dab_density(virtual) - dab_density(reference)) / DIFFERENCE_OD, -1, 1)[..., np.newaxis]
    strength = np.abs(difference)
    towards = np.where(difference > 0, np.array(_MORE, np.float32), np.array(_LESS, np.float32))
    return np.asarray(np.rint(strength * towards + (1 - strength) * np.array(_NONE, np.float32)), np.uint8)


def example_pictures(evaluation: Evaluation) -> list[Picture]:
    """A grid for every reason why examples were chosen."""
    whys = list(dict.fromkeys(example.why for example in evaluation.examples))
    models = [result.method.name for result in evaluation.methods if result.method.kind != "floor"]
    return [
        Picture(
            f"examples_{number}",
            f"Patches: {why}",
            _grid([example for example in evaluation.examples if example.why == why], models),
            "From the left: H&E, reference, virtual stains; last, per model, density of DAB less the reference's: red "
            "where there is too much stain, blue where there is too little.",
            "photograph",
        )
        for number, why in enumerate(whys, 1)
    ]


def _grid(examples: Sequence[Example], models: Sequence[str]) -> RGBImage:
    labels = [
        *(["H&E"] if examples[0].he is not None else []), "reference", *examples[0].virtual,
        *(f"{name}: difference" for name in models),
    ]  # fmt: skip
    rows = [
        (
            *(() if example.he is None else (example.he,)),
            example.reference,
            *example.virtual.values(),
            *(density_difference(example.virtual[name], example.reference) for name in models),
        )
        for example in examples
    ]
    return picture_grid(rows, labels, [example.image.name for example in examples])


def level_pictures(evaluation: Evaluation, estimator: Estimator) -> Iterator[Picture]:
    """Bars of some figures by HER2 level."""
    if not evaluation.levels:
        return
    for name in BARS:
        values: Mapping[str, Mapping[str, Estimate]] = {
            result.method.name: {level: estimator(result, level)[name] for level in evaluation.levels}
            for result in evaluation.methods
        }
        title = FIGURES[name].title
        yield Picture(f"bars_{name}", f"{title} by HER2 level", bars(values, title, ""), "Whiskers: 95 % intervals.")


def distribution_pictures(evaluation: Evaluation) -> Iterator[Picture]:
    """Histograms of colours and of density, and each model's density against the reference's."""
    if not evaluation.methods:
        return
    sides = {"reference": evaluation.methods[0].scores.subset().histograms[1]}
    sides |= {result.method.name: result.scores.subset().histograms[0] for result in evaluation.methods}
    for number, plane in enumerate(PLANES):
        is_density = plane == "dab"
        series = {name: own[number] for name, own in sides.items()}
        shown = _shown_bins(np.stack(list(series.values()))) if is_density else BINS
        edges = np.arange(shown + 1) * (DENSITY_PER_BIN if is_density else 1.0)
        series = {name: counts[:shown] for name, counts in series.items()}
        title = "Density of DAB" if is_density else f"Level of {plane}"
        plot = histograms(series, edges, title, "density, OD" if is_density else "grey level", log=is_density)
        yield Picture(f"histogram_{plane}", title, plot, "Over all pixels of all images.")
    for number, result in enumerate(evaluation.methods, 1):
        yield Picture(f"scatter_{number}", f"{result.method.name}: density against the reference's", _scatter(result))


def _scatter(result: MethodResult) -> RGBImage:
    joint = result.scores.joint
    shown = _shown_bins(np.stack([joint.sum(0), joint.sum(1)]))
    edges = np.arange(shown + 1) * DENSITY_PER_BIN * (BINS // JOINT_BINS)
    return scatter_density(
        joint[:shown, :shown].T, edges, edges, "Density of DAB per pixel", "reference, OD", f"{result.method.name}, OD"
    )


def _shown_bins(counts: npt.NDArray[np.floating] | npt.NDArray[np.integer]) -> int:
    """How many of the bins of several series (N, bins) hold more than the odd pixel."""
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    return int(np.flatnonzero((shares > NEGLIGIBLE).any(0)).max(initial=7)) + 1


def call_pictures(evaluation: Evaluation) -> Iterator[Picture]:
    """Confusion matrices of HER2 levels."""
    called = [("reference", evaluation.reference_calls)]
    called += [(result.method.name, result.calls) for result in evaluation.methods if result.method.kind != "floor"]
    for number, (name, calls) in enumerate(called, 1):
        for one in calls:
            title = f"HER2 level of {name}, read by {one.by}"
            plot = confusion(one.confusion, LEVELS, title, "called", "labelled")
            yield Picture(f"confusion_{number}_{one.by.replace(' ', '_').lower()}", title, plot)
