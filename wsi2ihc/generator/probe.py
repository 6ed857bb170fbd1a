"""Find weights that are finite but useless, by what a network makes of an image."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from ..arrays import RGBImage
from ..errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor, nn

_SIDE_PX = 64
_LEAST_SPREAD = 1.0
"""Gray levels between the brightest and darkest pixel of a channel; rounding of a constant image gives no more."""
_MOST_SATURATED = 0.98
"""Fraction of values at 0 or 255."""

_BACKGROUND, _EOSIN, _NUCLEI = (242, 240, 241), (222, 150, 190), (92, 66, 140)

log = logging.getLogger(__name__)


def describe_fault(output: RGBImage) -> str:
    """Describe the fault of an output for an image with structure: one color, or only 0 and 255; "" if neither."""
    values = output.reshape(-1, 3)
    if (np.ptp(values, axis=0) <= _LEAST_SPREAD).all():
        return f"a single color, {tuple(values[0].tolist())}"
    if np.isin(values, (0, 255)).mean() > _MOST_SATURATED:
        return "nothing but 0 and 255"
    return ""


def check_response(module: nn.Module, name: str) -> None:
    """Refuse a network that overflows on an ordinary image; warn about a constant or saturated output.

    Parameters
    ----------
    module
        Network in evaluation mode, on the CPU; maps (N, 3, H, W) in [-1, 1] to the same.
    name
        Name of the model, for messages.

    Raises
    ------
    ModelError
        If a layer's output is not finite, naming the layer.
    """
    import torch

    from .pixels import to_network, to_pixels
    from .reach import dependency

    side = max(_SIDE_PX, dependency(module).lattice_px)
    pixels = torch.from_numpy(_synthetic_tissue(side))[None]
    hooks = [
        layer.register_forward_hook(_finite(layer_name, name))
        for layer_name, layer in module.named_modules()
        if not list(layer.children())
    ]
    try:
        with torch.inference_mode():
            output = to_pixels(module(to_network(pixels)))[0].numpy()
    finally:
        for hook in hooks:
            hook.remove()
    if fault := describe_fault(output):
        log.warning("the model %s answers a test image with %s: its weights may be damaged or untrained", name, fault)


def _finite(layer: str, name: str) -> Callable[[nn.Module, object, Tensor], None]:
    import torch

    def check(_: nn.Module, __: object, output: Tensor) -> None:
        if not bool(torch.isfinite(output).all()):
            raise ModelError(
                f"the model {name} overflows on an ordinary image: the output of its layer {layer} is not finite; "
                "its weights are damaged, or its training has failed"
            )

    return check


def _synthetic_tissue(side: int) -> RGBImage:
    """Draw a square of background, eosin and nuclei, always the same."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:side, :side]
    image = np.where((columns > side // 4)[..., None], _EOSIN, _BACKGROUND).astype(np.float64)
    for y, x in rng.uniform(0, side, (side * side // 200, 2)):
        image[(rows - y) ** 2 + (columns - x) ** 2 < 9] = _NUCLEI
    image += rng.normal(0, 6, image.shape)
    return np.clip(image, 0, 255).astype(np.uint8)
