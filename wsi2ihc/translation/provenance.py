"""What the output file says of itself."""

from __future__ import annotations

import json

from ..pyramid import OmeImage
from .job import Job
from .report import DISCLAIMER, describe_model, options_for_report, versions


def describe_image(job: Job, name: str) -> OmeImage:
    """What a job's output ``name`` is."""
    info, grid, extent = job.slide.info, job.scene.grid, job.plan.extent
    model = describe_model(job.generator)
    provenance = {
        "source": info.name,
        "source quickhash": info.quickhash,
        "model": str(model["name"]),
        "model version": model["version"],
        "stain": str(model.get("stain") or ""),
        "device": job.machine.device,
        "precision": job.machine.precision,
        "blend": job.blend,
        "options": json.dumps(options_for_report(job.options, name), default=str),
        "versions": json.dumps(versions()),
        "notice": DISCLAIMER,
    }
    # A coarser working grid is seen as through a weaker objective.
    magnification = None if info.magnification is None else info.magnification / grid.downsample[0]
    return OmeImage(
        name=name,
        size=extent.size,
        mpp=grid.mpp,
        magnification=magnification,
        channel=job.generator.channel_name,
        description=caption(job),
        position_um=(extent.x * grid.mpp[0], extent.y * grid.mpp[1]) if job.options.region else None,
        provenance=provenance,
    )


def caption(job: Job) -> str:
    """What the result is, of which slide, and that it is no stain: for people who see nothing else of it."""
    generator = job.generator
    return f"{generator.channel_name} of {job.slide.info.name}. {generator.description.removesuffix('.')}. {DISCLAIMER}"
