"""Whether a slide is done: a marker beside the outputs that says of what, and by which the output is known again.

An output under its name says nothing: it can be cut short by a copy, come from somebody else, or from another model.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..pyramid import published
from ..translation.finishing import report_path
from .places import marker_path
from .task import SlideTask

_SAMPLED_BYTES = 1 << 20
"""Of the output, at its beginning and at its end: headers, the index, and the last tiles."""


def write_marker(task: SlideTask, facts: Mapping[str, Any]) -> None:
    """Say that a task is done: to be called when its output is complete under its name.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    path = marker_path(task.output)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"fingerprint": task.fingerprint, "output": identity_of(task.output), "facts": dict(facts)}
    with published(path, overwrite=True) as partial:
        partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read_done(task: SlideTask) -> dict[str, Any] | None:
    """The facts of a task that is done, as they were written; None if it is not done, or not as it should be now.

    The report beside the output belongs to it: it says how the pixels were made.
    """
    try:
        content = json.loads(marker_path(task.output).read_text(encoding="utf-8"))
        if content["fingerprint"] != task.fingerprint or content["output"] != identity_of(task.output):
            return None
        if not report_path(task.output).is_file():
            return None
        facts: dict[str, Any] = content["facts"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return facts


def has_output(output: Path) -> bool:
    """Whether an output is there, and as long as its marker says; it is not opened."""
    try:
        content = json.loads(marker_path(output).read_text(encoding="utf-8"))
        return bool(str(content["output"]).split()[0] == str(output.stat().st_size))
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return False


def is_of_another(task: SlideTask) -> bool:
    """Whether the marker of a task's output says that another slide, model or option made it."""
    try:
        content = json.loads(marker_path(task.output).read_text(encoding="utf-8"))
        return bool(content["fingerprint"] != task.fingerprint)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def identity_of(output: Path) -> str:
    """Size of a file, and the SHA-256 of its first and last megabyte.

    Raises
    ------
    OSError
        If it cannot be read.
    """
    digest = hashlib.sha256()
    with output.open("rb") as file:
        size = file.seek(0, 2)
        for start in (0, max(0, size - _SAMPLED_BYTES)):
            file.seek(start)
            digest.update(file.read(_SAMPLED_BYTES))
    return f"{size} {digest.hexdigest()}"
