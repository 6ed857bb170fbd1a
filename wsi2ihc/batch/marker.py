"""Whether a slide is done: a marker beside the outputs that says of what, and by which the output is known again.

An output under its name says nothing: it can be cut short by a copy, come from somebody else, or from another model.
The marker holds its size, its times and the SHA-256 of all its bytes. Where size and times are still those that were
noted, nothing has written to the file since, and its content is not read; where a time differs, or on request, it is
read and has to have the SHA-256. Damage below the file system, such as that of a disk, is found on request only.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import OutputError
from ..files import read_json, sha256_of_file
from ..storage import published
from ..translation.finishing import report_path
from .places import marker_path
from .task import SlideTask

_LARGEST_BYTES = 16 << 20
"""Size of a marker, or of a report: usually some kB."""


def write_marker(task: SlideTask, facts: Mapping[str, Any], sha256: str) -> None:
    """Say that a task is done: to be called when its output is complete under its name.

    The output is read once more, so that the times that are noted are those of the bytes that were written.

    Parameters
    ----------
    task
        That is done.
    facts
        For the table of results.
    sha256
        Of the output, as it was written.

    Raises
    ------
    OutputError
        If it cannot be written, or the output was changed since it was written.
    OSError
        If the output or its report cannot be read.
    """
    output = _identity_of(task.output)
    if output is None or output["sha256"] != sha256:
        raise OutputError(f"{task.output}: another program changed the output after it was written; try again")
    report = sha256_of_file(report_path(task.output))
    _write(task.output, {"fingerprint": task.fingerprint, "output": output, "report": report, "facts": dict(facts)})


def read_done(task: SlideTask, *, verify: bool = False, renew: bool = True) -> dict[str, Any] | None:
    """The facts of a task that is done, as they were written; None if it is not done, or not as it should be now.

    The report beside the output belongs to it: it says how the pixels were made.

    Parameters
    ----------
    task
        What is to be done.
    verify
        Read the output, although nothing seems to have changed it.
    renew
        Bring the marker up to date with what was found by reading the output: its times, so that it need not be read
        again, or that it is not what was written.
    """
    try:
        content = _read(task.output)
        if content["fingerprint"] != task.fingerprint:
            return None
        if not _is_intact(task.output, content, verify=verify, renew=renew):
            return None
        facts = dict(content["facts"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return facts


def is_intact(output: Path, *, verify: bool = False) -> bool:
    """Whether an output and its report are as its marker says, whatever made them; see `read_done`."""
    try:
        return _is_intact(output, _read(output), verify=verify, renew=False)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def has_size(output: Path) -> bool:
    """Whether an output is there, and as long as its marker says; it is not opened."""
    try:
        return bool(_read(output)["output"]["bytes"] == output.stat().st_size)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def is_of_another(task: SlideTask) -> bool:
    """Whether the marker of a task's output says that another slide, model or option made it."""
    try:
        return bool(_read(task.output)["fingerprint"] != task.fingerprint)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _is_intact(output: Path, content: Mapping[str, Any], *, verify: bool, renew: bool) -> bool:
    known, now = content["output"], _times_of(output)
    if known["bytes"] != now["bytes"] or content["report"] != sha256_of_file(report_path(output)):
        return False
    is_as_noted = all(known[name] == value for name, value in now.items())
    if is_as_noted and not verify:
        return True
    found = _identity_of(output)
    if found is None or found["sha256"] != known["sha256"]:
        if renew:  # what is known to be wrong must not be believed for its times
            marker_path(output).unlink(missing_ok=True)
        return False
    if renew and not is_as_noted:
        with contextlib.suppress(OSError):  # it is read again next time
            _write(output, {**content, "output": found})
    return True


def _times_of(output: Path) -> dict[str, int]:
    """Size and times of a file: of its content, and of anything about it (which no program can set)."""
    status = output.stat()
    return {"bytes": status.st_size, "modified_ns": status.st_mtime_ns, "changed_ns": status.st_ctime_ns}


def _identity_of(output: Path) -> dict[str, Any] | None:
    """Size, times and SHA-256 of a file; None if it changes while it is read."""
    before = _times_of(output)
    digest = sha256_of_file(output)
    return {**before, "sha256": digest} if _times_of(output) == before else None


def _read(output: Path) -> dict[str, Any]:
    content: dict[str, Any] = read_json(marker_path(output), _LARGEST_BYTES)
    return content


def _write(output: Path, content: Mapping[str, Any]) -> None:
    path = marker_path(output)
    path.parent.mkdir(parents=True, exist_ok=True)
    with published(path, overwrite=True) as partial:
        partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
