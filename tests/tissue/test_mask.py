"""The mask type."""

from __future__ import annotations

import numpy as np
import pytest

from wsi2ihc.geometry import WHITE
from wsi2ihc.tissue import TissueMask


def mask_of(pixels: object, origin: tuple[float, float] = (0, 0), size: tuple[float, float] = (1, 1)) -> TissueMask:
    return TissueMask(np.array(pixels, np.bool_), origin, size, WHITE)


def test_share_and_emptiness() -> None:
    assert mask_of([[1, 0], [0, 0]]).share == 0.25
    assert not mask_of([[1, 0], [0, 0]]).is_empty
    assert mask_of([[0]]).is_empty


def test_a_mask_cannot_be_changed() -> None:
    pixels = np.ones((2, 2), np.bool_)
    mask = TissueMask(pixels, (0, 0), (1, 1), WHITE)
    with pytest.raises(ValueError, match="read-only"):
        mask.pixels[0, 0] = False
    pixels[0, 0] = False  # the caller's own array is left as it was
    assert pixels.flags.writeable


@pytest.mark.parametrize(
    ("pixels", "pixel_size"),
    [
        (np.ones((2, 2), np.uint8), (1.0, 1.0)),
        (np.ones((2, 2, 1), np.bool_), (1.0, 1.0)),
        (np.ones((0, 2), np.bool_), (1.0, 1.0)),
        (np.ones((2, 2), np.bool_), (1.0, 0.0)),
        (np.ones((2, 2), np.bool_), (float("nan"), 1.0)),
    ],
)
def test_invalid_masks_are_refused(pixels: np.ndarray, pixel_size: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="mask"):
        TissueMask(pixels, (0, 0), pixel_size, WHITE)
