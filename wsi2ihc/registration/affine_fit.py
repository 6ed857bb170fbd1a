"""An affine map from matches of which many may be wrong."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from .field_fit import TUKEY
from .transform import FloatArray

LEAST_MATCHES = 6

STRETCH = (0.85, 1.18)
"""What a section can shrink or swell by between two cuts, stains and scanners; beyond, a map is impossible. Along the
worse axis of the pair of kidney sections at hand it is 0.905."""

LARGEST_SHEAR = 1.18
"""Ratio of the two stretches."""

_ROUNDS = 30


def fit_affine(
    points_um: FloatArray, found_um: FloatArray, weights: FloatArray, tolerance_um: float
) -> tuple[FloatArray, npt.NDArray[np.bool_]] | None:
    """The map that most matches agree on: RANSAC, then least squares with Tukey's weights.

    Parameters
    ----------
    points_um, found_um
        (N, 2) each.
    weights
        (N,), how much each is believed.
    tolerance_um
        How far a match may lie from the map and still agree with it.

    Returns
    -------
    matrix, agree
        (2, 3) and (N,); None where there is no map, or an impossible one.
    """
    if len(points_um) < LEAST_MATCHES:
        return None
    guess, _ = cv2.estimateAffine2D(
        points_um.astype(np.float32), found_um.astype(np.float32), method=cv2.RANSAC,
        ransacReprojThreshold=tolerance_um, maxIters=5000, confidence=0.999,
    )  # fmt: skip
    if guess is None or not np.isfinite(guess).all():
        return None
    matrix = np.asarray(guess, np.float64)
    homogeneous = np.column_stack([points_um, np.ones(len(points_um))])
    for _ in range(_ROUNDS):
        misses = np.hypot(*(homogeneous @ matrix.T - found_um).T)
        near = misses[misses < tolerance_um]
        spread = max(1.4826 * float(np.median(near)) if near.size else tolerance_um, tolerance_um / 5)
        roots = np.sqrt(weights) * np.clip(1 - (misses / (TUKEY * spread)) ** 2, 0, None)
        if (roots > 0).sum() < LEAST_MATCHES:
            break
        matrix = np.linalg.lstsq(homogeneous * roots[:, None], found_um * roots[:, None], rcond=None)[0].T
    if not is_possible(matrix):
        return None
    return matrix, np.hypot(*(homogeneous @ matrix.T - found_um).T) < tolerance_um


def is_possible(matrix: FloatArray) -> bool:
    """Whether a section can lie upon another like this: neither stretched nor sheared too much."""
    large, small = np.linalg.svd(matrix[:, :2], compute_uv=False)
    return bool(STRETCH[0] <= small and large <= STRETCH[1] and large <= LARGEST_SHEAR * small)
