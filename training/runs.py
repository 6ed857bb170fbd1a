"""The folder of a run, and what lies where in it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsi2ihc.errors import OutputError, OutputExistsError, TrainingError

from .files import write_whole
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
        """See that a new run can begin here.

        Raises
        ------
        OutputExistsError
            If the folder holds anything.
        OutputError
            If it is a file.
        """
        if self.path.is_file():
            raise OutputError(f"--out {self.path} is a file; name a folder for the run")
        if self.last.exists():
            raise OutputExistsError(f"{self.path} holds a run; go on with it by --resume, or choose another --out")
        if self.path.is_dir() and any(not _is_left_by_a_start(entry) for entry in self.path.iterdir()):
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

    def begin(self, options: TrainOptions, data: dict[str, Any]) -> None:
        """Make the folder, and write down what the run starts from.

        Raises
        ------
        OutputError
            If that cannot be written.
        """
        try:
            self.last.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"the run's folder {self.path} cannot be made ({error.strerror})") from error
        write_whole(self.config, config_text(options).encode())
        write_json(self.data, data)


def write_json(path: Path, value: Any) -> None:
    """Write one JSON object, whole or not at all.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    write_whole(path, (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


_STARTED = {"config.toml", "data.json", "steps.csv", "validation.csv", "pictures", "tensorboard", "checkpoints"}


def _is_left_by_a_start(entry: Path) -> bool:
    """Whether this may be of a run that ended before its first checkpoint, of which there is nothing to lose."""
    return entry.name in _STARTED
