"""Worker process of the preflight checks: ``python -m wsi2ihc.batch.preflight_worker``."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Set
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TextIO

from ..errors import Wsi2IhcError
from ..models.registry import describe_generator
from ..slide import known_mpp, open_slide
from ..slide.readers.image_reader import memory_to_open
from ..text import one_line_error
from ..tissue import load_mask
from .slide_manifest import Problem, Row
from .task import SlideTask, options_from_json, options_to_json

THREADS = 8
"""Threads that read headers: on network file systems, each header takes some tenths of a second."""

_OF_GEOJSON = 12
"""Bytes of memory per byte of GeoJSON while it is read (measured: 9 to 11)."""

_OF_PNG_MASK = 4
"""Bytes of memory per byte of a mask in PNG; its size is bounded where it is read."""

Send = Callable[..., None]


def main() -> None:
    """Check the rows on stdin, one JSON line each after a first line of common facts, until it is closed."""
    stream: TextIO = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)  # what libraries print does not belong among the results
    common, sending = json.loads(sys.stdin.readline()), threading.Lock()
    limit_memory(common["limit_bytes"])
    check = RowCheck(Path(common["folder"]), frozenset(common["inputs"]), MemoryBudget(common["memory_bytes"]))
    waiting: SimpleQueue[dict[str, Any]] = SimpleQueue()

    def send(**facts: Any) -> None:
        with sending, contextlib.suppress(BrokenPipeError):
            stream.write(json.dumps(facts) + "\n")

    def work() -> None:
        while True:
            asked = waiting.get()
            try:
                check(asked["index"], row_from_json(asked["row"]), send)
            except BaseException:  # else the parent would wait forever for a result
                os._exit(1)

    for _ in range(THREADS):
        threading.Thread(target=work, daemon=True).start()
    for line in sys.stdin:
        waiting.put(json.loads(line))
    os._exit(0)  # the parent has exited, or has all results


class MemoryBudget:
    """Bytes that threads share. A request for more than the total takes all of it, for one thread alone."""

    def __init__(self, total_bytes: int) -> None:
        self._total = self._free = total_bytes
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def held(self, wanted_bytes: int) -> Iterator[None]:
        """Wait until so many bytes are free, and reserve them while the body runs."""
        taken = min(wanted_bytes, self._total)
        with self._changed:
            self._changed.wait_for(lambda: self._free >= taken)
            self._free -= taken
        try:
            yield
        finally:
            with self._changed:
                self._free += taken
                self._changed.notify_all()


@dataclasses.dataclass(frozen=True, slots=True)
class RowCheck:
    """Check of a row that sends its results.

    folder:  folder of the outputs
    inputs:  real paths that outputs must not replace
    budget:  memory for all rows that are checked at once
    """

    folder: Path
    inputs: Set[str]
    budget: MemoryBudget

    def __call__(self, index: int, row: Row, send: Send) -> None:
        """Check a row: send a message when the check begins, and another with its result."""
        with self.budget.held(memory_of(row)):
            send(index=index, began=True)
            found = check_row(row, self.folder, self.inputs)
        if isinstance(found, SlideTask):
            send(index=index, task=found.to_json())
        else:
            send(index=index, problem=found.message, is_memory=found.message == OUT_OF_MEMORY)


OUT_OF_MEMORY = "out of memory while it was opened; raise --max-memory, or convert it to a tiled TIFF"


def check_row(row: Row, folder: Path, inputs: Set[str]) -> SlideTask | Problem:
    """Check, by the header of a slide and its model, whether it can be translated.

    Any exception becomes the problem of this row.

    Parameters
    ----------
    row
        The row to check.
    folder
        Folder of the outputs.
    inputs
        Real paths that outputs must not replace.
    """
    try:
        return _checked(row, folder, inputs)
    except MemoryError:
        message = OUT_OF_MEMORY
    except _RefusedRowError as refusal:
        message = str(refusal)
    except Exception as error:
        message = one_line_error(error, row.slide, row.model, row.options.tissue, folder / row.output)
    return Problem(row.line, row.name, message, row.output)


class _RefusedRowError(Wsi2IhcError):
    """Reason why a row cannot be translated."""


def _checked(row: Row, folder: Path, inputs: Set[str]) -> SlideTask:
    output, tissue, region = folder / row.output, row.options.tissue, row.options.region
    if os.path.realpath(output) in inputs:
        raise _RefusedRowError("its output is a slide of this list; name another output, or folder")
    if (output.exists() or output.is_symlink()) and not output.is_file():
        raise _RefusedRowError(f"its output {row.output} exists and is not a file; remove it, or name another output")
    version = _model_version(row.model)
    with open_slide(
        row.slide, mpp=row.mpp, mpp_option="--mpp or the column mpp", series=row.series, page=row.page
    ) as slide:
        known_mpp(slide.info)
        facts = slide.info
        if tissue not in ("auto", "none"):
            load_mask(tissue, slide)
        if region is not None and region.intersection(facts.bounds).is_empty:
            raise _RefusedRowError(f"the region {region} lies outside the slide")
    source = f"{facts.name} {facts.quickhash} {facts.size} {'' if facts.changed_at is None else facts.changed_at}"
    options = dataclasses.replace(row.options, overwrite=True, preview=None)
    return SlideTask(0, row.slide, output, row.model, row.mpp, options, source, version, row.series, row.page)


def memory_of(row: Row) -> int:
    """Estimate the most bytes that the check of a row takes, from its files; 0 if few."""
    total, tissue = 0, row.options.tissue
    if "://" not in row.slide:
        total += memory_to_open(Path(row.slide))
    with contextlib.suppress(OSError, ValueError):
        if tissue not in ("auto", "none"):
            factor = _OF_PNG_MASK if Path(tissue).suffix.lower() == ".png" else _OF_GEOJSON
            total += factor * Path(tissue).stat().st_size
    return total


def limit_memory(limit_bytes: int) -> None:
    """Limit the private memory of this process, if the system supports that."""
    if sys.platform == "win32":
        return
    import resource

    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    if most != resource.RLIM_INFINITY:
        limit_bytes = min(limit_bytes, most)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_DATA, (limit_bytes, most))


def row_to_json(row: Row) -> dict[str, Any]:
    """Convert a row for the pipe to this process."""
    return {
        "line": row.line, "slide": row.slide, "output": row.output, "mpp": row.mpp, "model": row.model,
        "options": options_to_json(row.options), "series": row.series, "page": row.page,
    }  # fmt: skip


def row_from_json(facts: Mapping[str, Any]) -> Row:
    """Invert `row_to_json`."""
    return Row(**{**facts, "options": options_from_json(facts["options"])})


_versions: dict[str, str] = {}
_versions_lock = threading.Lock()


def _model_version(model: str) -> str:
    """Version of a model, read once although many rows share it."""
    with _versions_lock:
        if model not in _versions:
            _versions[model] = describe_generator(model).version
        return _versions[model]


if __name__ == "__main__":
    main()
