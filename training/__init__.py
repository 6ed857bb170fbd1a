"""Paired datasets, losses and the training loop (import name ``wsi2ihc.training``).

>>> from wsi2ihc.training import prepare, resolve_options, train
>>> job = prepare(Path("BCI"), resolve_options({"epochs": 20, "preset": "bci"}))  # doctest: +SKIP
>>> train(job, "runs/first")  # doctest: +SKIP

`training_setup` finds and checks the data (`data`). `trainer` runs the loop: it takes one batch per step, trains both
networks with it (`train_step`, `losses`), logs the losses (`history`), validates after epochs (`validation`, `metrics`)
and saves checkpoints (`checkpoint`). `export` writes the model file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from wsi2ihc.lazy import lazily

if TYPE_CHECKING:
    from .options import TrainOptions as TrainOptions
    from .options import resolve_options as resolve_options
    from .trainer import train as train
    from .training_setup import prepare as prepare

_HOMES = {"TrainOptions": ".options", "prepare": ".training_setup", "resolve_options": ".options", "train": ".trainer"}
"""Public names and where they live; imported on first use, since most of them bring torch."""

__all__ = ["TrainOptions", "prepare", "resolve_options", "train"]

__getattr__ = lazily(__name__, _HOMES)
