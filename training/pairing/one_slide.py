"""The work on one pair of slides, in a process of its own: from two files to patches and a record."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2

from wsi2ihc.errors import RegistrationError
from wsi2ihc.ordered import ordered_map
from wsi2ihc.progress import Progress
from wsi2ihc.registration.folder import BEFORE_NAME
from wsi2ihc.registration.landmarks import MatchedLandmarks
from wsi2ihc.registration.pictures import PatchMark, kept_and_rejected, picture_mpp, thumbnail
from wsi2ihc.registration.report import write_picture, write_registration
from wsi2ihc.registration.transform import Transform, frame_of
from wsi2ihc.runtime import versions
from wsi2ihc.slide import Slide, agreeing_levels, level_problems

from .aligning import Alignment, align, as_given, given_transform, landmarks_of
from .alone import alone
from .children import Tell
from .cutting import CutPatch, CutPlan, cut, plan_cuts
from .encoding import EncodedPatch, encode_patch
from .fingerprints import row_print_of
from .jobs import Doing, SlideJob
from .looking import check_not_same, check_pair, opened
from .places import ATTEMPT_NAME, PATCHES_NAME
from .slide_writer import SlideWriter
from .store import PairsStore
from .views import seen_as
from .words import patches

_PAUSE_S = 0.2
"""Between two messages of progress."""


def make_pair_patches(job: SlideJob, threads: int, tell: Tell) -> None:
    """Align a pair, cut it, and write patches, pictures and at last the record.

    What was cut of the pair before stays until then. Memory: registration's, or the patches of
    `cutting.cut` and as many that are encoded.

    Raises
    ------
    RegistrationError
        If the slides could not be registered, or the landmarks have nothing in common.
    OptionError
        If no patch can be cut of the slides.
    Wsi2IhcError
        What opening, reading and writing raise.
    """
    say = _Teller(tell)
    pair = job.pair
    store = PairsStore(job.dataset, job.options.of_patches)
    cv2.setNumThreads(threads)
    with opened(pair) as (he, ihc), alone(store.slide_folder(pair.slide)):
        notes = list(check_pair(pair, he, ihc, job.options))
        transform = given_transform(pair, he, ihc)
        check_not_same(he, ihc)
        landmarks = landmarks_of(pair, he, ihc)
        notes += [f"{slide.info.name}: {problem}" for slide in (he, ihc) for problem in level_problems(slide)]
        he, ihc = agreeing_levels(he), agreeing_levels(ihc)
        writer = store.begin(pair.slide)
        seen = seen_as(he, job.options), seen_as(ihc, job.options)
        alignment = _aligned(job, *seen, transform, landmarks, threads, say)
        write_registration(writer.folder, *seen, alignment.transform, alignment.facts)
        if alignment.transform is None:
            raise RegistrationError(
                f"{ihc.info.name} could not be registered to {he.info.name}: {alignment.reason.rstrip('.')}; see "
                f"slides/{pair.slide}/{ATTEMPT_NAME}/{BEFORE_NAME}"
            )
        plan = plan_cuts(he, ihc, alignment.transform, job.options, proved=transform is None, tissue=pair.tissue)
        cv2.setNumThreads(1)  # from here on there is a thread for every core already
        marks, unreadable = _write_patches(writer, plan, job.options.side_by_side, threads, say)
        say("drawing", 1.0)
        mpp = picture_mpp((frame_of(he.info),))
        write_picture(writer.folder / PATCHES_NAME, kept_and_rejected(thumbnail(seen[0], mpp), mpp, marks))
        facts = _facts(
            he, ihc, alignment, landmarks, (*notes, *plan.notes, *_unreadable(unreadable), *alignment.facts["warnings"])
        )
        writer.complete(job.fingerprint, plan.mpp[0], facts, row_print_of(pair, job.options.reading))


def _aligned(
    job: SlideJob, he: Slide, ihc: Slide, transform: Transform | None, landmarks: MatchedLandmarks | None, threads: int,
    say: _Teller,
) -> Alignment:  # fmt: skip
    if transform is not None:
        return as_given(job.pair, transform, landmarks)

    def registering(progress: Progress) -> None:
        say(f"registering, {progress.note}" if progress.note else "registering", progress.done / progress.total)

    return align(he, ihc, job.options.registration, landmarks, threads, registering)


def _write_patches(
    writer: SlideWriter, plan: CutPlan, side_by_side: bool, threads: int, say: _Teller
) -> tuple[list[PatchMark], int]:
    """Cut, encode and write, in raster order; where all patches lie, and how many of them cannot be read."""

    def encoded(patch: CutPatch) -> tuple[CutPatch, EncodedPatch | None]:
        if patch.rejected:
            return patch, None
        return patch, encode_patch(patch.he, patch.ihc, side_by_side=side_by_side)

    marks: list[PatchMark] = []
    unreadable = 0
    say("cutting", 0.0)
    with (
        ThreadPoolExecutor(threads, "encode") as pool,
        contextlib.closing(cut(plan, workers=threads)) as patches,
        contextlib.closing(ordered_map(pool, encoded, patches, threads + 1)) as done,
    ):
        for patch, files in done:
            at_px, at_um = (patch.region.x, patch.region.y), (patch.x_um, patch.y_um)
            writer.add(at_px, at_um, dataclasses.asdict(patch.figures), rejected=patch.rejected, encoded=files)
            marks.append(PatchMark(*at_um, patch.region.width * plan.mpp[0], patch.rejected))
            unreadable += patch.unreadable
            say.kept += files is not None
            say("cutting", len(marks) / len(plan.regions))
    return marks, unreadable


def _unreadable(count: int) -> list[str]:
    return [f"{patches(count)} lie where a slide cannot be read, and were left out (as outside)"] if count else []


def _facts(
    he: Slide, ihc: Slide, alignment: Alignment, landmarks: MatchedLandmarks | None, notes: Sequence[str]
) -> Mapping[str, Any]:
    """What the record keeps of the pair: names and figures, no paths and no times."""
    facts: dict[str, Any] = {
        stain: {"name": slide.info.name, "quickhash": slide.info.quickhash, "mpp": slide.info.mpp}
        for stain, slide in (("he", he), ("ihc", ihc))
    }
    facts["alignment"] = alignment.summary
    facts["versions"] = versions()
    facts["notes"] = list(notes)
    if landmarks is not None and alignment.facts.get("landmarks"):
        facts["landmarks"] = alignment.facts["landmarks"]
    return facts


class _Teller:
    """Tells the parent what is done, but not too often."""

    def __init__(self, tell: Callable[[object], None]) -> None:
        self.kept = 0
        self._tell, self._what, self._told = tell, "", 0.0

    def __call__(self, what: str, share: float) -> None:
        now = time.monotonic()
        if what != self._what or now - self._told >= _PAUSE_S or share >= 1:
            self._what, self._told = what, now
            self._tell(Doing(what, share, self.kept))
