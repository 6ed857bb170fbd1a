"""The folder of a run, and what lies where in it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsi2ihc.errors import OutputError, OutputExistsError, TrainingError
from wsi2ihc.files import json_bytes
from wsi2ihc.locks import LOCK, locked

from .files import write_whole
from .history import PICTURES, STEPS, TENSORBOARD, VALIDATION
from .options import TrainOptions, config_text


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Paths of one run's files.

    config.toml       the resolved configuration
    data.json         the patches found, with their roles and groups
    steps.csv, validation.csv, pictures/, tensorboard/    written as it goes (`history`)
    checkpoints/      last.pt to resume from, best.pt the best epoch's generator
    curves.png        of all losses and metrics
    model.safetensors the generator for ``translate --model``
    summary.json      the figures at the end
    """

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.toml"

    @property
    def data(self) -> Path:
        return self.path / "data.json"

    @property
    def last(self) -> Path:
        return self.path / "checkpoints" / "last.pt"

    @property
    def best(self) -> Path:
        return self.path / "checkpoints" / "best.pt"

    @property
    def curves(self) -> Path:
        return self.path / "curves.png"

    @property
    def model(self) -> Path:
        return self.path / "model.safetensors"

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"

    def check_new(self) -> None:
        """See that a new run can begin here. What a run left that ended before its first checkpoint may be there.

        Raises
        ------
        OutputExistsError
            If the folder holds anything else.
        OutputError
            If it is a file.
        """
        if self.path.exists() and not self.path.is_dir():
            raise OutputError(f"--out {self.path} is a file; name a folder for the run")
        if self.last.exists():
            raise OutputExistsError(f"{self.path} holds a run; go on with it by --resume, or choose another --out")
        entries = {entry.name for entry in self.path.iterdir()} - {LOCK} if self.path.is_dir() else set()
        if entries and not (self.data.name in entries and entries <= _OF_A_START):
            raise OutputExistsError(f"{self.path} is not empty and holds no checkpoint; choose another --out")

    def check_resumable(self) -> None:
        """See that there is a checkpoint.

        Raises
        ------
        TrainingError
            If there is none.
        """
        if not self.last.is_file():
            raise TrainingError(f"{self.path} holds no run to resume (there is no {self.last.relative_to(self.path)})")

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Make the folder, and keep other trainings out of it while the body runs.

        The lock ends with the process however that ends. Where the system has no such locks (Windows, some network file
        systems), nobody is kept out.

        Raises
        ------
        OutputError
            If the folder cannot be made, or another process is training in it.
        """
        with locked(self.path, f"another training is at work in {self.path}; wait for it, or choose another --out"):
            yield

    def begin(self, options: TrainOptions, data: dict[str, Any]) -> None:
        """Write down what the run starts from.

        Raises
        ------
        OutputError
            If that cannot be written.
        """
        write_json(self.data, data)
        write_whole(self.config, config_text(options).encode())


_OF_A_START = {"data.json", "config.toml", "checkpoints", STEPS, VALIDATION, PICTURES, TENSORBOARD}


def write_json(path: Path, value: Any) -> None:
    """Write one JSON object, whole or not at all.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    write_whole(path, json_bytes(value))
