"""How different images of a set are from each other: the batch variance that the study's penalty looks at.

For each row, column and channel, the unbiased variance over all images of a set; then the mean over these. A generator
that answers much the same to everything has less of it than the references.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from wsi2ihc.arrays import RGBImage

Values = npt.NDArray[np.float64]

HELD_BYTES = 256 << 20
"""For the sums of all cells. Where they would take more, only every n-th pixel along either axis counts."""

_VALUE_BYTES = 8


class BatchVariance:
    """Sums from which the batch variance of any choice of cells follows, with repetition or without.

    Of each cell (a patient, a slide) the sum of its images is kept, and the sum of their squares. With S the sum over a
    set of N images, the variance is ``(Σ |x|² - |S|² / N) / (N - 1)`` a pixel, and |S|² follows from the products of
    the cells' sums.

    Memory bound: `HELD_BYTES`, and 8 bytes for each pair of cells at the end.

    Parameters
    ----------
    cells
        how many there will be
    """

    def __init__(self, cells: int) -> None:
        self._cells = cells
        self._counts = np.zeros(cells)
        self._squares = np.zeros(cells)
        self._sums: Values | None = None
        self._shape: tuple[int, ...] = ()
        self._step = 1

    @property
    def step_px(self) -> int:
        """Distance of the pixels that count."""
        return self._step

    def add(self, cell: int, image: RGBImage) -> None:
        """Add an image of a cell. All have to be of one shape; after another one there are no variances."""
        if self._sums is None:
            self._shape = image.shape
            self._step = max(1, int(np.ceil(np.sqrt(self._cells * image.size * _VALUE_BYTES / HELD_BYTES))))
            self._sums = np.zeros((self._cells, self._seen(image).size))
        if image.shape != self._shape:
            self._shape = ()
            return
        values = self._seen(image).astype(np.float64).ravel()
        self._counts[cell] += 1
        self._squares[cell] += np.square(values).sum()
        self._sums[cell] += values

    def variances(self, weights: Values) -> Values:
        """Of sets of cells, given by how often each cell is in them, (…, cells): (…), grey levels squared.

        NaN for fewer than two images, and where the images' shapes differ.
        """
        if not self._shape or self._sums is None:
            return np.full(weights.shape[:-1], np.nan)
        products = self._sums @ self._sums.T
        count = weights @ self._counts
        squared_sum = np.einsum("...i,ij,...j->...", weights, products, weights, optimize=True)
        enough = count > 1
        count = np.where(enough, count, 2)
        total = weights @ self._squares - squared_sum / count
        return np.asarray(np.where(enough, total / (count - 1) / self._sums.shape[1], np.nan), np.float64)

    def _seen(self, image: RGBImage) -> RGBImage:
        return image[:: self._step, :: self._step]
