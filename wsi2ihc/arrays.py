"""Names for the arrays that pass between the stages."""

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

RGBImage: TypeAlias = npt.NDArray[np.uint8]
"""One image: (rows, columns, 3), uint8, RGB."""

RGBBatch: TypeAlias = npt.NDArray[np.uint8]
"""Images of one shape: (N, rows, columns, 3), uint8, RGB."""

BoolImage: TypeAlias = npt.NDArray[np.bool_]
"""A mask: (rows, columns), bool."""

RGB: TypeAlias = tuple[int, int, int]
"""One colour, 0 to 255 per channel."""

WHITE: RGB = (255, 255, 255)
