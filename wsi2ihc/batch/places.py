"""Where things of a batch lie in the output folder, beside the outputs themselves."""

from __future__ import annotations

from pathlib import Path

BATCH_FOLDER = ".wsi2ihc-batch"
"""What belongs to the batch and to no reader of slides."""


def marker_path(output: Path) -> Path:
    """Of the marker that says that an output is done."""
    return output.parent / BATCH_FOLDER / "done" / f"{output.name}.json"


def thumbnail_path(output: Path) -> Path:
    """Of an output's small picture."""
    return output.parent / BATCH_FOLDER / "thumbnails" / f"{output.name}.jpg"


def locks_folder(folder: Path) -> Path:
    """Where the locks on outputs of a folder lie."""
    return folder / BATCH_FOLDER / "locks"


def shards_folder(folder: Path) -> Path:
    """Where each task of an array job notes the list that it was dealt from."""
    return folder / BATCH_FOLDER / "shards"


def logs_folder(folder: Path) -> Path:
    """Where what children print is kept."""
    return folder / BATCH_FOLDER / "logs"
