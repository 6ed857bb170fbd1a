"""A dataset and options with which a training run takes about a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from make_pairs import side_by_side

from wsi2ihc.training.options import TrainOptions, resolve_options

TINY: dict[str, Any] = {
    "ngf": 4, "ndf": 4, "depth": 1, "crop_size": 32, "batch_size": 2, "epochs": 3, "checkpoint_every": 2,
    "log_every": 2, "samples": 1, "workers": 0, "precision": "fp32", "device": "cpu", "tensorboard": False,
    "mpp": 0.5, "stain": "HER2",
}  # fmt: skip

STEPS_PER_EPOCH = 3


def tiny(**changes: Any) -> TrainOptions:
    """Return the options of a tiny run, with changes."""
    return resolve_options({**TINY, **changes})


def tiny_pairs(folder: Path) -> Path:
    """Seven pairs for training (three steps per epoch), three for validation, two unreadable ones for test."""
    names = {"train": [f"t{i}" for i in range(7)], "val": [f"v{i}" for i in range(3)], "test": ["x0", "x1"]}
    side_by_side(folder, names, size=(48, 48))
    for path in (folder / "test").iterdir():
        path.write_text("not an image")
    return folder
