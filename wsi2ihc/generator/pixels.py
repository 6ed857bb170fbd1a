"""The one place where pixels become network values, and network values pixels.

A pixel p in 0 … 255 is the value p / 127.5 - 1 in -1 … 1. On the way back values are rounded to the nearest pixel;
the published code truncates, which darkens its images by half a grey level.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import ModelError

_HALF_RANGE = 127.5


def to_network(pixels: Tensor) -> Tensor:
    """Images (N, H, W, 3) uint8 to values (N, 3, H, W) float32 in [-1, 1], in channels-last memory."""
    return pixels.permute(0, 3, 1, 2).to(torch.float32).div_(_HALF_RANGE).sub_(1)


def to_centred(pixels: Tensor, centre: Tensor) -> Tensor:
    """Images (N, H, W, C) uint8 to (N, C, H, W), each channel less its ``centre`` (C), in the centre's type.

    The centre is whole, so that the differences are exact even in bfloat16. A convolution takes them as they are if its
    weights come from `fold_pixels`.
    """
    return pixels.permute(0, 3, 1, 2).to(centre.dtype).sub_(centre[:, None, None])


def fold_pixels(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Make a convolution that takes values fit for pixels less a centre, and choose the centre.

    Of all centres, the one that leaves the least biases is taken. It is about the mean colour that the network was
    trained on, so that inputs and biases are small, and little is lost where they are rounded.

    Parameters
    ----------
    weight, bias:
        (C, 3, h, w) and (C), for `to_network`

    Returns
    -------
    weight, bias, centre:
        for `to_centred`; the centre (3) in whole levels from 0 to 255
    """
    weight, bias = weight / _HALF_RANGE, bias - weight.sum((1, 2, 3))
    sums = weight.sum((2, 3)).double()
    # In float64, which leaves the rounded centre alone: in float32 the solver's answer depends on where in memory the
    # numbers lie, so that the same model had another centre now and then, and its pixels other roundings.
    # (NaN is left to be found in the answer; the solver does not take it.)
    solved = torch.linalg.lstsq(sums.nan_to_num(), -bias.double().nan_to_num()[:, None]).solution[:, 0]
    centre = solved.nan_to_num().round().clamp(0, 255)
    return weight, (bias + (sums * centre).sum(1)).to(bias.dtype), centre.to(bias.dtype)


def tanh_of_finite(values: Tensor) -> Tensor:
    """The hyperbolic tangent, NaN where a value is infinite: that is an overflow, and no answer of 1."""
    return torch.tanh(values).add_(values, alpha=0)


def to_pixels(values: Tensor) -> Tensor:
    """Values (N, 3, H, W) in [-1, 1] to images (N, H, W, 3) uint8, rounded to nearest.

    Raises
    ------
    ModelError
        If a value is not finite.
    """
    values = values.float()
    if not bool(torch.isfinite(values.sum())):
        raise ModelError("values overflow or are not finite (NaN)")
    return rounded(values)


def rounded(values: Tensor) -> Tensor:
    """`to_pixels` without looking whether the values are finite."""
    return values.add(1).mul_(_HALF_RANGE).round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
