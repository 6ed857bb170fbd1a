"""Files of an output, the image and the report beside it: paths, checks before the work, and provenance."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..atomic_files import check_output, write_atomically
from ..errors import OutputError
from ..files import json_bytes, read_json
from ..slide import SlideInfo


def report_path(output: Path) -> Path:
    """Return the path of the JSON report of an output."""
    return output.with_name(f"{output.name}.json")


def write_report(output: Path, values: Mapping[str, Any]) -> None:
    """Write the report of an output atomically, and replace an existing one."""
    write_atomically(report_path(output), json_bytes(values))


def is_report_of(path: Path, kind: type, name: str, quickhash: str) -> bool:
    """Return whether a file has the fields of ``kind`` and reports an output of this name, made from this slide."""
    try:
        values = read_json(path)
        is_complete = {one.name for one in dataclasses.fields(kind)} <= values.keys()
        return bool(is_complete and values["output_name"] == name and values["source"]["quickhash"] == quickhash)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def check_report(output: Path, kind: type, source: SlideInfo, *, overwrite: bool) -> None:
    """Refuse an existing report that may not be replaced.

    Without the output itself, that of the same output and slide may be replaced: an interrupted run left it.
    """
    report = report_path(output)
    is_stale = not os.path.lexists(output) and is_report_of(report, kind, output.name, source.quickhash)
    check_output(report, overwrite or is_stale, suffixes=(".json",))


def check_not_inputs(outputs: Iterable[Path], inputs: Iterable[str | os.PathLike[str]]) -> None:
    """Refuse an output that is one of the inputs, also by another path."""
    existing = [Path(file) for file in inputs if Path(file).is_file()]
    for output in outputs:
        if output.exists() and any(output.samefile(file) for file in existing):
            raise OutputError(f"{output}: this file is also an input; give the output another name")


def provenance(
    source: SlideInfo, entries: Mapping[str, str], options: Mapping[str, Any], versions: Mapping[str, str], notice: str
) -> dict[str, str]:
    """Return the provenance of an output for its OME-XML: the slide, ``entries``, options, versions and notice."""
    return {
        "source": source.name,
        "source quickhash": source.quickhash,
        **entries,
        "options": json.dumps(options, default=str),
        "versions": json.dumps(versions),
        "notice": notice,
    }
