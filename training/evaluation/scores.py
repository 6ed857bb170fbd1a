"""The scores of one method: sums over images, kept by what is pooled, parted and resampled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from wsi2ihc.arrays import RGBImage
from wsi2ihc.errors import DatasetError

from ..moments import correlation
from .diversity import HELD_BYTES, BatchVariance
from .intervals import Subset
from .sums import JOINT_BINS, LENGTH, PARTS, Scale, Sums, score_pair

Cell = tuple[str, str, str]
"""Unit, HER2 level and slide; "" where unknown."""


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What is known of a pair of images.

    name:   for people
    unit:   what is independent of others: its patient, else slide, region; itself where none is known
    her2:   level of its slide, as in "2+"; None where unknown
    slide:  its slide; None where unknown
    """

    name: str
    unit: str
    her2: str | None = None
    slide: str | None = None

    @property
    def cell(self) -> Cell:
        """The cell that its sums are added to."""
        return self.unit, self.her2 or "", self.slide or ""


@dataclass(frozen=True, slots=True)
class OwnFigures:
    """One image's own figures.

    psnr:     dB; infinite if it equals its reference
    stain_r:  correlation of the density per pixel; NaN if one side is constant
    area_virtual, area_reference:
              stained share, 0 to 1
    """

    image: ImageFacts
    psnr: float
    ssim: float
    stain_r: float
    area_virtual: float
    area_reference: float


class Scores:
    """Sums over images, kept by cells: images of one unit, level and slide.

    Memory bound: 17 kB a cell, some 200 bytes an image, and what `BatchVariance` holds.

    Parameters
    ----------
    images
        all that will be added
    scale
        what they are compared with
    like
        the scores of another method on the same images, whose sums of the references are shared; it has to be given
        each image, too
    held_bytes
        for the batch variance of the virtual images
    """

    def __init__(
        self, images: Sequence[ImageFacts], scale: Scale, like: Scores | None = None, held_bytes: int = HELD_BYTES // 2
    ) -> None:
        self.scale = scale
        self.own: list[OwnFigures] = []
        self.joint = np.zeros((JOINT_BINS, JOINT_BINS), np.int64)
        self.cells: tuple[Cell, ...] = tuple(sorted({image.cell for image in images}))
        self.sums: Sums = np.zeros((len(self.cells), LENGTH))
        self.virtual = BatchVariance(len(self.cells), held_bytes)
        self.reference: BatchVariance = BatchVariance(len(self.cells), held_bytes) if like is None else like.reference
        self._keeps_references = like is None
        self._numbers = {cell: number for number, cell in enumerate(self.cells)}

    def add(self, image: ImageFacts, virtual: RGBImage, reference: RGBImage) -> None:
        """Add a pair of images (H, W, 3) uint8 of one shape.

        Raises
        ------
        DatasetError
            If the shapes differ, or sides are shorter than 7 px.
        """
        if virtual.shape != reference.shape:
            raise DatasetError(f"{image.name}: virtual image {virtual.shape[:2]}, reference {reference.shape[:2]}")
        scores, number = score_pair(virtual, reference, self.scale), self._numbers[image.cell]
        self.sums[number] += scores.sums
        self.joint += scores.joint
        self.virtual.add(number, virtual)
        if self._keeps_references:
            self.reference.add(number, reference)
        both, alone, missed, neither = scores.sums[PARTS["confusion"]].tolist()
        count = both + alone + missed + neither
        stain_r = float(correlation(scores.sums[PARTS["pixels"]]))
        areas = (both + alone) / count, (both + missed) / count
        self.own.append(OwnFigures(image, scores.psnr, scores.ssim, stain_r, *areas))

    @property
    def levels(self) -> tuple[str, ...]:
        """The HER2 levels that images have, sorted."""
        return tuple(sorted({level for _, level, _ in self.cells} - {""}))

    @property
    def slides(self) -> tuple[str, ...]:
        """The slides that images have, sorted; units where no slide is known."""
        return tuple(sorted({slide or unit for unit, _, slide in self.cells}))

    def subset(self, *, her2: str | None = None, slide: str | None = None) -> Subset:
        """The images of a level, or of a slide; all where neither is given."""
        chosen = [
            number
            for number, (unit, level, of_slide) in enumerate(self.cells)
            if her2 in (None, level) and slide in (None, of_slide or unit)
        ]
        return Subset(
            tuple(self.cells[number][0] for number in chosen), self.sums[chosen], np.array(chosen, np.intp),
            (self.virtual, self.reference), self.scale,
        )  # fmt: skip

    def slide_counts(self, which: Literal["virtual", "reference"]) -> dict[str, Sums]:
        """Px by density of DAB, (256,), of every slide."""
        side = ("virtual", "reference").index(which)
        return {slide: self.subset(slide=slide).histograms[side, -1] for slide in self.slides}
