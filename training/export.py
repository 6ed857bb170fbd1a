"""Export of the trained model: frozen statistics, final validation, and the model file."""

from __future__ import annotations

import copy
import dataclasses
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from wsi2ihc.concurrency import Progress, ProgressCallback
from wsi2ihc.errors import ModelError
from wsi2ihc.models.model_file import build_network, save_checkpoint
from wsi2ihc.models.receptive_field import dependency
from wsi2ihc.translation.report import versions

from .checkpoint import BestEpoch, RunFolder, TrainingState, read_state, write_json
from .fabric import count_workers
from .train_step import step_seed
from .training_setup import TrainingJob
from .validation import (
    FULL_IMAGE,
    RUNNING_FROM_STEP,
    View,
    border,
    interior,
    statistics_steps,
    validate,
    with_estimated_statistics,
)

if TYPE_CHECKING:
    from lightning_fabric import Fabric

SMALLEST_INTERIOR_PX = 64
"""Smaller interiors are not meaningful: they are one block of the stain correlation."""

Metrics = dict[str, float | None]


def export_model(
    job: TrainingJob, fabric: Fabric, folder: RunFolder, state: TrainingState, progress: ProgressCallback
) -> dict[str, Any]:
    """Write the model file with the best epoch's generator, validate it, and return the content of ``summary.json``.

    Raises
    ------
    ModelError
        If the re-estimated statistics are not finite.
    """
    progress(Progress("re-estimating the statistics"))
    running, best = _chosen_generator(job, folder, state.best)
    running.to(fabric.device).eval()
    is_frozen = job.spec.norm == "batch"
    module = with_estimated_statistics(running, job) if is_frozen else running
    progress(Progress("validating the model"))
    metrics = _validate(job, fabric, module, {**FULL_IMAGE, **_border_views(job, module)})
    summary: dict[str, Any] = {
        "steps": state.step,
        "seconds": state.seconds,
        "best": dataclasses.asdict(best) if best else None,
        "validated_with": _validated_with(job),
        "validation": metrics["full_image"],
        "running_statistics": _validate(job, fabric, running, FULL_IMAGE)["full_image"] if is_frozen else None,
        "training_mode": _validate(job, fabric, _in_training_mode(module, job), FULL_IMAGE)["full_image"],
        "interior": metrics.get("interior"),
        "border": metrics.get("border"),
        "precision": str(fabric.strategy.precision.precision),
        "device": _device_name(fabric.device),
        "processes": fabric.world_size,
    }
    spec = dataclasses.replace(job.spec, training=_provenance(job, summary))
    summary["model_sha256"] = save_checkpoint(folder.model, module.cpu(), spec)
    write_json(folder.summary, summary)
    return summary


def _chosen_generator(
    job: TrainingJob, folder: RunFolder, best: BestEpoch | None
) -> tuple[nn.Module, BestEpoch | None]:
    """Return the generator of the best epoch, and which that is; of the last one if no validation gave a metric.

    The best-epoch file is authoritative: if a run was killed between writing its two files, that file is newer than the
    state.
    """
    path = folder.best if best else folder.last
    module, checkpoint = build_network(job.spec), read_state(path)
    try:
        # the best-epoch file holds the model only
        module.load_state_dict(checkpoint.get("model") or checkpoint["generator"])
        return module, BestEpoch(**checkpoint["best"]) if best else None
    except (KeyError, TypeError, RuntimeError) as error:
        raise ModelError(f"the checkpoint {path} is not of this run ({' '.join(str(error).split())!s:.120})") from error


def _validated_with(job: TrainingJob) -> str:
    """Describe which statistics the generator used in the validations of the epochs."""
    if job.spec.norm != "batch":
        return "statistics of each image"
    return f"statistics re-estimated over training crops before step {RUNNING_FROM_STEP}, then running averages"


def _in_training_mode(module: nn.Module, job: TrainingJob) -> nn.Module:
    """Return a copy that works like the published test script: statistics of each batch, dropout on."""
    torch.manual_seed(step_seed(job.options.seed, job.steps, 0))
    return copy.deepcopy(module).train()


def _border_views(job: TrainingJob, module: nn.Module) -> dict[str, View]:
    """Return the views of interior and border, if the patches are large enough to have both."""
    field = dependency(module)
    smallest_px = min(job.sizes.smallest.width, job.sizes.smallest.height)
    if not field.is_local or smallest_px < 2 * field.radius_px + SMALLEST_INTERIOR_PX:
        return {}
    return {"interior": interior(field.radius_px), "border": border(field.radius_px)}


def _validate(job: TrainingJob, fabric: Fabric, module: nn.Module, views: Mapping[str, View]) -> dict[str, Metrics]:
    scores, _ = validate(
        module,
        job.validation,
        fabric.device,
        batch_size=job.options.batch_size,
        multiple=job.options.size_multiple,
        workers=count_workers(job.options),
        views=views,
        autocast=fabric.autocast,
    )
    # None for NaN and infinity, which JSON does not have
    return {
        view: {name: value if abs(value) < float("inf") else None for name, value in one.compute().items()}
        for view, one in scores.items()
    }


def _provenance(job: TrainingJob, summary: Mapping[str, Any]) -> dict[str, Any]:
    options, data = job.options, job.data
    configuration = dataclasses.asdict(options)
    if options.group_by and Path(options.group_by).suffix.lower() == ".csv":
        configuration["group_by"] = Path(options.group_by).name  # its folders may contain personal names
    crops = statistics_steps(options) * options.batch_size
    return {
        "recipe": options.recipe,
        "data": {
            "name": job.data_name,
            "layout": data.layout,
            "license": job.spec.license,
            "grouped_by": data.grouped_by,
            "counts": data.counts(),
            "trained_on": len(job.train),
            "validated_on": len(job.validation),
            "fingerprint": data.fingerprint(),
            "icc": data.icc,
        },
        "statistics": f"re-estimated over {crops} training crops" if job.spec.norm == "batch" else "of each image",
        "notes": list(job.notes),
        "configuration": configuration,
        "results": dict(summary),
        "versions": versions(),
    }


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({platform.machine()}, {torch.get_num_threads()} threads)"
