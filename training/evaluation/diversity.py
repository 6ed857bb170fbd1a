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
"""For the sums of all cells of all methods together. Where they would take more, only every n-th pixel along either
axis counts."""

MOST_CELLS = 4000
"""Of more there is no variance: the products of every two of them would take over 128 MB."""

_VALUE_BYTES = 8


class BatchVariance:
    """Sums from which the batch variance of any choice of cells follows, with repetition or without.

    Of each cell (a patient, a slide) the sum of its images is kept, and the sum of their squares. With S the sum over a
    set of N images, the variance is ``(Σ |x|² - |S|² / N) / (N - 1)`` a pixel, and |S|² follows from the products of
    the cells' sums.

    Memory bound: ``held_bytes``, and 8 bytes for each pair of cells at the end.

    Parameters
    ----------
    cells
        how many there will be
    held_bytes
        for their sums
    """

    def __init__(self, cells: int, held_bytes: int = HELD_BYTES) -> None:
        self.cells = cells
        self._held_bytes = held_bytes
        self._counts = np.zeros(cells)
        self._squares = np.zeros(cells)
        self._sums: Values | None = None
        self._products: Values | None = None
        self._shape: tuple[int, ...] = ()
        self._step = 1

    @property
    def step_px(self) -> int:
        """Distance of the pixels that count."""
        return self._step

    def add(self, cell: int, image: RGBImage) -> None:
        """Add an image of a cell. All have to be of one shape; after another one there are no variances."""
        if self.cells > MOST_CELLS:
            return
        if self._sums is None:
            self._shape = image.shape
            self._step = max(1, int(np.ceil(np.sqrt(self.cells * image.size * _VALUE_BYTES / self._held_bytes))))
            self._sums = np.zeros((self.cells, self._seen(image).size))
        if image.shape != self._shape:
            self._shape = ()
            return
        values = self._seen(image).astype(np.float64).ravel()
        self._counts[cell] += 1
        self._squares[cell] += np.square(values).sum()
        self._sums[cell] += values
        self._products = None

    def variances(self, weights: Values) -> Values:
        """Of sets of cells, given by how often each cell is in them, (sets, cells): (sets,), grey levels squared.

        NaN for fewer than two images, where the images' shapes differ, and of more cells than `MOST_CELLS`.
        """
        if not self._shape or self._sums is None:
            return np.full(weights.shape[:-1], np.nan)
        if self._products is None:
            self._products = self._sums @ self._sums.T
        count = weights @ self._counts
        squared_sum = ((weights @ self._products) * weights).sum(-1)
        enough = count > 1
        count = np.where(enough, count, 2)
        total = weights @ self._squares - squared_sum / count
        return np.asarray(np.where(enough, total / (count - 1) / self._sums.shape[1], np.nan), np.float64)

    def _seen(self, image: RGBImage) -> RGBImage:
        return image[:: self._step, :: self._step]
