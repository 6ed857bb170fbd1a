"""Prepare a translation: a `TranslationJob`, and the fingerprint of everything that determines its output."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import system
from ..concurrency import Progress, ProgressCallback, silent
from ..errors import MaskError
from ..files import sha256_of_file
from ..geometry import RGB, Size, ceil_to
from ..models.model_spec import Translator
from ..models.registry import Model
from ..slide import Slide, agreeing_levels
from ..tissue import TissueMask
from .inference_setup import InferenceSetup, PreparedSlide, prepare_slide, resolved_precision, set_up_inference
from .options import TranslateOptions
from .probe import background_fill, implausible_outputs
from .window_size import batch_size, choose_layout, default_workers, make_plan
from .windows import Plan, WindowLayout

TranslationFingerprint = Mapping[str, Any]
"""JSON values by group: "source", "model", "options" (named as on the command line) and "program"."""


@dataclass(frozen=True, slots=True)
class SharedPlan:
    """Decisions that all processes working on one output share, so that their pixels agree to the bit."""

    fingerprint: TranslationFingerprint  # what determines the pixels
    mask: TissueMask
    statistics: bytes | None  # normalization statistics of the slide (see `InferenceSetup`), or None
    layout: WindowLayout  # how windows are laid out
    core_size: Size  # size of a full core, in working px
    fill: RGB  # color of untranslated area
    band_px: int  # height of a band, in working px
    size: Size  # size of level 0 of the output, in px
    unreadable_areas: tuple[tuple[int, int, int], ...]  # of the slide, found during tissue detection, as (level, x, y)


@dataclass(frozen=True, slots=True)
class TranslationJob:
    """A translation that is prepared but not started."""

    # slide, generator, options: arguments of `translate`; tiles in ``options.pyramid`` are no larger than the image
    slide: Slide
    generator: Model
    options: TranslateOptions
    prepared: PreparedSlide  # working grid, tissue and reader
    inference: InferenceSetup  # translators on their devices
    # layout, plan: how windows are laid out, and the windows
    layout: WindowLayout
    plan: Plan
    fill: RGB  # color of untranslated area
    workers: int  # threads that read, encode and reduce
    batch_size: int  # windows per call of a translator
    seconds: dict[str, float]  # time spent on each step of the preparation
    fingerprint: TranslationFingerprint  # what determines the pixels

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings about the slide, the mask and the model."""
        return (
            *self.slide.info.problems, *self.prepared.warnings, *self.prepared.mask.warnings, *self.inference.warnings,
        )  # fmt: skip

    @property
    def blend(self) -> str:
        """How windows are joined: "exact" or "overlap"."""
        return "overlap" if self.layout.overlap_px else "exact"

    @property
    def can_have_seams(self) -> bool:
        """Whether windows have a margin; without one, each pixel is translated on its own."""
        return self.layout.margin_px > 0


def prepare(
    slide: Slide,
    generator: Model,
    options: TranslateOptions,
    *,
    translators: Sequence[Translator] | None = None,
    shared: SharedPlan | None = None,
    fingerprint: TranslationFingerprint | None = None,
    progress: ProgressCallback = silent,
) -> TranslationJob:
    """Find the tissue, load the network onto its devices, and plan the windows.

    ``translators`` replace those of the generator, to measure the pipeline around them. ``shared`` are decisions of
    another run for the same slide, model and options; ``fingerprint`` is that of `translation_fingerprint`, if known.
    """
    started = time.perf_counter()
    fingerprint = fingerprint or translation_fingerprint(slide, generator, options)
    progress(Progress("finding tissue"))
    slide = agreeing_levels(slide)
    prepared = prepare_slide(slide, generator.mpp, options, shared.mask if shared else None)
    found = time.perf_counter()
    progress(Progress("loading the model"))
    inference = set_up_inference(generator, prepared, options, translators, shared.statistics if shared else None)
    longest_px = ceil_to(max(prepared.extent.width, prepared.extent.height), 16)
    # libvips refuses tiles that are much larger than the image
    options = replace(options, pyramid=replace(options.pyramid, tile_px=min(options.pyramid.tile_px, longest_px)))
    layout = shared.layout if shared else choose_layout(inference, options, prepared.extent.width)
    plan = make_plan(prepared, layout, options, slide.info.name, shared.core_size if shared else None)
    warnings = implausible_outputs(inference, prepared, plan, generator.name)
    inference = replace(inference, warnings=(*inference.warnings, *warnings))
    fill = shared.fill if shared else background_fill(inference, prepared, plan)
    seconds = {"tissue": found - started, "model": time.perf_counter() - found}
    workers = options.workers or default_workers()
    return TranslationJob(
        slide, generator, options, prepared, inference, layout, plan, fill, workers,
        batch_size(options, plan, inference.on_gpu), seconds, fingerprint,
    )  # fmt: skip


def translation_fingerprint(slide: Slide, generator: Model, options: TranslateOptions) -> TranslationFingerprint:
    """Collect everything that determines the pixels of a translation. Work is resumed or reused only if it matches.

    Raises
    ------
    MaskError
        If a mask file cannot be read.
    DeviceError
        If the device is missing, or does not support the chosen precision.
    """
    info = slide.info
    fingerprint = {
        "source": {
            "name": info.name,
            "quickhash": info.quickhash,
            "size": [info.size.width, info.size.height],
            "changed at": _format_time(info.changed_at),
            "--mpp": info.mpp,
        },
        "model": {"name": generator.name, "version": generator.version},
        "options": {
            "--precision": resolved_precision(generator, options),
            "--region": None if options.region is None else str(options.region),
            "--tissue": _mask_fingerprint(options.tissue),
            "--statistics": options.statistics,
            "--seed": options.seed if options.statistics == "slide" else 0,
            "--blend": options.blend,
            "--overlap": options.overlap_px,
            "--core-size": options.core_px,
            "--tile-size": options.pyramid.tile_px,
            "--icc": options.icc,
            "--on-read-error": options.on_read_error,
        },
        "program": {"wsi2ihc": system.versions().get("wsi2ihc", "")},
    }
    plain: TranslationFingerprint = json.loads(json.dumps(fingerprint))
    return plain


def _mask_fingerprint(tissue: str | Path) -> str:
    """Hash the content of a mask file, which may be edited between two runs."""
    if tissue in ("auto", "none"):
        return str(tissue)
    try:
        return f"sha256:{sha256_of_file(Path(tissue))}"
    except OSError as error:
        raise MaskError(f"{tissue}: the mask cannot be read ({error.strerror}); check the path") from error


def _format_time(seconds: int | None) -> str:
    """Format seconds since 1970, "" for None. Damaged file systems have years that `datetime` does not support."""
    return "" if seconds is None else f"{np.datetime64(seconds, 's')}Z"


def hash_fingerprint(fingerprint: TranslationFingerprint) -> str:
    """Return the SHA-256 of a fingerprint."""
    return hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode()).hexdigest()


def differences(
    before: TranslationFingerprint, now: TranslationFingerprint, *, ignored: Collection[str] = ()
) -> list[str]:
    """List the differences of two fingerprints for display, as in "--icc (keep, now srgb)", except ``ignored`` ones."""
    found = []
    for group, values in now.items():
        known = before.get(group, {})
        for name, value in values.items():
            if name not in ignored and known.get(name) != value:
                label = name if name.startswith("--") else f"{group} {name}" if name != group else name
                found.append(f"{label} ({_shorten(known.get(name))}, now {_shorten(value)})")
    return found


def _shorten(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 24 else f"{text[:20]}…"
