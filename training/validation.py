"""How good the generator is on patches that it is not trained on.

A patch is translated by one plain forward pass with the network's own padding: most of a 256 px patch lies within the
90 px or so that the padding reaches, so the padding is part of what is trained.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import MappingProxyType

import torch
from torch import Tensor, nn

from wsi2ihc.arrays import RGBImage
from wsi2ihc.generator.pixels import to_network, to_pixels

from .data import Pair
from .data.patches import whole_patches
from .metrics import ValidationScores

Triple = tuple[RGBImage, RGBImage, RGBImage]
"""H&E, reference, virtual: (H, W, 3) uint8 each."""

Area = tuple[slice, slice]
"""Rows and columns of an image."""

View = Callable[[int, int], Sequence[Area]]
"""Which areas of an image of this height and width to score, each as an image by itself."""


def whole(height: int, width: int) -> list[Area]:
    """All of the image."""
    return [(slice(0, height), slice(0, width))]


def interior(margin_px: int) -> View:
    """What is at least this far from every border."""
    inside = slice(margin_px, -margin_px or None)
    return lambda _height, _width: [(inside, inside)]


def border(margin_px: int) -> View:
    """What is nearer to a border than this: a strip along each side, none of which overlap."""
    near, far = slice(0, margin_px), slice(-margin_px, None)
    between, everything = slice(margin_px, -margin_px), slice(None)
    return lambda _height, _width: [(near, everything), (far, everything), (between, near), (between, far)]


WHOLE: Mapping[str, View] = MappingProxyType({"whole": whole})


def validate(
    module: nn.Module,
    pairs: Sequence[Pair],
    device: torch.device,
    *,
    batch_size: int,
    multiple: int,
    workers: int = 0,
    views: Mapping[str, View] = WHOLE,
    pictures: int = 0,
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> tuple[dict[str, ValidationScores], list[tuple[Pair, Triple]]]:
    """Score a generator's answers, in the mode (training or evaluation) that it is in.

    Parameters
    ----------
    module:
        the generator
    pairs:
        what to translate
    device:
        where the module is
    batch_size:
        images per call; batch variances are compared over these batches
    multiple:
        patches are cut to multiples of this, in px
    workers:
        processes that decode
    views:
        which areas of the patches to score, by name
    pictures:
        how many patches, evenly spread over ``pairs``, to hand back with their answers
    autocast:
        of the precision

    Returns
    -------
    scores, pictures
        scores by the names of ``views``; pairs with their images, in order
    """
    scores = {name: ValidationScores() for name in views}
    chosen = set(evenly(pairs, pictures))
    shown: list[tuple[Pair, Triple]] = []
    batches = whole_patches(pairs, batch_size=batch_size, multiple=multiple, workers=workers, pin=device.type == "cuda")
    for of, batch in batches:
        with torch.no_grad(), autocast():
            answer: Tensor = module(to_network(batch.he.to(device, non_blocking=True)))
        virtual, reference = to_pixels(answer).contiguous().cpu().numpy(), batch.ihc.numpy()
        # without groups a patch stands for itself; names need not be unique in a table
        groups = [pair.group or str(pair.ihc) for pair in of]
        for name, view in views.items():
            for area in view(*reference.shape[1:3]):
                scores[name].add(virtual[:, *area], reference[:, *area], groups)
        for index, pair in enumerate(of):
            if pair in chosen:
                shown.append((pair, (batch.he[index].numpy(), reference[index], virtual[index])))
    return scores, shown


def evenly(pairs: Sequence[Pair], count: int) -> list[Pair]:
    """At most ``count`` of the pairs, evenly spread over them."""
    count = min(count, len(pairs))
    return [pairs[index * len(pairs) // count] for index in range(count)]
