"""Preflight checks of slide pairs, and the messages of workers.

`open_slide_pair` opens both slides; `check_slide_pair` raises if no patches can be extracted and returns warnings. A
dry run calls them through `preflight_pair`, a build through `build.process_slide_pair`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from wsi2ihc.concurrency import Send
from wsi2ihc.errors import OptionError
from wsi2ihc.slide import Choice, Slide, SlideInfo, is_same_slide, known_mpp, open_slide, working_grid
from wsi2ihc.slide.grid import AS_IS_TOLERANCE, MAX_ENLARGEMENT

from .extract import given_transform, landmarks_of, slide_warnings
from .options import PairsOptions
from .pair_manifest import SlidePair


@dataclass(frozen=True, slots=True)
class SlideJob:
    """Task of a worker process; the fingerprint is computed before any file of the pair is opened."""

    pair: SlidePair
    fingerprint: str
    folder: Path
    options: PairsOptions


@dataclass(frozen=True, slots=True)
class ProgressMessage:
    """Progress of a worker: stage, completed fraction (0 to 1) and number of kept patches."""

    stage: str
    fraction: float = 0.0
    kept: int = 0


@dataclass(frozen=True, slots=True)
class WarningMessage:
    """Warning about the pair, one sentence."""

    text: str


WARN_ENLARGEMENT = 1.5
"""Enlargement of patches above which a warning is issued."""

WARN_MPP_RATIO = 1.2
"""Ratio of stated and own resolution of a slide, or its inverse, above which a warning is issued."""


@contextlib.contextmanager
def open_slide_pair(pair: SlidePair) -> Iterator[tuple[Slide, Slide]]:
    """Open both slides and check that their resolutions are known.

    Raises
    ------
    MissingResolutionError
        If the resolution of a slide is unknown.
    SlideNotFoundError, UnreadableSlideError
        If one cannot be opened.
    """
    with contextlib.ExitStack() as stack:
        slides = []
        for (path, mpp, column), image in zip(_files(pair), (pair.he_image, pair.ihc_image), strict=True):
            slide = stack.enter_context(
                open_slide(path, mpp=mpp, mpp_option=_option(column), series=image.series, page=image.page)
            )
            known_mpp(slide.info)  # raises if unknown
            slides.append(slide)
        yield slides[0], slides[1]


def preflight_pair(job: SlideJob, threads: int, send: Send) -> None:  # noqa: ARG001 (as `process_slide_pair`)
    """Check slides, resolutions, transform and landmarks without reading pixels; send warnings."""
    with open_slide_pair(job.pair) as (he, ihc):
        for note in check_slide_pair(job.pair, he, ihc, job.options):
            send(WarningMessage(note))
        given_transform(job.pair, he, ihc)
        check_different_slides(he, ihc)
        landmarks_of(job.pair, he, ihc)


def check_slide_pair(pair: SlidePair, he: Slide, ihc: Slide, options: PairsOptions) -> tuple[str, ...]:
    """Reject slides from which no patches can be extracted; return warnings about the others, one sentence each.

    Raises
    ------
    OptionError
        If a slide is far coarser than the patches, or the H&E is smaller than a patch.
    """
    notes = list(slide_warnings(pair, he, ihc))
    images = (pair.he_image, pair.ihc_image)
    for info, (path, stated, column), image in zip((he.info, ihc.info), _files(pair), images, strict=True):
        notes += _resolution_notes(info, options.mpp, column)
        notes += _statement_notes(info, path, stated, column, image)
    size = working_grid(he.info, options.mpp).size
    if min(size.width, size.height) < options.patch_size:
        raise OptionError(
            f"{he.info.name}: {size} px at {options.mpp:g} µm/px, which is smaller than a patch of "
            f"{options.patch_size} px; lower --patch-size"
        )
    return tuple(notes)


def check_different_slides(he: Slide, ihc: Slide) -> None:
    """Reject the same slide for both stains.

    Raises
    ------
    OptionError
        If their hashes are equal.
    """
    if is_same_slide(he.info, ihc.info):
        raise OptionError(
            f"{he.info.name} (H&E) and {ihc.info.name} (IHC) are the same slide; name the slides of both stains"
        )


def _files(pair: SlidePair) -> tuple[tuple[Path, float | None, str], ...]:
    return (pair.he, pair.he_mpp, "he_mpp"), (pair.ihc, pair.ihc_mpp, "ihc_mpp")


def _option(column: str) -> str:
    return f"the manifest's column {column}"


def _resolution_notes(info: SlideInfo, mpp: float, column: str) -> Iterator[str]:
    """Warn if patches have to be enlarged, and reject slides that are far too coarse, as `working_grid` does."""
    own = max(known_mpp(info))
    enlargement = own / mpp
    if enlargement > MAX_ENLARGEMENT * (1 + AS_IS_TOLERANCE):
        raise OptionError(
            f"{info.name}: at {own:.4g} µm/px the slide is {enlargement:.3g} times coarser than the patches "
            f"({mpp:g}), and at most {MAX_ENLARGEMENT:g} times is allowed; correct a wrong resolution in "
            f"{_option(column)}, or raise --mpp"
        )
    if enlargement > WARN_ENLARGEMENT:
        yield f"{info.name}: {own:.4g} µm/px; its patches are enlarged {enlargement:.2g} times (--mpp {mpp:g})"


def _statement_notes(info: SlideInfo, path: Path, stated: float | None, column: str, image: Choice) -> Iterator[str]:
    """Warn if the manifest's resolution differs from that of the slide."""
    if stated is None:
        return
    with open_slide(path, series=image.series, page=image.page) as slide:
        own = slide.info.mpp
    if own is not None and not 1 / WARN_MPP_RATIO <= stated / own[0] <= WARN_MPP_RATIO:
        yield f"{info.name} states {own[0]:.4g} µm/px, {_option(column)} {stated:.4g}, which takes precedence"
