"""What is going to be trained: the data found, the split, and what the model will say of itself."""

from __future__ import annotations

import dataclasses
import logging
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsi2ihc.errors import DatasetError
from wsi2ihc.generator.spec import GeneratorSpec

from .data import Pair, PairedData, PatchSizes, assign_groups, assign_roles, check_images, find_pairs
from .data.orientation import exchanged
from .data.patches import steps_per_epoch
from .data_facts import facts_of, splits_by_patch
from .options import TrainOptions

_log = logging.getLogger(__name__)

_OVERFITTED = "--overfit: validated on the patches that are trained on; the figures say nothing of any others"


@dataclass(frozen=True, slots=True)
class TrainingJob:
    """Everything that is settled before the first step.

    options:          as asked for, but for what ``overfit`` changes
    data:             the pairs that were found, with their roles and groups
    data_name:        of the data set
    train:            what is trained on
    validation:       what is validated on: all of it, or a fixed sample
    sizes:            of all patches that will be read
    spec:             the generator's description, with resolution, stain and licence
    steps_per_epoch:  full batches; the ragged last one is dropped
    notes:            what the user should know
    """

    options: TrainOptions
    data: PairedData
    data_name: str
    train: tuple[Pair, ...]
    validation: tuple[Pair, ...]
    sizes: PatchSizes
    spec: GeneratorSpec
    steps_per_epoch: int
    notes: tuple[str, ...]

    @property
    def steps(self) -> int:
        """Of the whole run."""
        return self.steps_per_epoch * self.options.epochs


def prepare(folder: Path, options: TrainOptions) -> TrainingJob:
    """Find the data and check all of it that will be read, before any work is done.

    Raises
    ------
    DatasetError
        If the data cannot be used: pairs without a partner, images of a wrong kind or size, no groups to split by, a
        batch larger than the data, A and B that look as if they were exchanged.
    """
    found = find_pairs(folder, order=options.order)
    if not options.overfit:
        found = assign_groups(found, options.group_by)
    facts = facts_of(found, options)
    data = _overfit_data(found, options) if options.overfit else _split_data(found, options)
    train, validation = data.of("train"), data.of("validation")
    if options.overfit:
        validation = train
        options = dataclasses.replace(
            options,
            augmentation="none",
            stain_jitter=0.0,
            validation_patches=0,
            batch_size=min(options.batch_size, len(train)),
        )
    checked = train if options.overfit else train + validation
    sizes = check_images(checked, crop_px=options.crop_size)
    doubt = _orientation_doubt(data)
    steps = steps_per_epoch(train, options.batch_size)
    if options.validation_patches:
        validation = _sample(validation, options.validation_patches, options.seed)
    spec = options.spec(mpp=facts.mpp, stain=facts.stain, licence=facts.licence, about=options.about)
    notes = (*([_OVERFITTED] if options.overfit else []), *doubt, *facts.notes)
    for note in notes:
        _log.warning(note)
    return TrainingJob(options, data, facts.name, train, validation, sizes, spec, steps, notes)


def _orientation_doubt(data: PairedData) -> tuple[str, ...]:
    """A note where both stains look exchanged; letters in names are no reason to believe otherwise."""
    if not (clause := exchanged(data.pairs)):
        return ()
    if data.is_lettered:
        raise DatasetError(
            f"{data.folder}: {clause}; give the other --order, or call the folders HE and IHC if it is right"
        )
    return (f"{clause}: exchange them, or give the other --order for side-by-side images",)


def _split_data(found: PairedData, options: TrainOptions) -> PairedData:
    return assign_roles(
        found,
        validation_share=options.validation_share,
        split_by_patch=splits_by_patch(found, options),
        seed=options.seed,
    )


def _overfit_data(data: PairedData, options: TrainOptions) -> PairedData:
    """A few pairs to train on and nothing else: they need no groups, since they are validated on as well."""
    chosen = _sample(tuple(pair for pair in data.pairs if pair.role in ("train", None)), options.overfit, options.seed)
    if not chosen:
        raise DatasetError(f"{data.folder} holds no pair to train on")
    return dataclasses.replace(data, pairs=tuple(dataclasses.replace(pair, role="train") for pair in chosen))


def _sample(pairs: tuple[Pair, ...], count: int, seed: int) -> tuple[Pair, ...]:
    """At most this many of the pairs, in their order, the same for the same seed."""
    chosen = sorted(random.Random(seed).sample(range(len(pairs)), min(count, len(pairs))))
    return tuple(pairs[index] for index in chosen)


def describe_data(job: TrainingJob) -> dict[str, Any]:
    """What ``data.json`` holds, as JSON values: every pair's role and group. Names only, no folders."""
    data = job.data
    pairs = [{"name": one.name, "role": one.role, "group": one.group, "her2": one.her2} for one in data.pairs]
    return {
        "name": job.data_name,
        "layout": data.layout,
        "grouped_by": data.grouped_by,
        "counts": data.counts(),
        "patch_sizes": str(job.sizes),
        "fingerprint": data.fingerprint(),
        "validated_on": len(job.validation),
        "pairs": pairs,
    }
