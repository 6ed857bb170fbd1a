"""Where the images to be scored come from: read on demand, by threads, in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from wsi2ihc.arrays import RGBImage
from wsi2ihc.ordered import ordered_map

from .scores import ImageFacts

AHEAD = 4
"""Samples that are decoded or being decoded beside the batch at hand."""

THREADS = 2


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """The images of one place.

    he:     the H&E image; None where there is none
    given:  virtual images that are there already, by the name of their method
    """

    image: ImageFacts
    he: RGBImage | None
    reference: RGBImage
    given: Mapping[str, RGBImage] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """Samples that can be read, more than once.

    images:  what they are
    load:    reads the sample of a number; called by threads

    Raises
    ------
    DatasetError
        Where reading: if a file is damaged, or the sizes of a place's images differ.
    """

    images: tuple[ImageFacts, ...]
    load: Callable[[int], Sample]

    def read(self, numbers: Sequence[int] | None = None) -> Iterator[Sample]:
        """Read samples in the order of the numbers (all). Memory: `AHEAD` of them."""
        chosen = range(len(self.images)) if numbers is None else numbers
        with ThreadPoolExecutor(THREADS, "decode") as pool:
            yield from ordered_map(pool, self.load, chosen, AHEAD)


def batched(samples: Iterator[Sample], size: int) -> Iterator[list[Sample]]:
    """Neighbours of one shape, at most ``size`` of them."""
    waiting: list[Sample] = []
    for sample in samples:
        if waiting and (len(waiting) == size or waiting[0].reference.shape != sample.reference.shape):
            yield waiting
            waiting = []
        waiting.append(sample)
    if waiting:
        yield waiting


def trimmed(sample: Sample, multiple_px: int) -> Sample:
    """A sample whose images are cut at the right and at the bottom to a multiple."""
    height, width = (side - side % multiple_px for side in sample.reference.shape[:2])
    if (height, width) == sample.reference.shape[:2]:
        return sample

    def cut(image: RGBImage) -> RGBImage:
        return image[:height, :width]

    he = None if sample.he is None else cut(sample.he)
    return Sample(sample.image, he, cut(sample.reference), {name: cut(one) for name, one in sample.given.items()})
