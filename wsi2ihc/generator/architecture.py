"""Recognizing a generator's architecture by the names and shapes of its weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ..errors import ModelError
from ..text import pluralize
from .spec import DEPTHS, WIDTHS, Architecture, Norm, Padding

Shapes = Mapping[str, tuple[int, ...]]

_BLOCK = re.compile(r"model\.(\d+)\.conv_block\.(\d+)\.weight")
_LAYER = re.compile(r"model\.(\d+)\.weight")


def recognize(shapes: Shapes, source: str) -> dict[str, Any]:
    """Find the fields of a `GeneratorSpec` that describe the network.

    Raises
    ------
    ModelError
        If it is a variant of the ResNet or U-Net of pix2pix that is not supported; the message names it.
    """
    architecture: Architecture = "resnet" if len(shapes.get("model.1.weight", ())) == 4 else "unet"
    first = shapes["model.1.weight" if architecture == "resnet" else "model.model.0.weight"]
    if first[1] != 3:
        raise ModelError(
            f"{source} holds a generator for images of {pluralize(first[1], 'channel')} instead of 3 (RGB)"
        )
    outputs = _outputs(shapes, architecture)
    if outputs != 3:
        raise ModelError(
            f"{source} holds a generator that makes images of {pluralize(outputs, 'channel')} instead of 3 (RGB)"
        )
    if architecture == "resnet":
        _refuse_relatives(shapes, source)
    return {
        "architecture": architecture,
        "depth": _clamped(_depth(shapes, architecture), DEPTHS[architecture]),
        "width": _clamped(first[0], WIDTHS),
        "norm": _norm(shapes, architecture, source),
        "padding": _padding(shapes),
        "antialiasing": any(name.endswith(".filt") for name in shapes),
        "dropout": _dropout(shapes, architecture),
    }


def _outputs(shapes: Shapes, architecture: Architecture) -> int:
    """Output channels; 3 if unknown, since the later comparison of names reports more."""
    if architecture == "unet":
        return shapes.get("model.model.3.weight", (0, 3))[1]
    last = [shape[0] for name, shape in shapes.items() if _LAYER.fullmatch(name) and shape[2:] == (7, 7)]
    return last[-1] if len(last) > 1 else 3


def _refuse_relatives(shapes: Shapes, source: str) -> None:
    """Refuse ResNets of other code bases, whose layers have other positions or meanings."""
    kind = None
    blocks = [int(match[1]) for name in shapes if (match := _BLOCK.fullmatch(name))]
    if any(name.startswith("model1_1.") for name in shapes):
        kind = "pix2pixHD's local enhancer"
    elif sum(name.endswith(".filt") for name in shapes) not in (0, 4):
        kind = "a ResNet with anti-aliasing filters in some places only (CUT with --no_antialias_up)"
    elif any(".block." in name for name in shapes):
        kind = "a ResNet of PyTorch-GAN, which doubles by nearest neighbors"
    elif blocks:
        layers = sorted(
            int(match[1]) for name in shapes if (match := _LAYER.fullmatch(name)) and len(shapes[name]) == 4
        )
        halvings = sum(index < min(blocks) for index in layers) - 1
        if halvings == 4:
            kind = "pix2pixHD's global generator, or another ResNet that halves its input four times"
        elif halvings != 2:
            kind = f"a ResNet that halves its input {pluralize(halvings, 'time')} instead of twice"
    if kind is not None:
        raise ModelError(f"{source} holds {kind}; that kind is not supported")


def _norm(shapes: Shapes, architecture: Architecture, source: str) -> Norm:
    scale, mean, bias = {
        "resnet": ("model.2.weight", "model.2.running_mean", "model.1.bias"),
        "unet": ("model.model.1.model.2.weight", "model.model.1.model.2.running_mean", "model.model.1.model.1.bias"),
    }[architecture]
    if scale in shapes and bias in shapes:
        kind = (
            "whose BatchNorm follows convolutions with biases" if mean in shapes else "whose InstanceNorm has weights"
        )
        raise ModelError(f"{source} holds a generator {kind}; that kind is not supported")
    if scale in shapes:
        return "batch"
    if bias in shapes:
        return "instance"
    raise ModelError(f"{source} holds a generator without normalization layers; that kind is not supported")


def _depth(shapes: Shapes, architecture: Architecture) -> int:
    if architecture == "resnet":
        return len({match[1] for name in shapes if (match := _BLOCK.match(name))})
    return sum(len(shape) == 4 for shape in shapes.values()) // 2


def _padding(shapes: Shapes) -> Padding:
    """Find the padding: reflection is a separate layer before each convolution, zero padding is not."""
    first = [name for name in shapes if name.endswith(".conv_block.0.weight") and len(shapes[name]) == 4]
    return "zero" if first else "reflect"


def _dropout(shapes: Shapes, architecture: Architecture) -> bool:
    """Find dropout, which shifts the second convolution of a block by one; a U-Net's names do not show it."""
    if architecture == "unet":
        return True
    second = {"zero": "4", "reflect": "6"}[_padding(shapes)]
    return any(name.endswith(f".conv_block.{second}.weight") and len(shape) == 4 for name, shape in shapes.items())


def _clamped(value: int, bounds: range) -> int:
    """Clamp a value; if that changes it, the later comparison of names and shapes reports the error."""
    return min(max(value, bounds[0]), bounds[-1])
