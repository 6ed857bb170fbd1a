"""Models on patches of another resolution than theirs: translated at the model's, as slides are, and brought back."""

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
"""Share by which a model's resolution may differ from the patches' without being resampled."""

_MOST_REDUCTION = 16.0
"""By which patches may be reduced for a model; beyond that next to nothing is left of them."""


def differs(method: Method, mpp: float | None) -> bool:
    """Whether a model works at another resolution than the patches have, as far as both are known."""
    own = method.facts.get("mpp")
    return bool(own and mpp) and abs(own / mpp - 1) > MPP_TOLERANCE  # type: ignore[operator]


def at_own_resolution(method: Method, mpp: float | None) -> Method:
    """A method whose images are brought to the model's µm per px, and whose answers are brought back.

    Parameters
    ----------
    method
        A model.
    mpp
        µm per px of the images; None where nothing states it.

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
        answers = translate(np.stack(padded))[:, : scaled[1], : scaled[0]]
        return np.stack([_resized(answer, (width, height)) for answer in answers])

    halo_px = None if method.halo_px is None else math.ceil(method.halo_px / scale)
    return dataclasses.replace(method, translate=at_model_mpp, multiple_px=1, halo_px=halo_px)


def _resized(image: RGBImage, size: tuple[int, int]) -> RGBImage:
    smaller = size[0] < image.shape[1]
    method = cv2.INTER_AREA if smaller else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(np.ascontiguousarray(image), size, interpolation=method), np.uint8)


def _padded(image: RGBImage, multiple_px: int) -> RGBImage:
    """The image continued by reflection at the right and at the bottom."""
    down, right = (-side % multiple_px for side in image.shape[:2])
    return np.asarray(cv2.copyMakeBorder(image, 0, down, 0, right, cv2.BORDER_REFLECT_101), np.uint8)
