"""Score all methods on the same images.

`Source` decodes samples ahead in threads, `batch_by_shape` groups neighbors of one shape, and `score_methods` runs
every method on each batch and adds the results to its `Scores`. `choose_examples` translates a few images again for the
report.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from wsi2ihc.concurrency import Progress, ProgressCallback, ordered_map
from wsi2ihc.errors import DatasetError, ModelError
from wsi2ihc.geometry import RGBBatch, RGBImage

from ..metrics.bootstrap import ImageMetadata, Scores
from ..metrics.distribution import DistributionDistances, distribution_distances
from ..metrics.pair_statistics import MAX_SUM_BYTES, Scale
from .methods import Method
from .results import Example, MethodResult

if TYPE_CHECKING:
    from ..metrics.inception import InceptionFeatures

AHEAD = 4
"""Samples that are decoded ahead of the current batch."""

THREADS = 2

_log = logging.getLogger(__name__)

INTERIOR_FROM_PX = 512
"""Minimum side of images whose interior is scored separately."""

MIN_MARGIN_PX = 84
"""Used for methods whose receptive field is unknown (existing images): the radius of the published ResNet-9."""

RANKED_BY = "Stain R per pixel"
"""Metric that ranks examples: PSNR and SSIM reward blur."""


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """Metadata and images of one sample; ``given``: virtual images that already exist, by method name."""

    image: ImageMetadata
    he: RGBImage | None
    reference: RGBImage
    given: Mapping[str, RGBImage] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """Samples that can be read repeatedly; ``load`` reads the one of an index, and is called by threads."""

    images: tuple[ImageMetadata, ...]
    load: Callable[[int], Sample]

    def read(self, numbers: Sequence[int] | None = None) -> Iterator[Sample]:
        """Read samples in the order of their indices (default: all). Memory bound: `AHEAD` samples.

        Raises
        ------
        DatasetError
            If a file is damaged, or the sizes of a sample's images differ.
        """
        chosen = range(len(self.images)) if numbers is None else numbers
        with ThreadPoolExecutor(THREADS, "decode") as pool:
            yield from ordered_map(pool, self.load, chosen, AHEAD)


def batch_by_shape(samples: Iterator[Sample], size: int) -> Iterator[list[Sample]]:
    """Yield consecutive samples of one shape, at most ``size`` at a time."""
    waiting: list[Sample] = []
    for sample in samples:
        if waiting and (len(waiting) == size or waiting[0].reference.shape != sample.reference.shape):
            yield waiting
            waiting = []
        waiting.append(sample)
    if waiting:
        yield waiting


def crop_to_multiple(sample: Sample, multiple_px: int) -> Sample:
    """Crop the images of a sample at the right and bottom to a multiple of ``multiple_px``."""
    height, width = (side - side % multiple_px for side in sample.reference.shape[:2])
    if (height, width) == sample.reference.shape[:2]:
        return sample

    def crop(image: RGBImage) -> RGBImage:
        return image[:height, :width]

    he = None if sample.he is None else crop(sample.he)
    return Sample(sample.image, he, crop(sample.reference), {name: crop(one) for name, one in sample.given.items()})


def interior_margin_px(source_px: int, methods: Sequence[Method]) -> int:
    """Return the margin beyond which no method sees the image border; 0 if images are too small for an interior."""
    margin = max([MIN_MARGIN_PX, *(method.halo_px or 0 for method in methods)])
    return margin if source_px >= max(INTERIOR_FROM_PX, 3 * margin) else 0


def score_methods(
    source: Source,
    methods: Sequence[Method],
    scale: Scale,
    *,
    batch_size: int,
    margin_px: int,
    inception: InceptionFeatures | None,
    seed: int,
    progress: ProgressCallback,
) -> list[MethodResult]:
    """Score every method on the same images.

    Memory bound: a batch of images with the output of one method; that of `Scores`; with ``inception`` 8 kB per image
    for the references and for each method.

    Raises
    ------
    DatasetError
        If an image cannot be read, or is too small.
    ModelError
        If the output of a model is not finite.
    """
    max_bytes = MAX_SUM_BYTES // (len(methods) + 1) // (2 if margin_px else 1)
    results: list[MethodResult] = []
    for method in methods:  # statistics of the references are computed for the first one
        first = results[0] if results else None
        full = Scores(source.images, scale, first.scores if first else None, max_bytes)
        inner = Scores(source.images, scale, first.interior if first else None, max_bytes) if margin_px else None
        results.append(MethodResult(method, full, inner))
    features = _FeatureStore(inception)
    inside = np.s_[margin_px:-margin_px, margin_px:-margin_px]
    multiple_px = math.lcm(*(method.multiple_px for method in methods))
    done = 0
    progress(Progress("scoring", 0, len(source.images), unit="image"))
    samples = (_check_size(crop_to_multiple(sample, multiple_px), multiple_px) for sample in source.read())
    for batch in batch_by_shape(samples, batch_size):
        features.add("", np.stack([sample.reference for sample in batch]))
        for result in results:
            virtual = virtual_images(result.method, batch)
            for sample, image in zip(batch, virtual, strict=True):
                result.scores.add(sample.image, image, sample.reference)
                if result.interior is not None:
                    result.interior.add(sample.image, image[inside], sample.reference[inside])
            features.add(result.method.name, virtual)
        done += len(batch)
        progress(Progress("scoring", done, len(source.images), unit="image"))
    return [
        dataclasses.replace(result, distances=features.distances(result.method.name, source.images, seed))
        for result in results
    ]


def virtual_images(method: Method, batch: Sequence[Sample]) -> RGBBatch:
    """Return the output of a method for samples of one shape."""
    if method.translate is None:
        return np.stack([sample.given[method.name] for sample in batch])
    return method.translate(np.stack([_he(sample) for sample in batch]))


class _FeatureStore:
    """Inception features of the references (under "") and of the output of every method, in order."""

    def __init__(self, network: InceptionFeatures | None) -> None:
        self._network = network
        self._features: dict[str, list[npt.NDArray[np.float32]]] = {}

    def add(self, name: str, images: RGBBatch) -> None:
        if self._network is None:
            return
        from ..metrics.inception import features

        self._features.setdefault(name, []).append(features(self._network, images))

    def distances(self, name: str, images: Sequence[ImageMetadata], seed: int) -> Mapping[str, DistributionDistances]:
        """Return the distances by HER2 level, and of all images under ""."""
        if self._network is None:
            return {}
        virtual, reference = (np.concatenate(self._features[one]) for one in (name, ""))
        levels = np.array([image.her2 or "" for image in images])
        chosen = {"": np.full(len(images), True)} | {level: levels == level for level in sorted({*levels} - {""})}
        return {
            level: distribution_distances(virtual[which], reference[which], seed=seed)
            for level, which in chosen.items()
        }


def _he(sample: Sample) -> RGBImage:
    if sample.he is None:  # methods that translate are only used where there is H&E
        raise DatasetError(f"{sample.image.name}: there is no H&E image to translate")
    return sample.he


def _check_size(sample: Sample, multiple_px: int) -> Sample:
    if min(sample.reference.shape[:2]) < max(7, multiple_px):
        raise DatasetError(f"{sample.image.name}: the images are too small; they need {max(7, multiple_px)} px a side")
    return sample


def load_inception_features(path: Path | None, device: str) -> tuple[InceptionFeatures | None, dict[str, str]]:
    """Load the Inception network and its metadata for the report; None and the reason if that fails.

    Wrong weights are a reason and not an error, since an evaluation without FID is still useful.

    Raises
    ------
    OptionError
        If the file does not exist or cannot be read.
    """
    if path is None:
        return None, {"reason": "no weights were given (--inception-weights)"}
    from ..metrics.inception import load_inception

    try:
        network = load_inception(path, device)
    except ModelError as error:
        reason = str(error).replace(str(path), path.name)  # reports do not contain folders
        _log.warning("FID and KID are left out: %s", reason)
        return None, {"reason": reason}
    return network, dataclasses.asdict(network.metadata)


def choose_examples(
    source: Source, results: Sequence[MethodResult], multiple_px: int, rows: int, seed: int
) -> tuple[Example, ...]:
    """Choose images for the report and translate them again.

    Parameters
    ----------
    source
        The images.
    results
        Of the methods; the first one determines best and worst.
    multiple_px
        As in scoring.
    rows
        Number of images of each kind.
    seed
        Of the choice within a level.
    """
    if rows == 0 or not results:
        return ()
    chosen = [
        *_examples_per_level(source.images, rows, np.random.default_rng(seed)),
        *_examples_by_rank(source.images, results[0], rows),
    ]
    methods = [result.method for result in results]
    return tuple(_example(source, methods, reason, number, multiple_px) for reason, number in chosen)


def _examples_per_level(
    images: Sequence[ImageMetadata], rows: int, random: np.random.Generator
) -> list[tuple[str, int]]:
    """Draw ``rows`` images of every HER2 level; of all images if no level is known."""
    chosen = []
    for level in sorted({image.her2 or "" for image in images}):
        numbers = [number for number, image in enumerate(images) if (image.her2 or "") == level]
        drawn = sorted(random.choice(numbers, min(rows, len(numbers)), replace=False).tolist())
        chosen += [(f"level {level}" if level else "drawn at random", number) for number in drawn]
    return chosen


def _examples_by_rank(images: Sequence[ImageMetadata], result: MethodResult, rows: int) -> list[tuple[str, int]]:
    """Return the images with the highest, middle and lowest metric; images without a value are left out."""
    values = {scored.image: scored.stain_r for scored in result.scores.per_image}
    known = sorted(
        (number for number, image in enumerate(images) if np.isfinite(values.get(image, np.nan))),
        key=lambda number: -values[images[number]],
    )
    if len(known) < 3:
        return []
    rows = min(rows, len(known) // 3)
    middle = (len(known) - rows) // 2
    ranks = {"best": known[:rows], "median": known[middle : middle + rows], "worst": known[-rows:]}
    return [(f"{reason} of {result.method.name}", number) for reason, numbers in ranks.items() for number in numbers]


def _example(source: Source, methods: Sequence[Method], reason: str, number: int, multiple_px: int) -> Example:
    (sample,) = source.read([number])
    sample = crop_to_multiple(sample, multiple_px)
    virtual = {method.name: virtual_images(method, [sample])[0] for method in methods}
    return Example(reason, sample.image, sample.he, sample.reference, virtual)
