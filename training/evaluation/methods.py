"""Methods under evaluation: models, baselines, and published metrics on the test split of BCI."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt

from wsi2ihc.errors import DatasetError, OptionError
from wsi2ihc.geometry import RGBBatch, RGBImage
from wsi2ihc.slide.grid import MAX_ENLARGEMENT

PIXELS_PER_IMAGE = 4096

_BLOCK_PX = 1 << 16
"""Pixels processed at a time: 40 bytes of terms per pixel, and 12 of colors."""

_TERMS = 10

Kind = Literal["model", "baseline", "given"]

MPP_TOLERANCE = 0.1
"""Relative difference between the resolutions of model and patches up to which nothing is resampled."""

_MAX_REDUCTION = 16.0
"""Maximum factor by which patches are reduced for a model; beyond it, almost no detail remains."""


@dataclass(frozen=True, slots=True, eq=False)
class ColorRegression:
    """A quadratic polynomial from color to color."""

    # (10, 3) float64, for the terms 1, r, g, b, r², g², b², rg, gb, br of values in [-1, 1], giving red, green and blue
    # in [-1, 1]
    coefficients: npt.NDArray[np.float64]

    def __call__(self, images: RGBBatch) -> RGBBatch:
        """Translate images (N, H, W, 3) uint8 pixel by pixel, rounded and clipped."""
        output = np.empty_like(images, order="C")
        coefficients = self.coefficients.astype(np.float32)
        pixels, done = images.reshape(-1, 3), output.reshape(-1, 3)
        for start in range(0, len(pixels), _BLOCK_PX):
            values = _terms(pixels[start : start + _BLOCK_PX]) @ coefficients
            done[start : start + _BLOCK_PX] = np.clip(np.rint((values + 1) * 127.5), 0, 255)
        return output


def fit_color_regression(
    pairs: Iterable[tuple[RGBImage, RGBImage]], seed: int = 0, pixels_per_image: int = PIXELS_PER_IMAGE
) -> ColorRegression:
    """Fit the polynomial to pixels of pairs by least squares.

    The normal equations are accumulated in float64, so memory does not depend on the number of pairs. If the colors do
    not determine the polynomial (an image of one color), the solution of minimum norm is taken.

    Parameters
    ----------
    pairs
        H&E and IHC images, (H, W, 3) uint8 each; read once.
    seed
        Of the choice of pixels.
    pixels_per_image
        Drawn from each pair with replacement; all pixels if a pair has no more than these.

    Raises
    ------
    DatasetError
        If there are no pairs, or the sizes of one differ.
    """
    random = np.random.default_rng(seed)
    squares, products, count = np.zeros((_TERMS, _TERMS)), np.zeros((_TERMS, 3)), 0
    for number, (he, ihc) in enumerate(pairs):
        if he.shape != ihc.shape:
            raise DatasetError(f"the images of pair {number} differ in size: {he.shape[:2]} and {ihc.shape[:2]}")
        inputs, outputs = he.reshape(-1, 3), ihc.reshape(-1, 3)
        if len(inputs) > pixels_per_image:
            chosen = random.integers(0, len(inputs), pixels_per_image)
            inputs, outputs = inputs[chosen], outputs[chosen]
        terms = _terms(inputs).astype(np.float64)
        squares += terms.T @ terms
        products += terms.T @ (outputs / 127.5 - 1)
        count += len(inputs)
    if count == 0:
        raise DatasetError("there are no pairs to fit a color regression to")
    return ColorRegression(np.asarray(np.linalg.lstsq(squares, products, rcond=None)[0], np.float64))


def _terms(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Return the polynomial terms of pixels (N, 3): (N, 10)."""
    terms = np.empty((len(pixels), _TERMS), np.float32)
    terms[:, 0] = 1
    linear = terms[:, 1:4]
    linear[:] = pixels
    linear /= 127.5
    linear -= 1
    np.square(linear, out=terms[:, 4:7])
    np.multiply(linear, np.roll(linear, -1, axis=1), out=terms[:, 7:])
    return terms


@dataclass(frozen=True, slots=True, eq=False)
class Method:
    """A way to make a virtual stain from H&E."""

    name: str  # in tables; unique among the methods compared
    kind: Kind  # a trained model, a baseline, or images made by another program
    # maps images (N, H, W, 3) uint8 to virtual images; None for given images
    translate: Callable[[RGBBatch], RGBBatch] | None
    multiple_px: int = 1  # sides of images must be multiples of this
    halo_px: int | None = 0  # radius of the receptive field; None if the method is not local
    metadata: Mapping[str, Any] = field(default_factory=dict)  # for the report: JSON values, no paths


def load_methods(models: Sequence[str], device: str, precision: str) -> list[Method]:
    """Load models by name or file. Patches are translated by one plain forward pass with the network's own padding.

    Raises
    ------
    ModelNotFoundError
        If a model does not exist.
    ModelError
        If a file is not a usable model.
    OptionError
        If a model is given twice.
    DeviceError
        If the device does not exist, or does not support the precision.
    """
    from wsi2ihc.models.registry import load_model, make_translator

    methods: list[Method] = []
    for model in models:
        generator = load_model(model)
        translator = make_translator(generator, device, precision, exact=False)
        dependency = generator.dependency
        metadata = {
            "version": generator.version,
            "stain": generator.stain,
            "mpp": generator.mpp,
            "license": generator.license,
            "description": generator.description,
        }
        # runs call their model model.safetensors; use the folder of the run to distinguish them
        name = generator.name if generator.name != "model" else Path(model).resolve().parent.name
        if any(method.name == name for method in methods):
            raise OptionError(f"two models are called {name}; rename one of the files, since tables show names")
        halo_px = dependency.radius_px if dependency.is_local else None
        methods.append(Method(name, "model", translator, translator.multiple_px, halo_px, metadata))
    return methods


def baselines(regression: ColorRegression | None, used_names: Sequence[str] = ()) -> list[Method]:
    """Return both baselines: ``counterstain``, and the color regression if it could be fitted."""
    from wsi2ihc.models.registry import counterstain

    found = []
    if "counterstain" not in used_names:
        what = "H&E without its eosin; not trained"
        found.append(Method("counterstain", "baseline", counterstain, metadata={"description": what}))
    if regression is not None:
        what = "a quadratic polynomial from color to color, fitted to the training split, pixel by pixel"
        found.append(Method("color regression", "baseline", regression, metadata={"description": what}))
    return found


def resolution_differs(method: Method, mpp: float | None) -> bool:
    """Return whether a model has another resolution than the patches; False if either is unknown."""
    model_mpp = method.metadata.get("mpp")
    return bool(model_mpp and mpp) and abs(model_mpp / mpp - 1) > MPP_TOLERANCE  # type: ignore[operator]


def at_model_resolution(method: Method, mpp: float | None) -> Method:
    """Return a method that resamples images to the model's µm per px, and its output back.

    Parameters
    ----------
    method
        A model.
    mpp
        µm per px of the images; None if unknown.

    Raises
    ------
    OptionError
        If the resolutions are too different for a meaningful evaluation.
    """
    if method.translate is None or not resolution_differs(method, mpp):
        return method
    assert mpp is not None
    model_mpp: float = method.metadata["mpp"]
    scale, translate, multiple_px = mpp / model_mpp, method.translate, method.multiple_px
    if not 1 / _MAX_REDUCTION <= scale <= MAX_ENLARGEMENT * (1 + MPP_TOLERANCE):
        raise OptionError(
            f"the patches have {mpp:g} µm/px, and {method.name} works at {model_mpp:g}: too different for an "
            "evaluation; use patches of its resolution, or correct theirs with --mpp"
        )

    def at_model_mpp(images: RGBBatch) -> RGBBatch:
        height, width = images.shape[1:3]
        scaled = max(1, round(width * scale)), max(1, round(height * scale))
        padded = [_padded(_resized(image, scaled), multiple_px) for image in images]
        translated = translate(np.stack(padded))[:, : scaled[1], : scaled[0]]
        return np.stack([_resized(image, (width, height)) for image in translated])

    halo_px = None if method.halo_px is None else math.ceil(method.halo_px / scale)
    return dataclasses.replace(method, translate=at_model_mpp, multiple_px=1, halo_px=halo_px)


def _resized(image: RGBImage, size: tuple[int, int]) -> RGBImage:
    smaller = size[0] < image.shape[1]
    method = cv2.INTER_AREA if smaller else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(np.ascontiguousarray(image), size, interpolation=method), np.uint8)


def _padded(image: RGBImage, multiple_px: int) -> RGBImage:
    """Pad by reflection at the right and bottom."""
    down, right = (-side % multiple_px for side in image.shape[:2])
    return np.asarray(cv2.copyMakeBorder(image, 0, down, 0, right, cv2.BORDER_REFLECT_101), np.uint8)


OVERALL = ""
"""Level of values over all images."""


def _by_level(*values: float, overall: float) -> Mapping[str, float]:
    return dict(zip(("0", "1+", "2+", "3+"), values, strict=True)) | {OVERALL: overall}


PUBLISHED: Mapping[str, Mapping[str, Mapping[str, float]]] = {
    "pix2pix (study)": {
        "psnr": _by_level(19.6, 22.22, 20.9, 19.2, overall=20.74),
        "ssim": _by_level(0.52, 0.47, 0.44, 0.39, overall=0.44),
        "fid": _by_level(914, 606, 474, 733, overall=472.6),
    },
    "pyramid pix2pix (study)": {
        "psnr": _by_level(19.2, 21.07, 20.4, 19.4, overall=21.15),
        "ssim": _by_level(0.46, 0.44, 0.42, 0.38, overall=0.43),
        "fid": _by_level(921, 643, 527, 759, overall=516.75),
    },
    "variance (study)": {
        "psnr": _by_level(20.48, 21.65, 21.3, 19.5, overall=22.16),
        "ssim": _by_level(0.55, 0.48, 0.46, 0.42, overall=0.47),
        "fid": _by_level(890, 472, 395, 508, overall=346.37),
    },
    "pyramid pix2pix (its authors)": {"psnr": {OVERALL: 21.16}, "ssim": {OVERALL: 0.477}},
    "BCIStainer (7-fold averaging)": {"psnr": {OVERALL: 23.39}, "ssim": {OVERALL: 0.583}},
    "UNIStainNet (512 px)": {"ssim": {OVERALL: 0.541}, "fid": {OVERALL: 34.6}},
}
"""Values by method with its source, metric and HER2 level."""

REMARKS = (
    "Published on BCI's test split; not comparable with values on other datasets.",
    "The study's overall PSNRs of pyramid pix2pix and of its own method lie above their levels' values weighted by the "
    "numbers of test images, which give 20.25 and 20.88 dB; its own, 22.16, lies above every one of its levels.",
    "Its FIDs per level follow the number of images (correlation with 1/N: 0.98), so they do not rank levels.",
    "On facades the study reports 12.91 dB, 0.24 and FID 611 for pyramid pix2pix, 12.80 dB, 0.25 and 549 for its own.",
    "What holds is the difference between methods under one budget: the study's method beats pyramid pix2pix by about "
    "0.6 dB (weighted as above) and 0.04 in SSIM, most on 3+.",
)
