"""Resample patches to a model's resolution and its output back, as is done for slides."""

from __future__ import annotations

import dataclasses
import math

import cv2
import numpy as np

from wsi2ihc.arrays import RGBBatch, RGBImage
from wsi2ihc.errors import OptionError
from wsi2ihc.slide.grid import MAX_ENLARGEMENT

from .methods import Method

MPP_TOLERANCE = 0.1
"""Relative difference between the resolutions of model and patches up to which nothing is resampled."""

_MOST_REDUCTION = 16.0
"""Largest factor by which patches are reduced for a model; beyond it, almost no detail is left."""


def differs(method: Method, mpp: float | None) -> bool:
    """Whether a model has another resolution than the patches; False if either is unknown."""
    own = method.facts.get("mpp")
    return bool(own and mpp) and abs(own / mpp - 1) > MPP_TOLERANCE  # type: ignore[operator]


def at_own_resolution(method: Method, mpp: float | None) -> Method:
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
        If the images are so much coarser or finer that the model cannot be judged by them.
    """
    if method.translate is None or not differs(method, mpp):
        return method
    assert mpp is not None
    own: float = method.facts["mpp"]
    scale, translate, multiple_px = mpp / own, method.translate, method.multiple_px
    if not 1 / _MOST_REDUCTION <= scale <= MAX_ENLARGEMENT * (1 + MPP_TOLERANCE):
        raise OptionError(
            f"the patches have {mpp:g} µm/px, and {method.name} works at {own:g}: too different to judge it by; give "
            "patches of its resolution, or state theirs with --mpp if it is wrong"
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
