"""Prepare a training run: dataset, split, metadata and estimate.

`prepare` finds, groups and splits the pairs, reads all headers and returns the `TrainingJob`, which is complete before
training starts. `estimate_resources` predicts the memory of such a job without running it.
"""

from __future__ import annotations

import dataclasses
import logging
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wsi2ihc.errors import DatasetError
from wsi2ihc.models.device import choose_precision, free_memory_bytes, parse_devices
from wsi2ihc.models.model_file import build_network
from wsi2ihc.models.model_spec import GeneratorSpec
from wsi2ihc.models.networks import PatchDiscriminator
from wsi2ihc.system import available_memory_bytes

from .data import Pair, PairedData, PatchSizes, assign_groups, assign_roles, check_images, find_pairs
from .data.images import describe_swapped_stains
from .data.loader import steps_per_epoch
from .fabric import count_processes
from .options import PRESETS, TrainOptions

ASSUMED_MPP = 0.5
"""µm per px written into the model, with a warning, if it is not stated anywhere."""

_MPP_TOLERANCE = 0.01
"""Relative difference of µm per px that is not a contradiction, as within a dataset."""

_log = logging.getLogger(__name__)

_OVERFITTED = "--overfit: validated on the training patches; the metrics do not generalize to others"

_COPIES = 4
"""Copies of every weight in float32: the weight, its gradient, and the two averages of Adam."""


@dataclass(frozen=True, slots=True)
class DatasetMetadata:
    """Metadata written into the model."""

    mpp: float
    stain: str
    license: str  # of the data; "" if unknown
    name: str  # of the dataset
    # assumptions, and what takes precedence where a preset contradicts the data; one sentence each
    notes: tuple[str, ...] = ()


def resolve_metadata(data: PairedData, options: TrainOptions) -> DatasetMetadata:
    """Combine the metadata of the options, the dataset and the preset, in this order of precedence."""
    notes = list(_contradictions(data, options))
    preset = PRESETS[options.preset]
    mpp = options.mpp or data.mpp or preset.get("mpp")
    if mpp is None:
        mpp = ASSUMED_MPP
        notes.append(f"the data does not state its resolution: {ASSUMED_MPP} µm/px is assumed and written into the "
                     "model, at which translate will read slides; state it with --mpp (BCI: 0.46)")  # fmt: skip
    stain = options.stain or data.stain or preset.get("stain")
    if stain is None:
        stain = "IHC"
        notes.append("the data does not state its stain: the model will call it IHC; state it with --stain")
    return DatasetMetadata(
        mpp=float(mpp),
        stain=stain,
        license=options.data_license or data.license or preset.get("data_license", ""),
        name=options.data_name or data.name or preset.get("data_name") or data.folder.resolve().name,
        notes=tuple(notes),
    )


def splits_by_patch(data: PairedData, options: TrainOptions) -> bool:
    """Return whether single patches may become validation: as the user states; a preset only applies to data without
    groups.
    """
    if options.split_by_patch is not None:
        return options.split_by_patch
    return not data.grouped_by and bool(PRESETS[options.preset].get("split_by_patch", False))


def _contradictions(data: PairedData, options: TrainOptions) -> Iterator[str]:
    """Yield where the preset contradicts the data and the user states nothing."""
    preset = PRESETS[options.preset]
    for name, label, stated in (
        ("mpp", "µm/px", data.mpp),
        ("stain", "stain", data.stain),
        ("data_license", "license", data.license),
        ("data_name", "name", data.name),
    ):
        default = preset.get(name)
        if stated is None or default is None or getattr(options, name) is not None or _agree(stated, default):
            continue
        yield (
            f"the dataset states the {label} {stated!s:.60}, the preset {options.preset} {default!s:.60}: the dataset "
            f"takes precedence (override with --{name.replace('_', '-')})"
        )
    needs_split = data.grouped_by and not any(pair.role == "validation" for pair in data.pairs)
    if needs_split and options.split_by_patch is None and preset.get("split_by_patch"):
        yield (
            f"the dataset states groups of patches ({data.grouped_by}), which the preset {options.preset} would split: "
            "they are kept together (override with --split-by-patch)"
        )


def _agree(stated: float | str, default: float | str) -> bool:
    if isinstance(stated, str) or isinstance(default, str):
        return stated == default
    return abs(stated / default - 1) <= _MPP_TOLERANCE


@dataclass(frozen=True, slots=True)
class TrainingJob:
    """Everything that is fixed before the first step.

    Attributes
    ----------
    options
        As given, except for what ``overfit`` changes.
    validation
        Validation pairs: all, or a fixed sample.
    sizes
        Of all patches that will be read.
    steps_per_epoch
        Full batches; an incomplete last one is dropped.
    notes
        Remarks for the user.
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
        """Total number of steps."""
        return self.steps_per_epoch * self.options.epochs


def prepare(folder: Path, options: TrainOptions) -> TrainingJob:
    """Find the data and check everything that will be read, before any work is done.

    Raises
    ------
    DatasetError
        If the data cannot be used: pairs without a partner, images of an unsupported format or size, no groups to split
        by, a batch larger than the data, A and B that seem to be swapped.
    """
    found = find_pairs(folder, order=options.order)
    if not options.overfit:
        found = assign_groups(found, options.group_by)
    metadata = resolve_metadata(found, options)
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
    orientation_notes = _orientation_warning(data)
    steps = steps_per_epoch(train, options.batch_size)
    if options.validation_patches:
        validation = _sample(validation, options.validation_patches, options.seed)
    spec = options.spec(mpp=metadata.mpp, stain=metadata.stain, license=metadata.license, about=options.about)
    notes = (*([_OVERFITTED] if options.overfit else []), *orientation_notes, *metadata.notes)
    for note in notes:
        _log.warning(note)
    return TrainingJob(options, data, metadata.name, train, validation, sizes, spec, steps, notes)


def _orientation_warning(data: PairedData) -> tuple[str, ...]:
    """Return a note if the stains seem to be swapped; an error if only the letters A and B assign them."""
    if not (clause := describe_swapped_stains(data.pairs)):
        return ()
    if data.is_lettered:
        raise DatasetError(
            f"{data.folder}: {clause}; use the other --order, or rename the folders to HE and IHC if it is correct"
        )
    return (f"{clause}: swap them, or use the other --order for side-by-side images",)


def _split_data(found: PairedData, options: TrainOptions) -> PairedData:
    return assign_roles(
        found,
        validation_share=options.validation_share,
        split_by_patch=splits_by_patch(found, options),
        seed=options.seed,
    )


def _overfit_data(data: PairedData, options: TrainOptions) -> PairedData:
    """Select a few pairs for both training and validation; these need no groups."""
    chosen = _sample(tuple(pair for pair in data.pairs if pair.role in ("train", None)), options.overfit, options.seed)
    if not chosen:
        raise DatasetError(f"{data.folder} holds no pair to train on")
    return dataclasses.replace(data, pairs=tuple(dataclasses.replace(pair, role="train") for pair in chosen))


def _sample(pairs: tuple[Pair, ...], count: int, seed: int) -> tuple[Pair, ...]:
    """Return at most ``count`` of the pairs in their order, the same for the same seed."""
    chosen = sorted(random.Random(seed).sample(range(len(pairs)), min(count, len(pairs))))
    return tuple(pairs[index] for index in chosen)


def describe_data(job: TrainingJob) -> dict[str, Any]:
    """Return the content of ``data.json``: role and group of every pair. Names only, no folders."""
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


@dataclass(frozen=True, slots=True)
class TrainingEstimate:
    """Resources that one process of a run needs."""

    generator_parameters: int
    discriminator_parameters: int
    processes: int  # that share a batch
    device: str
    precision: str
    weights_bytes: int  # weights, gradients and the averages of Adam
    activations_bytes: int  # maximum of what the layers keep for the gradients of one step
    memory_bytes: int  # the sum of both; memory of libraries and temporary buffers is additional
    available_bytes: int | None  # free memory of the GPU, or memory of the machine per process; None if unknown


def estimate_resources(job: TrainingJob) -> TrainingEstimate:
    """Estimate the resources without running anything: the networks run on torch's "meta" device, without memory."""
    options = job.options
    processes = count_processes(options)
    device = parse_devices(options.device)[0]
    precision = choose_precision(options.precision, device)
    side, images = options.crop_size, options.batch_size // processes.total
    with torch.device("meta"):
        generator, discriminator = build_network(job.spec), PatchDiscriminator(options.ndf)
        image = torch.empty(images, 3, side, side)
    generator_kept = saved_values(generator, image)
    discriminator_kept = saved_values(discriminator, image, image)
    # those of the generator are kept while the discriminator takes its step on two batches
    values = generator_kept + 2 * discriminator_kept
    generator_parameters, discriminator_parameters = (
        sum(one.numel() for one in module.parameters()) for module in (generator, discriminator)
    )
    weights_bytes = 4 * _COPIES * (generator_parameters + discriminator_parameters)
    activations_bytes = values * (4 if precision == "fp32" else 2)
    return TrainingEstimate(
        generator_parameters=generator_parameters,
        discriminator_parameters=discriminator_parameters,
        processes=processes.total,
        device=str(device),
        precision=precision,
        weights_bytes=weights_bytes,
        activations_bytes=activations_bytes,
        memory_bytes=weights_bytes + activations_bytes,
        available_bytes=_available_bytes(device, processes.local),
    )


def _available_bytes(device: torch.device, processes: int) -> int | None:
    if device.type == "cuda":
        return free_memory_bytes(device)
    available = available_memory_bytes()
    return None if available is None else available // processes


def saved_values(module: nn.Module, *inputs: Tensor) -> int:
    """Return the number of values that a module keeps for its gradients in one forward pass, counting each tensor
    once.
    """
    weights = {id(one) for one in module.parameters()}
    # holding the tensors keeps their ids from being used again
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if id(tensor) not in weights:
            kept[id(tensor)] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = module.train()(*inputs)
    del output
    return sum(tensor.numel() for tensor in kept.values())
