"""Validation of the generator on held-out patches.

`validate` scores a module on patches, in full or only their interior or border; `ValidationScores` accumulates the sums
that evaluation uses, too. Early in training, running averages of
batch norm are not usable; `with_estimated_statistics` then re-estimates them over training crops.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor, nn

from wsi2ihc.errors import DatasetError
from wsi2ihc.geometry import RGBBatch, RGBImage
from wsi2ihc.models.fused_resnet import to_network, to_pixels
from wsi2ihc.models.model_file import build_network
from wsi2ihc.models.normalization import estimate_statistics
from wsi2ihc.stains import block_means

from .data import Pair
from .data.loader import training_batches, whole_patches
from .fabric import count_workers
from .metrics.pair_statistics import (
    BLOCK_PX,
    CORE_LENGTH,
    METRICS,
    core_metrics,
    core_statistics,
    measure_pair,
    moments_of,
    quotient,
)
from .options import TrainOptions
from .training_setup import TrainingJob

_BLOCKS = f"{BLOCK_PX}px"
"""How an evaluation names what is ``blocks`` here."""

VALIDATION_METRICS = {
    name: METRICS[name.replace("blocks", _BLOCKS)]
    for name in (
        "psnr", "ssim", "l1", "stain_r", "stain_r_blocks", "stain_bias", "variance_ratio", "checkerboard_2",
        "checkerboard_4",
    )
}  # fmt: skip
"""Validation metrics by name, in the order of tables."""


def is_better(name: str, value: float, than: float) -> bool:
    """Return whether a value of a metric is better than another: nearer to its ideal. NaN is the worst value."""
    if np.isnan(value) or np.isnan(than):
        return bool(np.isnan(than) and not np.isnan(value))
    ideal = VALIDATION_METRICS[name].ideal
    assert ideal is not None
    return value > than if np.isinf(ideal) else abs(value - ideal) < abs(than - ideal)


class ValidationScores:
    """Metrics of a validation set, accumulated batch by batch. Memory does not grow with the number of images.

    Parameters
    ----------
    block_px
        Side of the blocks of ``stain_r_blocks``. Incomplete blocks at the right and bottom are ignored; along an axis
        shorter than a block, the block is as long as the image.
    """

    def __init__(self, block_px: int = BLOCK_PX) -> None:
        self.block_px = block_px
        self._variances = np.zeros(2)  # virtual, reference; each a sum of variances · (N - 1)
        self._sums = np.zeros(CORE_LENGTH)

    def add(self, virtual: RGBBatch, reference: RGBBatch) -> None:
        """Add a batch of pairs.

        Raises
        ------
        DatasetError
            If the shapes differ, or images are smaller than 7 px.
        """
        if virtual.shape != reference.shape:
            raise DatasetError(f"virtual images {virtual.shape} and references {reference.shape} do not match")
        for one, other in zip(virtual, reference, strict=True):
            pair = measure_pair(one, other)
            # the error of identical images is that of one channel of one pixel being off by one
            pair = pair._replace(squared_error=max(pair.squared_error, 1 / one.size))
            blocks = moments_of(*(block_means(density, self.block_px) for density in pair.densities))
            self._sums += core_statistics(pair, blocks)
        if len(virtual) > 1:
            self._variances += _summed_variance(virtual), _summed_variance(reference)

    def compute(self) -> dict[str, float]:
        """Return the metrics by their names in `VALIDATION_METRICS`; NaN where one is not defined.

        They are those of an evaluation (`metrics_of`), except for:

        psnr
            An image identical to its reference counts as if one channel of one pixel differed by one level: 101 dB at
            256 x 256.
        variance_ratio
            For each batch of N images, the unbiased variance over the images, averaged over rows, columns and
            channels; summed over batches with the weight N - 1; virtual over reference. It depends on which images
            share a batch. NaN if the references do not vary or no batch has two images.

        Raises
        ------
        DatasetError
            If nothing was added.
        """
        if not self._sums.any():
            raise DatasetError("there is no validation image to score")
        metrics = core_metrics(self._sums) | {"variance_ratio": quotient(*self._variances)}
        return {name: float(metrics[name.replace("blocks", _BLOCKS)]) for name in VALIDATION_METRICS}


def _summed_variance(batch: RGBBatch) -> float:
    """Return the unbiased variance over the batch, averaged over pixels and channels, times (N - 1)."""
    values = batch.astype(np.float32)
    return float(np.square(values - values.mean(0)).sum(0).mean(dtype=np.float64))


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
