"""All methods over all images, once: translate, compare, and keep what FID needs."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from wsi2ihc.arrays import RGBBatch, RGBImage
from wsi2ihc.errors import DatasetError, ModelError
from wsi2ihc.progress import Progress, ProgressCallback

from .diversity import HELD_BYTES
from .frechet import DistributionDistances, distribution_distances
from .methods import Method
from .results import MethodResult
from .scores import ImageFacts, Scores
from .source import Sample, Source, batched, trimmed
from .sums import Scale

if TYPE_CHECKING:
    from .inception import InceptionFeatures

_log = logging.getLogger(__name__)

INTERIOR_FROM_PX = 512
"""Sides from which images have an interior that is worth a look."""

LEAST_MARGIN_PX = 84
"""For methods whose reach is not known (finished images): the radius of the published ResNet-9."""


def interior_margin_px(source_px: int, methods: Sequence[Method]) -> int:
    """The margin beyond which no method can tell where the images end; 0 where images are too small for that."""
    margin = max([LEAST_MARGIN_PX, *(method.halo_px or 0 for method in methods)])
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

    Memory bound: a batch of images with one method's answers; what `Scores` keeps; with ``inception`` 8 kB an image for
    the references and for each method.

    Raises
    ------
    DatasetError
        If an image cannot be read, or is too small.
    ModelError
        If a model's answer is not finite.
    """
    multiple_px = math.lcm(*(method.multiple_px for method in methods))
    boards: list[_MethodScores] = []
    for method in methods:
        first = boards[0] if boards else None
        boards.append(_MethodScores(method, source.images, scale, margin_px, first, len(methods)))
    features = _FeatureStore(inception)
    done = 0
    progress(Progress("scoring", 0, len(source.images), unit="image"))
    samples = (_checked(trimmed(sample, multiple_px), multiple_px) for sample in source.read())
    for batch in batched(samples, batch_size):
        references = np.stack([sample.reference for sample in batch])
        features.add("", references)
        for board in boards:
            answers = answer(board.method, batch)
            board.add(batch, answers)
            features.add(board.method.name, answers)
        done += len(batch)
        progress(Progress("scoring", done, len(source.images), unit="image"))
    return [board.result(features.distances(board.method.name, source.images, seed)) for board in boards]


def answer(method: Method, batch: Sequence[Sample]) -> RGBBatch:
    """The virtual images of a method for samples of one shape."""
    if method.translate is None:
        return np.stack([sample.given[method.name] for sample in batch])
    return method.translate(np.stack([_he(sample) for sample in batch]))


class _MethodScores:
    """The scores of one method, whole and interior. References are those of the first method for all."""

    def __init__(
        self, method: Method, images: Sequence[ImageFacts], scale: Scale, margin_px: int, like: _MethodScores | None,
        methods: int,
    ) -> None:  # fmt: skip
        self.method = method
        self._margin_px = margin_px
        held_bytes = HELD_BYTES // (methods + 1) // (2 if margin_px else 1)
        self._whole: Scores = Scores(images, scale, like._whole if like else None, held_bytes)
        self._interior: Scores | None = None
        if margin_px:
            self._interior = Scores(images, scale, like._interior if like else None, held_bytes)

    def add(self, batch: Sequence[Sample], answers: RGBBatch) -> None:
        for sample, virtual in zip(batch, answers, strict=True):
            self._whole.add(sample.image, virtual, sample.reference)
            if self._interior is not None:
                inside = np.s_[self._margin_px : -self._margin_px, self._margin_px : -self._margin_px]
                self._interior.add(sample.image, virtual[inside], sample.reference[inside])

    def result(self, distances: Mapping[str, DistributionDistances]) -> MethodResult:
        return MethodResult(self.method, self._whole, self._interior, distances)


class _FeatureStore:
    """Inception's features of the references (under "") and of every method's answers, in order."""

    def __init__(self, network: InceptionFeatures | None) -> None:
        self._network = network
        self._features: dict[str, list[npt.NDArray[np.float32]]] = {}

    def add(self, name: str, images: RGBBatch) -> None:
        if self._network is None:
            return
        from .inception import features

        self._features.setdefault(name, []).append(features(self._network, images))

    def distances(self, name: str, images: Sequence[ImageFacts], seed: int) -> Mapping[str, DistributionDistances]:
        """By level, and of all."""
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
    if sample.he is None:  # methods that translate are only asked for where there is H&E
        raise DatasetError(f"{sample.image.name}: there is no H&E image to translate")
    return sample.he


def _checked(sample: Sample, multiple_px: int) -> Sample:
    if min(sample.reference.shape[:2]) < max(7, multiple_px):
        raise DatasetError(f"{sample.image.name}: the images are too small; they need {max(7, multiple_px)} px a side")
    return sample


def load_inception_features(path: Path | None, device: str) -> tuple[InceptionFeatures | None, dict[str, str]]:
    """The network of a weights file, with facts for the report; None and the reason where it cannot be had.

    An evaluation without FID is still one, so that wrong weights are a reason and no failure.

    Raises
    ------
    OptionError
        If there is no such file, or it cannot be read.
    """
    if path is None:
        return None, {"reason": "no weights were named (--inception-weights)"}
    from .inception import load_inception

    try:
        network = load_inception(path, device)
    except ModelError as error:
        reason = str(error).replace(str(path), path.name)  # reports name no folders
        _log.warning("FID and KID are left out: %s", reason)
        return None, {"reason": reason}
    return network, dataclasses.asdict(network.facts)
