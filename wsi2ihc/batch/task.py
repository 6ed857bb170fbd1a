"""Options of a batch, tasks, messages of workers, done markers, and paths in the output folder."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from ..atomic_files import make_folder, write_atomically
from ..errors import DeviceError, DeviceMemoryError, OptionError, OutputError, Wsi2IhcError
from ..files import json_bytes, read_json, sha256_of_file
from ..system import versions
from ..text import check_bounds, option
from ..translation.options import SMALLEST_MEMORY_BYTES, TranslateOptions
from ..translation.output_files import report_path

_WITHOUT_EFFECT = ("device", "workers", "overwrite", "preview", "max_memory_bytes", "batch_size", "band_px",
                   "resume")  # fmt: skip
"""Options that do not change the pixels."""


@dataclass(frozen=True, slots=True)
class SlideTask:
    """Task of translating one slide."""

    number: int  # position in the manifest, from 0; identifies the task between processes
    slide: str  # path or URL
    output: Path  # path of the virtual slide
    model: str  # name or file of the model
    mpp: float | None = None  # resolution of the slide, if it has to be stated
    options: TranslateOptions = field(default_factory=TranslateOptions)  # options of the translation
    source: str = ""  # identity of the slide: base name, quickhash, size in px, modification time
    version: str = ""  # SHA-256 of the model file, or the name of a built-in model
    series: int | None = None  # number of the image in the file; None for the largest RGB image
    page: int | None = None  # number of the page in the file

    @property
    def name(self) -> str:
        """Base name of the output."""
        return self.output.name

    @property
    def fingerprint(self) -> str:
        """SHA-256 of everything that determines the pixels: slide, model, options and program, but not the device."""
        defaults = _options_to_json(TranslateOptions())
        options = {
            name: value
            for name, value in _options_to_json(self.options).items()
            if name not in _WITHOUT_EFFECT and value != defaults[name]  # so that new options keep old fingerprints
        }
        if self.options.tissue not in ("auto", "none"):
            options["tissue"] = sha256_of_file(Path(self.options.tissue))
        facts: dict[str, Any] = {
            "source": self.source, "mpp": self.mpp, "model": self.version, "options": options,
            "program": versions()["wsi2ihc"],
        }  # fmt: skip
        facts |= {name: value for name, value in (("series", self.series), ("page", self.page)) if value is not None}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def with_share(self, processes: int) -> SlideTask:
        """Return the task with its share of the memory bound, but not less than a translation needs."""
        if processes == 1:
            return self
        share = max(SMALLEST_MEMORY_BYTES, self.options.max_memory_bytes // processes)
        return dataclasses.replace(self, options=dataclasses.replace(self.options, max_memory_bytes=share))

    def smaller(self) -> SlideTask:
        """Return the task with half the memory, for a retry after it ran out."""
        options = dataclasses.replace(
            self.options,
            batch_size=max(1, self.options.batch_size // 2),
            max_memory_bytes=max(SMALLEST_MEMORY_BYTES, self.options.max_memory_bytes // 2),
        )
        return dataclasses.replace(self, options=options)


def _options_to_json(options: TranslateOptions) -> dict[str, Any]:
    plain = dataclasses.asdict(options)
    plain["tissue"] = str(options.tissue)
    plain["preview"] = None if options.preview is None else str(options.preview)
    return plain


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchOptions:
    """Options of `batch`; each field's text is the help of its command-line option.

    Raises
    ------
    OptionError
        If a value is invalid.
    """

    attempts: int = option(3, "Attempts per slide; permanent errors are not retried.")
    timeout_min: float = option(0.0, "Timeout of a slide in minutes (0: none).")
    children: int = option(0, "Worker processes (0: one per GPU, or one on the CPU).")
    restart_every: int = option(200, "Slides after which a worker is restarted.")
    cache: Path | None = option(None, "Folder on a local disk; slides are copied there before they are read.")

    def __post_init__(self) -> None:
        check_bounds(
            self,
            {"attempts": (1, 100), "timeout_min": (0, 10**6), "children": (0, 4096), "restart_every": (1, 10**9)},
        )
        if self.cache is not None and not self.cache.is_dir():
            raise OptionError(f"--cache {self.cache} is not a folder; create it or choose another")
        if self.cache is not None and not os.access(self.cache, os.W_OK):
            raise OptionError(f"--cache {self.cache} is not writable; change its permissions or choose another")


FailureKind = Literal["permanent", "transient", "memory", "crash", "timeout"]
"""permanent: fails again; transient: may succeed later (disk, network); memory: may succeed with less; crash: the
worker or its device failed; timeout: the worker was ended.
"""


@dataclass(frozen=True, slots=True)
class Ready:
    """A worker can take slides; ``device`` is for display."""

    device: str


@dataclass(frozen=True, slots=True)
class Started:
    """A slide is being opened."""

    number: int


@dataclass(frozen=True, slots=True)
class Waiting:
    """A slide starts or stops waiting for the device or for another batch; waiting does not count as its time."""

    number: int
    is_waiting: bool


@dataclass(frozen=True, slots=True)
class Translating:
    """Progress of a slide in px of windows."""

    number: int
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Done:
    """A slide is done; ``facts`` as in its done marker. It is not new if another batch has translated it."""

    number: int
    facts: Mapping[str, Any] = field(default_factory=dict)
    is_new: bool = True


@dataclass(frozen=True, slots=True)
class Failed:
    """A slide failed; the message is one line."""

    number: int
    kind: FailureKind
    message: str


@dataclass(frozen=True, slots=True)
class Requeued:
    """A slide is unfinished and its worker has ended, not necessarily because of it.

    ``is_elsewhere``: the worker is gone, and another process has its name.
    """

    number: int
    message: str
    is_elsewhere: bool = False


Event: TypeAlias = Ready | Started | Waiting | Translating | Done | Failed | Requeued

_KINDS: dict[str, type[Event]] = {kind.__name__: kind for kind in get_args(Event)}


def to_line(event: Event) -> str:
    """Convert an event to a line of JSON."""
    return json.dumps({"event": type(event).__name__, **asdict(event)})


def from_line(line: str) -> Event | None:
    """Parse an event from a line; None if the line is invalid."""
    try:
        facts = json.loads(line)
        return _KINDS[facts.pop("event")](**facts)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def kind_of(error: BaseException) -> FailureKind:
    """Classify an exception."""
    if isinstance(error, DeviceMemoryError | MemoryError):
        return "memory"
    text = str(error).lower()
    if isinstance(error, RuntimeError) and not isinstance(error, Wsi2IhcError) and ("cuda" in text or "device" in text):
        return "crash"  # after a device error the process cannot be used again
    if isinstance(error, OutputError):
        return "transient"
    if isinstance(error, Wsi2IhcError):
        return "transient" if isinstance(error, DeviceError) else "permanent"
    return "transient"


BATCH_FOLDER = ".wsi2ihc-batch"
"""Folder of the files of the batch in the output folder."""


def marker_path(output: Path) -> Path:
    """Return the path of the done marker of an output."""
    return output.parent / BATCH_FOLDER / "done" / f"{output.name}.json"


def thumbnail_path(output: Path) -> Path:
    """Return the path of the thumbnail of an output."""
    return output.parent / BATCH_FOLDER / "thumbnails" / f"{output.name}.jpg"


def locks_folder(folder: Path) -> Path:
    """Return the folder of the locks on outputs."""
    return folder / BATCH_FOLDER / "locks"


def shards_folder(folder: Path) -> Path:
    """Return the folder in which each shard records the hash of its manifest."""
    return folder / BATCH_FOLDER / "shards"


def logs_folder(folder: Path) -> Path:
    """Return the folder of the logs of workers."""
    return folder / BATCH_FOLDER / "logs"


_LARGEST_BYTES = 16 << 20
"""Largest size of a marker or report, which have some kB."""


def write_marker(task: SlideTask, facts: Mapping[str, Any], sha256: str) -> None:
    """Write the done marker of a task after its output was published.

    The output, whose SHA-256 was ``sha256`` when it was written, is read once more, so that the recorded times belong
    to these bytes. ``facts`` are the results for the table.

    Raises
    ------
    OutputError
        If it cannot be written, or the output was changed since it was written.
    OSError
        If the output or its report cannot be read.
    """
    output = _fingerprint_of(task.output)
    if output is None or output["sha256"] != sha256:
        raise OutputError(f"{task.output}: another program changed the output after it was written; try again")
    report = sha256_of_file(report_path(task.output))
    _write(task.output, {"fingerprint": task.fingerprint, "output": output, "report": report, "facts": dict(facts)})


def read_done(task: SlideTask, *, verify: bool = False, renew: bool = True) -> dict[str, Any] | None:
    """Return the results of a finished task; None if it is not done or its output or report has changed.

    ``verify`` reads the output even if its size and times are unchanged. ``renew`` updates the marker after that: its
    new times are recorded, or the marker of a damaged output is removed.
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
    """Return whether an output and its report match the done marker; see `read_done`."""
    try:
        return _is_intact(output, _read(output), verify=verify, renew=False)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def has_size(output: Path) -> bool:
    """Return whether an output has the size in its done marker, without opening it."""
    try:
        return bool(_read(output)["output"]["bytes"] == output.stat().st_size)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def is_of_another(task: SlideTask) -> bool:
    """Return whether the output of a task was made from another slide, model or options."""
    try:
        return bool(_read(task.output)["fingerprint"] != task.fingerprint)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _is_intact(output: Path, content: Mapping[str, Any], *, verify: bool, renew: bool) -> bool:
    known, now = content["output"], _times_of(output)
    if known["bytes"] != now["bytes"] or content["report"] != sha256_of_file(report_path(output)):
        return False
    matches_marker = all(known[name] == value for name, value in now.items())
    if matches_marker and not verify:
        return True
    found = _fingerprint_of(output)
    if found is None or found["sha256"] != known["sha256"]:
        if renew:  # otherwise its times would be trusted next time
            marker_path(output).unlink(missing_ok=True)
        return False
    if renew and not matches_marker:
        with contextlib.suppress(OSError):  # it is read again next time
            _write(output, {**content, "output": found})
    return True


def _times_of(output: Path) -> dict[str, int]:
    """Return size, modification time and change time (which no program can set) of a file."""
    status = output.stat()
    return {"bytes": status.st_size, "modified_ns": status.st_mtime_ns, "changed_ns": status.st_ctime_ns}


def _fingerprint_of(output: Path) -> dict[str, Any] | None:
    """Return size, times and SHA-256 of a file; None if it changes while it is read."""
    before = _times_of(output)
    digest = sha256_of_file(output)
    return {**before, "sha256": digest} if _times_of(output) == before else None


def _read(output: Path) -> dict[str, Any]:
    content: dict[str, Any] = read_json(marker_path(output), _LARGEST_BYTES)
    return content


def _write(output: Path, content: Mapping[str, Any]) -> None:
    make_folder(marker_path(output).parent)
    write_atomically(marker_path(output), json_bytes(content, indent=1))
