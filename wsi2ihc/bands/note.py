"""The note of what was published: it is in the store before the output has its name, and says how that is known again.

A run that finds a store whose output is there by its note has nothing left to do but the last steps.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from ..errors import OutputError
from ..files import read_json
from ..pyramid import PyramidOptions, published
from ..translation.report import TranslateReport, is_stored_as
from .places import PUBLISHED


def note_published(folder: Path, unpublished: Path, report: TranslateReport) -> None:
    """Note in a store what will have been published, before it is: its trace and its report.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    facts = {"trace": _trace_of(unpublished), "report": report.to_json()}
    with published(folder / PUBLISHED, overwrite=True) as partial:
        partial.write_text(json.dumps(facts, allow_nan=False), encoding="utf-8")


def is_published(folder: Path, output: Path, pyramid: PyramidOptions) -> bool:
    """Whether the output is there, comes from this store and is stored as asked: only the last steps are wanting."""
    try:
        facts = read_json(folder / PUBLISHED)
        stored = facts["report"]["options"]["pyramid"]
        return bool(facts["trace"] == _trace_of(output)) and is_stored_as(stored, output, pyramid)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def forget_published(folder: Path) -> None:
    """Take the output for one that does not come from this store."""
    (folder / PUBLISHED).unlink(missing_ok=True)


def noted_report(folder: Path, output: Path) -> TranslateReport:
    """The report of an output that is published.

    Raises
    ------
    OutputError
        If the note is damaged.
    """
    try:
        facts = read_json(folder / PUBLISHED)["report"]
        return replace(TranslateReport.from_json(facts), output_name=output.name)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OutputError(
            f"{folder}: what was noted of the finished {output.name} is damaged ({error!s:.80}); the output is "
            "complete, and the folder can be removed"
        ) from error


def _trace_of(output: Path) -> list[int]:
    """Inode and bytes of a file, or of an OME-Zarr's metadata: they stay the same when the output gets its name."""
    status = (output / "zarr.json" if output.is_dir() else output).stat()
    return [status.st_ino, status.st_size]
