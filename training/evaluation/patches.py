"""Evaluate models on the patches of a paired dataset."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from wsi2ihc.concurrency import Progress, ProgressCallback, silent
from wsi2ihc.errors import DatasetError
from wsi2ihc.geometry import RGBImage
from wsi2ihc.text import pluralize

from ..data import Pair, PairedData, PatchSizes, assign_groups, assign_roles, find_pairs, read_pair, read_sizes
from ..metrics.bootstrap import ImageMetadata
from ..metrics.pair_statistics import Scale
from .methods import Method, at_model_resolution, baselines, load_methods, resolution_differs
from .options import EvaluateOptions
from .results import (
    Evaluation,
    ThresholdFit,
    fit_classifiers,
    fit_threshold,
    predict_slides,
    prediction_warnings,
    reference_threshold,
)
from .scores import Sample, Source, choose_examples, interior_margin_px, load_inception_features, score_methods

_log = logging.getLogger(__name__)


def evaluate_patches(
    folder: Path, models: Sequence[str], options: EvaluateOptions | None = None, progress: ProgressCallback = silent
) -> Evaluation:
    """Translate the patches of a split with each model and both baselines, and score them.

    Parameters
    ----------
    folder
        A paired dataset, in a layout that `wsi2ihc.training.data.find_pairs` supports.
    models
        Names or files.
    options
        Evaluation options.
    progress
        Called with the number of patches done.

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
    trained = [at_model_resolution(one, mpp) for one in load_methods(models, options.device, options.precision)]
    resolutions = tuple(_resolution_notes(trained, mpp))
    inception, metadata = load_inception_features(options.inception_weights, options.device)
    unit, images = describe_images(pairs, data)
    threshold_fit, notes = _fit_threshold(data, training, pairs, options, progress)
    methods = [*trained, *baselines(threshold_fit.regression, [method.name for method in trained])]
    source = Source(images, lambda number: _sample(images[number], pairs[number]))
    margin_px = interior_margin_px(min(sizes.smallest.width, sizes.smallest.height), trained)
    results = score_methods(
        source, methods, Scale(threshold_fit.stained_from, mpp), batch_size=min(options.batch_size, sizes.at_once),
        margin_px=margin_px,
        inception=inception, seed=options.seed, progress=progress,
    )  # fmt: skip
    classifiers = () if unit == "patches" else fit_classifiers(threshold_fit)
    called, reference_predictions = predict_slides(results, images, classifiers)
    progress(Progress("choosing examples"))
    multiple_px = math.lcm(*(method.multiple_px for method in methods))
    return Evaluation(
        subject=f"{data.folder.resolve().name}: {options.split}, {pluralize(len(pairs), 'patch', 'patches')}",
        resampling_unit=unit,
        levels=tuple(sorted({pair.her2 for pair in data.pairs if pair.her2})),
        methods=tuple(called),
        threshold_fit=threshold_fit,
        reference_predictions=reference_predictions,
        interior_px=margin_px,
        inception=metadata,
        examples=choose_examples(source, results, multiple_px, options.examples, options.seed),
        notes=(
            *resolutions,
            *notes,
            *(prediction_warnings(threshold_fit, images) if classifiers else ()),
            *_notes(data, options, unit),
        ),
        metadata={
            "data": _describe_data(data, mpp),
            "options": options.stated(),
            "cropped_to_multiples_of_px": _crop_multiple(multiple_px, sizes),
        },
    )


def find_split(folder: Path, options: EvaluateOptions) -> PairedData:
    """Return the dataset with a role for every pair; patches without a stated role are for training.

    Raises
    ------
    DatasetError
        If there is no dataset, or the split has no patches.
    """
    data = assign_groups(find_pairs(folder, order=options.order), options.group_by)
    if options.split == "validation" and not data.of("validation"):
        data = assign_roles(data, seed=options.seed)
    pairs = tuple(dataclasses.replace(pair, role=pair.role or "train") for pair in data.pairs)
    data = dataclasses.replace(data, pairs=pairs)
    if not data.of(options.split):
        counted = Counter(pair.role for pair in data.pairs)
        available = ", ".join(f"{role} {number:,}" for role, number in counted.items())
        raise DatasetError(
            f"{data.folder} has no {options.split} patches ({available}); choose another --split, or assign it in "
            "a table with --group-by"
        )
    return data


def describe_images(pairs: Sequence[Pair], data: PairedData) -> tuple[str, tuple[ImageMetadata, ...]]:
    """Return the plural of the resampling unit, and the metadata of the patches for `Scores`.

    The resampling unit is the group if the user asked for groups; otherwise, for each pair, its patient, else its
    slide, else its group, else the patch itself.
    """
    asked_for = data.grouped_by not in ("", "patient", "slide", "group", "patch")
    keys = ("group",) if asked_for else ("patient", "slide", "group")
    found = [next((key for key in keys if getattr(pair, key)), "") for pair in pairs]
    kinds = [f"{key}s" if key else "patches" for key in (*keys, "") if key in found]
    patients: dict[str, set[str | None]] = defaultdict(set)
    for pair in pairs:
        patients[pair.slide or ""].add(pair.patient)
    return " and ".join(kinds) or "patches", tuple(
        ImageMetadata(
            name=pair.name,
            resampling_unit=f"{key} {getattr(pair, key)}" if key else str(pair.ihc),
            her2=pair.her2,
            slide=f"{pair.patient} {pair.slide}" if pair.slide and len(patients[pair.slide]) > 1 else pair.slide,
        )
        for pair, key in zip(pairs, found, strict=True)
    )


def _sample(image: ImageMetadata, pair: Pair) -> Sample:
    he, reference = read_pair(pair)
    return Sample(image, he, reference)


def _fit_threshold(
    data: PairedData, training: Sequence[Pair], pairs: Sequence[Pair], options: EvaluateOptions,
    progress: ProgressCallback,
) -> tuple[ThresholdFit, tuple[str, ...]]:  # fmt: skip
    """Fit to the training split; without one, only the threshold, to the scored references."""
    if training:
        return fit_threshold(_read(training, data, progress), options.stained_from), ()
    references = (read_pair(pair)[1] for pair in pairs)
    note = "there are no training patches: no color regression, no HER2 cutoffs"
    if options.stained_from is None:
        note += ", and the stain threshold is not independent of the scored references"
    return reference_threshold(references, "scored references", options.stained_from), (note,)


def _read(
    pairs: Sequence[Pair], data: PairedData, progress: ProgressCallback
) -> Iterator[tuple[ImageMetadata, RGBImage, RGBImage]]:
    _, images = describe_images(pairs, data)
    source = Source(images, lambda number: _sample(images[number], pairs[number]))
    for number, sample in enumerate(source.read()):
        if number % 16 == 0:
            progress(Progress("reading the training patches", number, len(pairs), unit="image"))
        assert sample.he is not None
        yield sample.image, sample.he, sample.reference


def _resolution_notes(models: Sequence[Method], mpp: float | None) -> Iterator[str]:
    """Yield and log a note for each model whose input was resampled or whose resolution may not match."""
    for method in models:
        model_mpp = method.metadata.get("mpp")
        if resolution_differs(method, mpp):
            note = (
                f"{method.name} works at {model_mpp:g} µm/px, but the patches have {mpp:g}: they were resampled for it "
                "and its output was resampled back, which reduces sharpness"
            )
        elif model_mpp and mpp is None:
            note = f"the resolution of the patches is unknown (--mpp): {method.name} works at {model_mpp:g} µm/px"
        else:
            continue
        _log.warning("%s", note)
        yield note


def _notes(data: PairedData, options: EvaluateOptions, unit: str) -> Iterator[str]:
    if "patches" in unit:
        yield (
            "patients and slides of patches are unknown: intervals are over patches, and too narrow, "
            "and no HER2 level can be predicted (give groups with --group-by)"
        )
    scored = {pair.group for pair in data.of(options.split)} - {None}
    shared = {pair.group for pair in data.of("train")} & scored
    if shared and options.split != "train":
        yield f"{pluralize(len(shared), 'group')} in both training and {options.split}: the metrics are too optimistic"
    if options.split != "test":
        yield f"these are {options.split} patches: metrics of models chosen on them are too optimistic"


def _crop_multiple(multiple_px: int, sizes: PatchSizes) -> int:
    """Return the multiple if any image is cropped to it, else 1."""
    sides = (*dataclasses.astuple(sizes.smallest), *dataclasses.astuple(sizes.largest))
    return multiple_px if any(side % multiple_px for side in sides) else 1


def _describe_data(data: PairedData, mpp: float | None) -> dict[str, object]:
    return {
        "name": data.folder.resolve().name, "layout": data.layout, "grouped_by": data.grouped_by,
        "counts": data.counts(), "fingerprint": data.fingerprint(), "mpp": mpp, "stain": data.stain,
        "license": data.license,
    }  # fmt: skip
