"""The one place where pixels become network values, and network values pixels.

A pixel p in 0 … 255 is the value p / 127.5 - 1 in -1 … 1. On the way back values are rounded to the nearest pixel;
the published code truncates, which darkens its images by half a grey level.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import ModelError

_HALF_RANGE = 127.5
_CENTRE = 128


def to_network(pixels: Tensor) -> Tensor:
    """Images (N, H, W, 3) uint8 to values (N, 3, H, W) float32 in [-1, 1], in channels-last memory."""
    return pixels.permute(0, 3, 1, 2).to(torch.float32).div_(_HALF_RANGE).sub_(1)


def to_centred(pixels: Tensor, dtype: torch.dtype) -> Tensor:
    """Images (N, H, W, C) uint8 to (N, C, H, W) whole numbers from -128 to 127, which are exact even in bfloat16.

    A convolution takes them as they are if its weights come from `fold_pixels`.
    """
    return pixels.permute(0, 3, 1, 2).to(dtype).sub_(_CENTRE)


def fold_pixels(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Make the weights (C, 3, h, w) and bias (C) of a convolution fit for `to_centred` instead of `to_network`."""
    offset = (_CENTRE - _HALF_RANGE) / _HALF_RANGE
    return weight / _HALF_RANGE, bias + offset * weight.sum((1, 2, 3))


def to_pixels(values: Tensor) -> Tensor:
    """Values (N, 3, H, W) in [-1, 1] to images (N, H, W, 3) uint8, rounded to nearest.

    Raises
    ------
    ModelError
        If a value is not finite.
    """
    values = values.float()
    if not bool(torch.isfinite(values.sum())):
        raise ModelError("the model's answer is not finite (NaN); its weights or its statistics are unusable")
    return values.add(1).mul_(_HALF_RANGE).round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
