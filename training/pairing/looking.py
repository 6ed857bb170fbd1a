"""What can be told of a pair of slides before any pixels of them are read."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from wsi2ihc.errors import OptionError
from wsi2ihc.slide import Choice, Slide, SlideInfo, is_same_slide, known_mpp, open_slide, working_grid
from wsi2ihc.slide.grid import AS_IS_TOLERANCE, MAX_ENLARGEMENT

from .aligning import given_transform, landmarks_of, slide_doubts
from .children import Tell
from .jobs import Noted, SlideJob
from .manifest import SlidePair
from .options import PairsOptions

WORTH_A_NOTE = 1.5
"""How many times coarser than its patches a slide has to be for that to be told."""

OTHERWISE = 1.2
"""How many times finer or coarser than the slide says a stated resolution has to be for that to be told."""


@contextlib.contextmanager
def opened(pair: SlidePair) -> Iterator[tuple[Slide, Slide]]:
    """Both slides, whose resolutions are known.

    Raises
    ------
    MissingResolutionError
        If that of one is not.
    SlideNotFoundError, UnreadableSlideError
        If one cannot be opened.
    """
    with contextlib.ExitStack() as stack:
        slides = []
        for (path, mpp, column), image in zip(_files(pair), (pair.he_image, pair.ihc_image), strict=True):
            slide = stack.enter_context(
                open_slide(path, mpp=mpp, mpp_option=_option(column), series=image.series, page=image.page)
            )
            known_mpp(slide.info)  # raises where it is not
            slides.append(slide)
        yield slides[0], slides[1]


def look_at_pair(job: SlideJob, threads: int, tell: Tell) -> None:  # noqa: ARG001 (as `make_pair_patches`)
    """Find out what can be found without reading pixels: do both slides open, do resolutions, transform, landmarks fit.

    Tells of doubts.
    """
    with opened(job.pair) as (he, ihc):
        for note in check_pair(job.pair, he, ihc, job.options):
            tell(Noted(note))
        given_transform(job.pair, he, ihc)
        check_not_same(he, ihc)
        landmarks_of(job.pair, he, ihc)


def check_pair(pair: SlidePair, he: Slide, ihc: Slide, options: PairsOptions) -> tuple[str, ...]:
    """Refuse slides of which no patches can be cut, and tell what is doubtful about the others: one sentence each.

    Raises
    ------
    OptionError
        If a slide is far coarser than the patches, or the H&E is smaller than one.
    """
    notes = list(slide_doubts(pair, he, ihc))
    images = (pair.he_image, pair.ihc_image)
    for info, (path, stated, column), image in zip((he.info, ihc.info), _files(pair), images, strict=True):
        notes += _resolution_notes(info, options.mpp, column)
        notes += _statement_notes(info, path, stated, column, image)
    size = working_grid(he.info, options.mpp).size
    if min(size.width, size.height) < options.patch_size:
        raise OptionError(
            f"{he.info.name}: {size} px at {options.mpp:g} µm per px, which is smaller than a patch of "
            f"{options.patch_size} px; lower --patch-size"
        )
    return tuple(notes)


def check_not_same(he: Slide, ihc: Slide) -> None:
    """Refuse one slide for both stains.

    Raises
    ------
    OptionError
        If their hashes are the same.
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
    """Whether patches have to be enlarged; refuses what is far too coarse, as `working_grid` would."""
    own = max(known_mpp(info))
    times = own / mpp
    if times > MAX_ENLARGEMENT * (1 + AS_IS_TOLERANCE):
        raise OptionError(
            f"{info.name}: at {own:.4g} µm per px the slide is {times:.3g} times coarser than the patches ({mpp:g}), "
            f"and at most {MAX_ENLARGEMENT:g} times is allowed; if it is finer than it says, state that in "
            f"{_option(column)}, else raise --mpp"
        )
    if times > WORTH_A_NOTE:
        yield f"{info.name} has {own:.4g} µm per px, so that its patches are enlarged {times:.2g} times (--mpp {mpp:g})"


def _statement_notes(info: SlideInfo, path: Path, stated: float | None, column: str, image: Choice) -> Iterator[str]:
    """Whether the manifest says something else than the slide itself."""
    if stated is None:
        return
    with open_slide(path, series=image.series, page=image.page) as slide:
        own = slide.info.mpp
    if own is not None and not 1 / OTHERWISE <= stated / own[0] <= OTHERWISE:
        yield f"{info.name} says {own[0]:.4g} µm per px, {_option(column)} {stated:.4g}: the manifest's is taken"
