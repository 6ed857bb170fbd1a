"""Fréchet and kernel distances of image features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from wsi2ihc.errors import DatasetError, OptionError

Features = npt.NDArray[np.floating]
"""(N, D), one row for each image."""

MIN_IMAGES = 2
"""Images on either side: a single image has neither a variance nor a pair."""

_BLOCK = 1024
"""Rows of features of either side that are compared at a time."""


@dataclass(frozen=True, slots=True)
class DistributionDistances:
    """Distances between virtual images and references; None if there is a reason."""

    # number of images; to be reported with the FID, which depends on it strongly
    virtual_images: int
    reference_images: int
    fid: float | None = None
    # see `KernelDistance`
    kid_mean: float | None = None
    kid_std: float | None = None
    kid_subset_size: int = 0
    reason: str = ""  # why there are no distances; empty if there are


class KernelDistance(NamedTuple):
    """Kernel distance over subsets: unbiased, so it can be negative; no standard deviation for a single subset."""

    mean: float
    std: float | None
    subset_size: int


def distribution_distances(
    virtual: Features, reference: Features, *, subset_size: int = 1000, subsets: int = 100, seed: int = 0
) -> DistributionDistances:
    """Return both distances, or the reason why there are none; see `frechet_distance` and `kernel_distance`.

    Raises
    ------
    DatasetError
        If the features differ in number, or are not finite.
    """
    images = len(virtual), len(reference)
    if min(images) < MIN_IMAGES:
        return DistributionDistances(*images, reason=_too_few(*images))
    kernel = kernel_distance(virtual, reference, subset_size=subset_size, subsets=subsets, seed=seed)
    return DistributionDistances(
        *images, frechet_distance(virtual, reference), kernel.mean, kernel.std, kernel.subset_size
    )


def frechet_distance(a: Features, b: Features) -> float:
    """Return the squared Fréchet distance of the normal distributions with the means and covariances of two sets.

    |μa - μb|² + tr Σa + tr Σb - 2 tr (Σa Σb)^½, with unbiased covariances. If Σa = AᵀA and Σb = BᵀB, the last trace is
    the sum of the singular values of A Bᵀ, since their squares are the nonzero eigenvalues of Σa Σb. A is the centered
    features over √(N - 1) or, for more images than features, the R of their QR decomposition. Covariances are never
    formed, so no digits are lost to squaring, and singular ones need no special care.

    Memory bound: a few matrices of 3 D × D, or those of the features if they are smaller.

    Parameters
    ----------
    a, b
        (N, D) and (M, D).

    Returns
    -------
    float
        Zero or more, in squared units of the features; for equal sets about 1e-15 of their variance.
    """
    _check(a, b)
    mean_a, mean_b = (one.mean(0, dtype=np.float64) for one in (a, b))
    root_a, root_b = _covariance_root(a, mean_a), _covariance_root(b, mean_b)
    cross = float(np.linalg.norm(root_a @ root_b.T, "nuc"))
    variances = float(np.square(root_a).sum() + np.square(root_b).sum())
    return max(0.0, float(np.square(mean_a - mean_b).sum()) + variances - 2 * cross)


def kernel_distance(
    a: Features, b: Features, *, subset_size: int = 1000, subsets: int = 100, seed: int = 0
) -> KernelDistance:
    """Return the unbiased squared maximum mean discrepancy of the polynomial kernel (x·y / D + 1)³ over random subsets.

    A subset has ``min(N, M, subset_size)`` images of each side, drawn without replacement. A side with no more than
    ``subset_size`` images is complete in every subset if it is the smaller one; if both are, there is a single subset
    and no standard deviation. Subsets share images, so their standard deviation is smaller than that between new sets.

    The kernel is computed once for every pair of images and summed for all subsets together; for fewer images than
    ``subset_size · √subsets`` that is less work than a kernel for each subset. Memory bound: blocks of 1024² pairs (60
    MB), and 8 bytes per image and subset.

    Parameters
    ----------
    a, b
        (N, D) and (M, D).
    subset_size
        Maximum number of images in a subset.
    seed
        Of the draws.

    Raises
    ------
    OptionError
        If subsets have fewer than two images, or there are none.
    """
    _check(a, b)
    if subset_size < MIN_IMAGES or subsets < 1:
        raise OptionError(
            f"the kernel distance needs at least one subset of at least two images, not {subsets} of {subset_size}"
        )
    size = min(len(a), len(b), subset_size)
    is_single = len(a) == len(b) == size
    random = np.random.default_rng(seed)
    of_a, of_b = (_draws(random, len(one), size, 1 if is_single else subsets) for one in (a, b))
    within = (_kernel_sums(one, one, of, of) - _diagonal_sums(one, of) for one, of in ((a, of_a), (b, of_b)))
    between = _kernel_sums(a, b, of_a, of_b)
    distances = sum(within) / (size * (size - 1)) - 2 * between / size**2
    return KernelDistance(float(distances.mean()), None if is_single else float(distances.std()), size)


def _check(a: Features, b: Features) -> None:
    """Raise `DatasetError` if a set has fewer than two rows, the features differ in number, or one is not finite."""
    if min(len(a), len(b)) < MIN_IMAGES:
        raise DatasetError(_too_few(len(a), len(b)))
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise DatasetError(f"features of shapes {a.shape} and {b.shape} cannot be compared")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise DatasetError("there are features that are not finite, so the sets cannot be compared")


def _too_few(a: int, b: int) -> str:
    return f"a distribution needs two images or more on either side, and there are {a} and {b}"


def _covariance_root(features: Features, mean: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return a matrix A with AᵀA = the covariance, of at most D rows; computed from 2 D rows of features at a time."""
    count, dimensions = features.shape
    root = np.zeros((0, dimensions))
    step = 2 * dimensions
    for start in range(0, count, step):
        centered = (features[start : start + step] - mean) / np.sqrt(count - 1)
        root = np.vstack([root, centered])
        if len(root) > dimensions:
            root = np.asarray(np.linalg.qr(root, mode="r"), np.float64)
    return root


def _draws(random: np.random.Generator, count: int, size: int, subsets: int) -> npt.NDArray[np.float64]:
    """Return which of ``count`` images are in each subset: (subsets, count), 1 or 0."""
    return random.permuted(np.tile(np.arange(count) < size, (subsets, 1)), axis=1).astype(np.float64)


def _kernel_sums(
    a: Features, b: Features, of_a: npt.NDArray[np.float64], of_b: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Return the sum of the kernel over all pairs of an image of a and one of b for each subset: (subsets,)."""
    sums = np.zeros(len(of_a))
    for top in range(0, len(a), _BLOCK):
        rows = a[top : top + _BLOCK].astype(np.float64)
        for left in range(0, len(b), _BLOCK):
            kernel = _kernel(rows @ b[left : left + _BLOCK].T.astype(np.float64), a.shape[1])
            sums += ((of_a[:, top : top + _BLOCK] @ kernel) * of_b[:, left : left + _BLOCK]).sum(1)
    return sums


def _diagonal_sums(a: Features, of_a: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    squared = np.einsum("nd,nd->n", a, a, dtype=np.float64)
    return of_a @ _kernel(squared, a.shape[1])


def _kernel(products: npt.NDArray[np.float64], dimensions: int) -> npt.NDArray[np.float64]:
    base = products / dimensions + 1
    return base * base * base
