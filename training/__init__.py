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

import lazy_loader

if TYPE_CHECKING:
    from .options import TrainOptions as TrainOptions
    from .options import resolve_options as resolve_options
    from .trainer import train as train
    from .training_setup import prepare as prepare

# most of them import torch
__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "options": ["TrainOptions", "resolve_options"],
        "trainer": ["train"],
        "training_setup": ["prepare"],
    },
)
