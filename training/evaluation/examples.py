"""Which pictures to show: some of every level, and the best, the median and the worst."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .methods import Method
from .results import Example, MethodResult
from .scores import ImageFacts
from .scoring import answer
from .source import Source, trimmed

RANKED_BY = "Stain R per pixel"
"""What best and worst mean: PSNR and SSIM reward blur."""


def choose_examples(
    source: Source, results: Sequence[MethodResult], multiple_px: int, rows: int, seed: int
) -> tuple[Example, ...]:
    """Translate a few images once more, to be looked at.

    Parameters
    ----------
    source
        Of the images.
    results
        Of the methods; best and worst are the first one's.
    multiple_px
        As in scoring.
    rows
        Of each kind.
    seed
        Of the choice within a level.
    """
    if rows == 0 or not results:
        return ()
    wanted = [
        *_of_levels(source.images, rows, np.random.default_rng(seed)),
        *_ranked(source.images, results[0], rows),
    ]
    methods = [result.method for result in results]
    return tuple(_example(source, methods, why, number, multiple_px) for why, number in wanted)


def _of_levels(images: Sequence[ImageFacts], rows: int, random: np.random.Generator) -> list[tuple[str, int]]:
    """For every level so many images, drawn; where none are known, of all."""
    chosen = []
    for level in sorted({image.her2 or "" for image in images}):
        numbers = [number for number, image in enumerate(images) if (image.her2 or "") == level]
        drawn = sorted(random.choice(numbers, min(rows, len(numbers)), replace=False).tolist())
        chosen += [(f"level {level}" if level else "drawn at random", number) for number in drawn]
    return chosen


def _ranked(images: Sequence[ImageFacts], result: MethodResult, rows: int) -> list[tuple[str, int]]:
    """Numbers of the images with the highest, middle and lowest own figure; images without one are left out."""
    own = {scored.image: scored.stain_r for scored in result.scores.own}
    known = sorted(
        (number for number, image in enumerate(images) if np.isfinite(own.get(image, np.nan))),
        key=lambda number: -own[images[number]],
    )
    if len(known) < 3:
        return []
    rows = min(rows, len(known) // 3)
    middle = (len(known) - rows) // 2
    ranks = {"best": known[:rows], "median": known[middle : middle + rows], "worst": known[-rows:]}
    return [(f"{why} of {result.method.name}", number) for why, numbers in ranks.items() for number in numbers]


def _example(source: Source, methods: Sequence[Method], why: str, number: int, multiple_px: int) -> Example:
    (sample,) = source.read([number])
    sample = trimmed(sample, multiple_px)
    virtual = {method.name: answer(method, [sample])[0] for method in methods}
    return Example(why, sample.image, sample.he, sample.reference, virtual)
