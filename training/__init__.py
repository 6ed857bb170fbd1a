"""Paired datasets, losses and the training loop (import name ``wsi2ihc.training``).

>>> from wsi2ihc.training import prepare, resolve_options, train
>>> job = prepare(Path("BCI"), resolve_options({"epochs": 20, "preset": "bci"}))  # doctest: +SKIP
>>> train(job, "runs/first")  # doctest: +SKIP

The way of a batch: `data` finds, splits, decodes and crops pairs; `loop` asks for one batch per step; `step` runs both
networks on it with the `losses` of the `options`; `log` and `history` write down what came of it; `validation` and
`metrics` tell how good the generator is; `checkpoints` keep the state; `finishing` makes the model file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from wsi2ihc.lazy import lazily

if TYPE_CHECKING:
    from .job import prepare as prepare
    from .options import TrainOptions as TrainOptions
    from .options import resolve_options as resolve_options
    from .trainer import train as train

_HOMES = {"TrainOptions": ".options", "prepare": ".job", "resolve_options": ".options", "train": ".trainer"}
"""Public names and where they live; imported on first use, since most of them bring torch."""

__all__ = ["TrainOptions", "prepare", "resolve_options", "train"]

__getattr__ = lazily(__name__, _HOMES)
