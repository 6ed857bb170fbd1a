"""The end of a run: statistics re-estimated and frozen, what that changed, and the model file.

Running averages over small batches can be poor, and the published test script avoids them by running in training mode,
which shows seams. Here they are taken once more, over many crops, with the weights as they are at last. How far apart
training mode and evaluation mode are is then measured, not hoped for.
"""

from __future__ import annotations

import copy
import dataclasses
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from wsi2ihc.errors import ModelError
from wsi2ihc.generator.checkpoint import build_network, save_checkpoint
from wsi2ihc.generator.reach import dependency
from wsi2ihc.progress import Progress, ProgressCallback
from wsi2ihc.translation.report import versions

from .checkpoints import Best, Position, read_state
from .frozen_statistics import RUNNING_FROM_STEP, statistics_steps, with_estimated_statistics
from .job import TrainingJob
from .machine import count_workers
from .runs import RunFolder, write_json
from .schedule import step_seed
from .validation import WHOLE, View, border, interior, validate

if TYPE_CHECKING:
    from lightning_fabric import Fabric

SMALLEST_INTERIOR_PX = 64
"""An interior smaller than this says nothing: it is one block of the stain correlation."""

Figures = dict[str, float | None]


def finish(
    job: TrainingJob, fabric: Fabric, folder: RunFolder, position: Position, progress: ProgressCallback
) -> dict[str, Any]:
    """Make the model file out of the best epoch's generator, and tell how good it is.

    Returns
    -------
    dict
        what ``summary.json`` holds, as JSON values

    Raises
    ------
    ModelError
        If the re-estimated statistics are not finite.
    OutputError
        If a file cannot be written.
    """
    progress(Progress("re-estimating the statistics"))
    running, best = _chosen_generator(job, folder, position.best)
    running.to(fabric.device).eval()
    is_frozen = job.spec.norm == "batch"
    module = with_estimated_statistics(running, job) if is_frozen else running
    progress(Progress("validating the model"))
    figures = _figures(job, fabric, module, {**WHOLE, **_border_views(job, module)})
    summary: dict[str, Any] = {
        "steps": position.step,
        "seconds": position.seconds,
        "best": dataclasses.asdict(best) if best else None,
        "validated_with": _validated_with(job),
        "validation": figures["whole"],
        "running_statistics": _figures(job, fabric, running, WHOLE)["whole"] if is_frozen else None,
        "training_mode": _figures(job, fabric, _in_training_mode(module, job), WHOLE)["whole"],
        "interior": figures.get("interior"),
        "border": figures.get("border"),
        "precision": str(fabric.strategy.precision.precision),
        "device": _device_name(fabric.device),
        "processes": fabric.world_size,
    }
    spec = dataclasses.replace(job.spec, training=_provenance(job, summary))
    summary["model_sha256"] = save_checkpoint(folder.model, module.cpu(), spec)
    write_json(folder.summary, summary)
    return summary


def _chosen_generator(job: TrainingJob, folder: RunFolder, best: Best | None) -> tuple[nn.Module, Best | None]:
    """The best epoch's generator, and which that is; the last one's where no validation gave a figure.

    What the file of the best says counts: a run killed between its two files can have a newer one than its state knows.
    """
    path = folder.best if best else folder.last
    module, state = build_network(job.spec), read_state(path)
    try:
        module.load_state_dict(state.get("model") or state["generator"])  # the best's generator is the model already
        return module, Best(**state["best"]) if best else None
    except (KeyError, TypeError, RuntimeError) as error:
        raise ModelError(f"the checkpoint {path} is not of this run ({' '.join(str(error).split())!s:.120})") from error


def _validated_with(job: TrainingJob) -> str:
    """What the generator normalized by in the validations of the epochs, of which the best was chosen."""
    if job.spec.norm != "batch":
        return "statistics of each image"
    return f"statistics re-estimated over training crops before step {RUNNING_FROM_STEP}, then running averages"


def _in_training_mode(module: nn.Module, job: TrainingJob) -> nn.Module:
    """A copy that answers as the published test script does: each batch's own statistics, dropout on."""
    torch.manual_seed(step_seed(job.options.seed, job.steps, 0))
    return copy.deepcopy(module).train()


def _border_views(job: TrainingJob, module: nn.Module) -> dict[str, View]:
    """Interior and border of the patches, where they are large enough to have both."""
    reach = dependency(module)
    smallest_px = min(job.sizes.smallest.width, job.sizes.smallest.height)
    if not reach.is_local or smallest_px < 2 * reach.radius_px + SMALLEST_INTERIOR_PX:
        return {}
    return {"interior": interior(reach.radius_px), "border": border(reach.radius_px)}


def _figures(job: TrainingJob, fabric: Fabric, module: nn.Module, views: Mapping[str, View]) -> dict[str, Figures]:
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
    return {name: _as_json(one.figures()) for name, one in scores.items()}


def _as_json(figures: Mapping[str, float]) -> Figures:
    """JSON has neither NaN nor infinity."""
    return {name: value if abs(value) < float("inf") else None for name, value in figures.items()}


def _provenance(job: TrainingJob, summary: Mapping[str, Any]) -> dict[str, Any]:
    options, data = job.options, job.data
    configuration = dataclasses.asdict(options)
    if options.group_by and Path(options.group_by).suffix.lower() == ".csv":
        configuration["group_by"] = Path(options.group_by).name  # its folders may name people
    crops = statistics_steps(options) * options.batch_size
    return {
        "recipe": options.recipe,
        "data": {
            "name": job.data_name,
            "layout": data.layout,
            "licence": job.spec.licence,
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
