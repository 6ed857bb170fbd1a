"""Models on the patches of a paired data set."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from wsi2ihc.arrays import RGBImage
from wsi2ihc.errors import DatasetError
from wsi2ihc.progress import Progress, ProgressCallback, silent
from wsi2ihc.text import pluralize

from ..data import Pair, PairedData, PatchSizes, assign_groups, assign_roles, find_pairs, read_pair, read_sizes
from .calibration import Calibration, calibrate
from .clinical import call_slides, doubts, fit_readers
from .examples import choose_examples
from .methods import Method, floors, load_methods
from .options import EvaluateOptions
from .resolution import at_own_resolution, differs
from .results import Evaluation
from .scores import ImageFacts
from .scoring import interior_margin_px, load_inception_features, score_methods
from .source import Sample, Source
from .sums import Scale

_log = logging.getLogger(__name__)


def evaluate_patches(
    folder: Path, models: Sequence[str], options: EvaluateOptions | None = None, progress: ProgressCallback = silent
) -> Evaluation:
    """Translate the patches of a split with each model and both floors, and score them.

    Parameters
    ----------
    folder
        A paired data set, as `wsi2ihc.training.data.find_pairs` finds it.
    models
        Names or files.
    options
        How.
    progress
        Told of patches.

    Raises
    ------
    DatasetError
        If the data cannot be used, or the split has no patches.
    ModelError, ModelNotFoundError, DeviceError, OptionError
        See `load_methods`.
    """
    options = options or EvaluateOptions()
    data = find_split(folder, options)
    pairs, training = data.of(options.split), data.of("train")
    sizes = read_sizes({*pairs, *training})
    mpp = options.mpp or data.mpp
    trained = [at_own_resolution(one, mpp) for one in load_methods(models, options.device, options.precision)]
    resolutions = tuple(_resolution_notes(trained, mpp))
    inception, facts = load_inception_features(options.inception_weights, options.device)
    unit, images = describe_images(pairs, data)
    calibration, notes = _calibration(data, training, images, pairs, options, progress)
    methods = [*trained, *floors(calibration.regression, [method.name for method in trained])]
    source = Source(images, lambda number: _sample(images[number], pairs[number]))
    margin_px = interior_margin_px(min(sizes.smallest.width, sizes.smallest.height), trained)
    results = score_methods(
        source, methods, Scale(calibration.stained_from, mpp), batch_size=min(options.batch_size, sizes.at_once),
        margin_px=margin_px,
        inception=inception, seed=options.seed, progress=progress,
    )  # fmt: skip
    readers = () if unit == "patches" else fit_readers(calibration)
    called, reference_calls = call_slides(results, images, readers)
    progress(Progress("choosing pictures"))
    multiple_px = math.lcm(*(method.multiple_px for method in methods))
    return Evaluation(
        subject=f"{data.folder.resolve().name}: {options.split}, {pluralize(len(pairs), 'patch', 'patches')}",
        unit=unit,
        levels=tuple(sorted({pair.her2 for pair in data.pairs if pair.her2})),
        methods=tuple(called),
        calibration=calibration,
        reference_calls=reference_calls,
        interior_px=margin_px,
        inception=facts,
        examples=choose_examples(source, results, multiple_px, options.pictures, options.seed),
        notes=(*resolutions, *notes, *(doubts(calibration, images) if readers else ()), *_notes(data, options, unit)),
        facts={**_facts(data, options, mpp), "cut_to_multiples_of_px": _cut_to(multiple_px, sizes)},
    )


def find_split(folder: Path, options: EvaluateOptions) -> PairedData:
    """The data set with a role for every pair; patches that nothing names are for training.

    Raises
    ------
    DatasetError
        If there is no data set, or the split has no patches.
    """
    data = assign_groups(find_pairs(folder, order=options.order), options.group_by)
    if options.split == "validation" and not data.of("validation"):
        data = assign_roles(data, seed=options.seed)
    pairs = tuple(dataclasses.replace(pair, role=pair.role or "train") for pair in data.pairs)
    data = dataclasses.replace(data, pairs=pairs)
    if not data.of(options.split):
        counted = Counter(pair.role for pair in data.pairs)
        there = ", ".join(f"{role} {number:,}" for role, number in counted.items())
        raise DatasetError(
            f"{data.folder} has no {options.split} patches ({there}); choose another --split, or name one in a table "
            "with --group-by"
        )
    return data


def describe_images(pairs: Sequence[Pair], data: PairedData) -> tuple[str, tuple[ImageFacts, ...]]:
    """What the patches are to the scores, and what intervals are taken over, in the plural.

    A unit is the group where groups were asked for; else the patient, else the slide, else the group, of each pair by
    itself, and at last the patch.
    """
    asked_for = data.grouped_by not in ("", "patient", "slide", "group", "patch")
    keys = ("group",) if asked_for else ("patient", "slide", "group")
    found = [next((key for key in keys if getattr(pair, key)), "") for pair in pairs]
    kinds = [f"{key}s" if key else "patches" for key in (*keys, "") if key in found]
    shared = _shared_slides(pairs)
    return " and ".join(kinds) or "patches", tuple(
        ImageFacts(
            name=pair.name,
            unit=f"{key} {getattr(pair, key)}" if key else str(pair.ihc),
            her2=pair.her2,
            slide=f"{pair.patient} {pair.slide}" if pair.slide in shared else pair.slide,
        )
        for pair, key in zip(pairs, found, strict=True)
    )


def _shared_slides(pairs: Sequence[Pair]) -> set[str]:
    """Names of slides that several patients have."""
    patients: dict[str, set[str | None]] = defaultdict(set)
    for pair in pairs:
        if pair.slide is not None:
            patients[pair.slide].add(pair.patient)
    return {slide for slide, of in patients.items() if len(of) > 1}


def _sample(image: ImageFacts, pair: Pair) -> Sample:
    he, reference = read_pair(pair)
    return Sample(image, he, reference)


def _calibration(
    data: PairedData,
    training: Sequence[Pair], scored: Sequence[ImageFacts], pairs: Sequence[Pair], options: EvaluateOptions,
    progress: ProgressCallback,
) -> tuple[Calibration, tuple[str, ...]]:  # fmt: skip
    """From the training split; where there is none, the threshold alone, from the very references that are scored."""
    if training:
        return calibrate(_read(training, data, progress), options.stained_from), ()
    own = calibrate(
        ((image, *read_pair(pair)) for image, pair in zip(scored, pairs, strict=True)), options.stained_from
    )  # fmt: skip
    source = own.source if options.stained_from else "Otsu's threshold of the scored references"
    note = "there are no training patches: no colour regression, no HER2 cuts"
    if options.stained_from is None:
        note += ", and the stain's threshold is not blind"
    return Calibration(own.stained_from, source), (note,)


def _read(
    pairs: Sequence[Pair], data: PairedData, progress: ProgressCallback
) -> Iterator[tuple[ImageFacts, RGBImage, RGBImage]]:
    _, images = describe_images(pairs, data)
    source = Source(images, lambda number: _sample(images[number], pairs[number]))
    for number, sample in enumerate(source.read()):
        if number % 16 == 0:
            progress(Progress("looking at the training patches", number, len(pairs), unit="image"))
        assert sample.he is not None
        yield sample.image, sample.he, sample.reference


def _resolution_notes(models: Sequence[Method], mpp: float | None) -> Iterator[str]:
    """Which models were given other pixels than those of the patches; a warning each."""
    for method in models:
        own = method.facts.get("mpp")
        if differs(method, mpp):
            note = (
                f"{method.name} works at {own:g} µm/px, but the patches have {mpp:g}: they were resampled for it, "
                "and its answers back, which costs sharpness"
            )
        elif own and mpp is None:
            note = f"nothing states the patches' resolution (--mpp): {method.name} works at {own:g} µm/px"
        else:
            continue
        _log.warning("%s", note)
        yield note


def _notes(data: PairedData, options: EvaluateOptions, unit: str) -> Iterator[str]:
    if "patches" in unit:
        yield (
            "nothing says which patches belong to one patient or slide: intervals are over patches, and too narrow; "
            "and no slide can be called a HER2 level (name groups with --group-by)"
        )
    scored = {pair.group for pair in data.of(options.split)} - {None}
    shared = {pair.group for pair in data.of("train")} & scored
    if shared and options.split != "train":
        yield f"in training and in {options.split}: {pluralize(len(shared), 'group')}; the figures are flattered"
    if options.split != "test":
        yield f"these are {options.split} patches: what was chosen on them looks better than it is"


def _cut_to(multiple_px: int, sizes: PatchSizes) -> int:
    """The multiple, where it cuts any image."""
    sides = (*dataclasses.astuple(sizes.smallest), *dataclasses.astuple(sizes.largest))
    return multiple_px if any(side % multiple_px for side in sides) else 1


def _facts(data: PairedData, options: EvaluateOptions, mpp: float | None) -> dict[str, object]:
    return {
        "data": {
            "name": data.folder.resolve().name,
            "layout": data.layout,
            "grouped_by": data.grouped_by,
            "counts": data.counts(),
            "fingerprint": data.fingerprint(),
            "mpp": mpp,
            "stain": data.stain,
            "licence": data.licence,
        },
        "options": options.stated(),
    }
