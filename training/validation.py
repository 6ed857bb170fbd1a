"""Validation of the generator on held-out patches.

`validate` scores a module on patches, in full or only their interior or border. Early in training, running averages of
batch norm are not usable; `with_estimated_statistics` then re-estimates them over training crops.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import MappingProxyType

import torch
from torch import Tensor, nn

from wsi2ihc.geometry import RGBImage
from wsi2ihc.models.fused_resnet import to_network, to_pixels
from wsi2ihc.models.model_file import build_network
from wsi2ihc.models.normalization import estimate_statistics

from .data import Pair
from .data.loader import training_batches, whole_patches
from .fabric import count_workers
from .metrics.validation_scores import ValidationScores
from .options import TrainOptions
from .training_setup import TrainingJob

Triple = tuple[RGBImage, RGBImage, RGBImage]
"""H&E, reference, virtual: (H, W, 3) uint8 each."""

Area = tuple[slice, slice]
"""Rows and columns of an image."""

View = Callable[[int, int], Sequence[Area]]
"""Function that returns which areas of an image of this height and width to score, each as an image of its own."""

STATISTICS_CROPS = 256

STATISTICS_PX = 1 << 24
"""Number of crops, and maximum number of pixels, over which statistics are re-estimated. All are held in memory, in
200 MB.
"""

RUNNING_FROM_STEP = 200
"""First step whose validation uses running averages. Each step keeps 0.9 of them, so less than a billionth of the
initial variance of 1 remains; the variance after the first convolution starts at about 0.01.
"""


def full_image(height: int, width: int) -> list[Area]:
    """Return the area of the full image."""
    return [(slice(0, height), slice(0, width))]


def interior(margin_px: int) -> View:
    """Return the view of all pixels at least this far from every border."""
    inside = slice(margin_px, -margin_px or None)
    return lambda _height, _width: [(inside, inside)]


def border(margin_px: int) -> View:
    """Return the view of all pixels nearer to a border than this: four strips that do not overlap."""
    near, far = slice(0, margin_px), slice(-margin_px, None)
    between, everything = slice(margin_px, -margin_px), slice(None)
    return lambda _height, _width: [(near, everything), (far, everything), (between, near), (between, far)]


FULL_IMAGE: Mapping[str, View] = MappingProxyType({"full_image": full_image})


def validate(
    module: nn.Module,
    pairs: Sequence[Pair],
    device: torch.device,
    *,
    batch_size: int,
    multiple: int,
    workers: int = 0,
    views: Mapping[str, View] = FULL_IMAGE,
    samples: int = 0,
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> tuple[dict[str, ValidationScores], list[tuple[Pair, Triple]]]:
    """Score the output of a generator in its current mode (training or evaluation).

    Parameters
    ----------
    batch_size
        Images per forward pass; batch variances are compared over these batches.
    multiple
        Patches are cropped to multiples of this, in px.
    views
        Areas of the patches to score, by name.
    samples
        Number of patches, evenly spaced over ``pairs``, whose images are returned.

    Returns
    -------
    scores, samples
        Scores by the names of ``views``; pairs with their images, in order.
    """
    scores = {name: ValidationScores() for name in views}
    chosen = set(evenly_spaced(pairs, samples))
    images: list[tuple[Pair, Triple]] = []
    batches = whole_patches(pairs, batch_size=batch_size, multiple=multiple, workers=workers, pin=device.type == "cuda")
    for of, batch in batches:
        with torch.no_grad(), autocast():
            output: Tensor = module(to_network(batch.he.to(device, non_blocking=True)))
        virtual, reference = to_pixels(output).contiguous().cpu().numpy(), batch.ihc.numpy()
        for name, view in views.items():
            for area in view(*reference.shape[1:3]):
                scores[name].add(virtual[:, *area], reference[:, *area])
        for index, pair in enumerate(of):
            if pair in chosen:
                images.append((pair, (batch.he[index].numpy(), reference[index], virtual[index])))
    return scores, images


def evenly_spaced(pairs: Sequence[Pair], count: int) -> list[Pair]:
    """Return at most ``count`` of the pairs, evenly spaced."""
    count = min(count, len(pairs))
    return [pairs[index * len(pairs) // count] for index in range(count)]


def uses_running_statistics(job: TrainingJob, step: int) -> bool:
    """Return whether validation after this step uses the generator's running statistics instead of re-estimated
    ones.
    """
    return job.spec.norm != "batch" or step >= RUNNING_FROM_STEP


def with_estimated_statistics(module: nn.Module, job: TrainingJob) -> nn.Module:
    """Return a copy of the generator, in evaluation mode, with statistics of training crops.

    The crops depend only on the seed, and no random numbers of torch are drawn.
    """
    options = job.options
    with torch.device("meta"):
        plain = build_network(job.spec)  # not compiled, and without synchronized norms
    plain.load_state_dict(module.state_dict(), assign=True)
    batches = training_batches(
        job.train,
        crop_px=options.crop_size,
        augmentation=options.augmentation,
        stain_jitter=options.stain_jitter,
        batch_size=options.batch_size,
        seed=options.seed,
        last_step=statistics_steps(options),
        workers=count_workers(options),
    )
    return estimate_statistics(plain, [to_network(batch.he) for batch in batches]).module


def statistics_steps(options: TrainOptions) -> int:
    """Return the number of batches over which statistics are re-estimated."""
    crops = min(STATISTICS_CROPS, STATISTICS_PX // options.crop_size**2)
    return max(2, crops // options.batch_size)
