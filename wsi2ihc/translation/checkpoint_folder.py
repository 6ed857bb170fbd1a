"""Checkpoint folder of a resumable translation.

The folder ``.NAME.bands`` lies beside the output. It holds the shared plan (`write_shared_plan`), the growing image, a
done marker for each finished band, locks, and at the end a commit record of the published output. It gets its name when
it is complete, and only one process at a time creates, opens or removes it (`checkpoint_lock`). A band is done if its
marker lists exactly the shards on disk.

Bands are rows of tiles. An exact translation plans the windows of each band on their own, in cores that end at its
border: any cores give the same pixels. A blended translation depends on its windows, so that bands take those of the
one plan, and a row of windows across a border is translated for both sides.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from ..atomic_files import hidden_files, hidden_path, hidden_stem, remove_tree, write_atomically
from ..concurrency import Progress, ProgressCallback
from ..errors import OutputBusyError, OutputError
from ..files import json_bytes, read_json, read_regular
from ..geometry import BoolImage, Region, Size, ceil_to
from ..locks import exclusive_lock, is_there, unused
from ..pyramid import PyramidOptions
from ..pyramid.levels import PyramidLevel
from ..pyramid.ome_zarr import remove_old_versions, shard_grid, shard_path
from ..tissue import Annotation, TissueMask
from .job import SharedPlan, TranslationJob
from .options import TranslateOptions
from .report import TranslateReport, is_stored_as
from .seams import SeamStatistics
from .stages import FinishedCore
from .window_size import requested_core_size
from .windows import Plan, WindowLayout, best_core_size, plan_windows

BAND_PX = 4096
BLENDED_BAND_PX = 8192
"""Default heights in working px: a compromise between work lost by an interruption and work done twice."""


@dataclass(frozen=True, slots=True)
class Band:
    """A band of the output."""

    number: int  # position from top to bottom, from 0
    region: Region  # region of the output, in working px
    rows: range  # rows of tiles of the output
    plan: Plan  # windows to translate
    cropped_plan: Plan  # the same windows, with cores cropped to the region, which is the extent of this plan


def band_height(options: TranslateOptions, overlap_px: int, tile_px: int) -> int:
    """Return the requested or default height of a band in working px, rounded up to whole tiles.

    ``overlap_px`` is the overlap of blended windows; 0 if translation is exact.
    """
    return ceil_to(options.band_px or (BLENDED_BAND_PX if overlap_px else BAND_PX), tile_px)


def core_for_bands(job: TranslationJob, band_px: int) -> Size:
    """Return the core size with the least work over all bands of this height, in working px.

    Blended windows are those of the job's plan, and so is their core size.
    """
    if job.layout.overlap_px:
        return job.plan.core_size
    regions = list(_band_regions(job.plan.extent, band_px))
    return requested_core_size(job.layout, job.options) or best_core_size(regions, job.prepared.covered, job.layout)


def divide_into_bands(job: TranslationJob, core_size: Size, band_px: int) -> tuple[Band, ...]:
    """Divide a job into bands. ``band_px`` is a multiple of the tile size.

    Memory bound: about 100 bytes per window.
    """
    tile_px, bands = job.options.pyramid.tile_px, []
    for number, region in enumerate(_band_regions(job.plan.extent, band_px)):
        first = number * band_px // tile_px
        rows = range(first, first + -(-region.height // tile_px))
        if job.layout.overlap_px:
            plan = _windows_overlapping(job.plan, region)
        else:
            plan = plan_windows(region, job.prepared.covered, job.layout, core_size)
        bands.append(Band(number, region, rows, plan, _crop_plan(plan, region)))
    return tuple(bands)


def occupied_tiles(bands: Iterable[Band], tile_px: int) -> BoolImage:
    """Return which tiles of the output contain a core; (rows, columns) bool."""
    return np.concatenate([band.cropped_plan.occupied_tiles(tile_px) for band in bands])


def crop_to_band(cores: Iterable[FinishedCore], region: Region) -> Iterator[FinishedCore]:
    """Crop cores to a band, and drop those outside it. Order is kept."""
    for finished in cores:
        core = finished.window.core
        part = core.intersection(region)
        if part == core:
            yield finished
        elif not part.is_empty:
            inside = part.slices_in(core)
            yield FinishedCore(replace(finished.window, core=part), finished.source[inside], finished.pixels[inside])


def _band_regions(extent: Region, band_px: int) -> Iterator[Region]:
    for y in range(extent.y, extent.bottom, band_px):
        yield Region(extent.x, y, extent.width, min(band_px, extent.bottom - y))


def _windows_overlapping(plan: Plan, region: Region) -> Plan:
    """Select the windows of a plan whose outputs overlap a region."""
    windows = tuple(window for window in plan.windows if not window.output_region.intersection(region).is_empty)
    return replace(plan, windows=windows)


def _crop_plan(plan: Plan, region: Region) -> Plan:
    cropped = (replace(window, core=window.core.intersection(region)) for window in plan.windows)
    return replace(plan, extent=region, windows=tuple(window for window in cropped if not window.core.is_empty))


IMAGE, DONE, LOCKS, IN_USE, COMMITTED = "image.ome.zarr", "done", "locks", "in-use", "committed.json"
"""Names in the folder: the image, done markers, locks, a file locked by each user, the commit record."""

PLAN, MASK, STATISTICS = "plan.json", "mask.npz", "statistics.safetensors"
"""Names of the files of the shared plan."""

FORMAT, VERSION = "wsi2ihc-bands", 5
_CHECKSUM = "sha256"
"""Key of the checksum of the plan: a fill or core size that changed on disk would change pixels."""

LARGEST_FILE_BYTES = 1 << 30
"""Masks have one pixel for several µm of the slide, and statistics a few numbers per channel."""

_SUFFIX = "partial"

PAUSE_S = 0.5
"""Interval at which the work of other processes is polled."""

_log = logging.getLogger(__name__)


def checkpoint_path(output: Path) -> Path:
    """Return the path of the checkpoint folder that processes share."""
    return output.with_name(hidden_stem(_visible_path(output)))


def hidden_checkpoint_path(output: Path) -> Path:
    """Return a new path for a checkpoint folder that is being created or removed, or belongs to one process only."""
    return hidden_path(_visible_path(output), _SUFFIX)


def _visible_path(output: Path) -> Path:
    """Return the path from which the hidden names of checkpoint folders are derived."""
    return output.with_name(f"{output.name}.bands")


def count_done(output: Path) -> int | None:
    """Count the done markers in the checkpoint folder of an output; None if there is no such folder."""
    folder = checkpoint_path(output) / DONE
    return sum(path.suffix == ".json" for path in folder.iterdir()) if folder.is_dir() else None


@contextmanager
def checkpoint_lock(output: Path, progress: ProgressCallback, *, wait: bool) -> Iterator[bool]:
    """Lock the checkpoint folder of an output against creation, opening and removal by other processes.

    Yields whether it is locked: False on file systems without locks. Without ``wait``, `OutputBusyError` is raised if
    another process holds the lock.
    """
    with exclusive_lock(
        output.parent,
        _busy_message(output),
        f"{checkpoint_path(output).name}.lock",
        timeout_s=math.inf if wait else 0.0,
        poll_s=PAUSE_S,
        on_wait=lambda: progress(Progress("waiting for another process")),
    ) as is_locked:
        yield is_locked


def remove_interrupted_folders(output: Path, *, shared: bool) -> None:
    """Remove folders that interrupted runs left under hidden names.

    Unless ``shared``, `OutputBusyError` is raised if the process of such a folder is alive.
    """
    for leftover in hidden_files(_visible_path(output), _SUFFIX):
        try:
            with _ensure_unused(leftover, output):
                remove_tree(leftover)
                _log.info("removed %s, left behind by an interrupted run", leftover.name)
        except OutputBusyError:
            if not shared:
                raise
        except OutputError as error:
            _log.warning("%s", error)


def remove_checkpoint(folder: Path, output: Path) -> None:
    """Remove a checkpoint folder: rename it in one step, then delete its files."""
    hidden = hidden_checkpoint_path(output)
    try:
        folder.rename(hidden)
    except OSError as error:
        raise OutputError(f"{folder} cannot be removed ({error.strerror}); {output.name} does not need it") from error
    remove_tree(hidden)


def remove_shared_checkpoint(output: Path) -> None:
    """Remove the shared checkpoint folder; `OutputBusyError` if a process uses it."""
    with _ensure_unused(checkpoint_path(output), output):
        remove_checkpoint(checkpoint_path(output), output)


def discard_checkpoint(output: Path) -> None:
    """Remove all checkpoint folders of a complete output, except those that a process uses or may use."""
    try:
        with checkpoint_lock(output, lambda _: None, wait=False):
            remove_interrupted_folders(output, shared=True)
            remove_old_versions(output)
            if checkpoint_path(output).is_dir():
                remove_shared_checkpoint(output)
    except OSError as error:
        _log.info("%s", error)


def _ensure_unused(folder: Path, output: Path) -> contextlib.AbstractContextManager[None]:
    if not (folder / IN_USE).is_file():
        return contextlib.nullcontext()
    return unused(folder / IN_USE, _busy_message(output))


def _busy_message(output: Path) -> str:
    return f"another run is writing {output}: wait for it to end, or choose another name"


@dataclass(frozen=True, slots=True)
class DoneMarker:
    """Record of a finished band."""

    shards: Mapping[str, tuple[int, str]]  # size in bytes and SHA-256 of each shard, by its path in the image
    seams: SeamStatistics | None  # seam statistics; None if the model cannot produce seams
    model_s: float  # seconds spent in the translators
    run_s: float  # seconds spent on the band
    # unreadable areas of the slide known to the process, as (level, x, y)
    unreadable_areas: tuple[tuple[int, int, int], ...]

    @property
    def sizes(self) -> dict[str, int]:
        """Size in bytes of each shard, by its path in the image."""
        return {name: size for name, (size, _) in self.shards.items()}

    def to_json(self) -> dict[str, Any]:
        """Convert to a dictionary for `json.dumps`."""
        return {
            "shards": dict(self.shards),
            "seams": None if self.seams is None else self.seams.to_json(),
            "model_s": self.model_s,
            "run_s": self.run_s,
            "damaged_areas": self.unreadable_areas,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> DoneMarker:
        """Invert `to_json`."""
        seams = None if values["seams"] is None else SeamStatistics.from_json(values["seams"])
        unreadable_areas = tuple(_triple(area) for area in values["damaged_areas"])
        shards = {str(name): (int(size), str(digest)) for name, (size, digest) in dict(values["shards"]).items()}
        return cls(shards, seams, float(values["model_s"]), float(values["run_s"]), unreadable_areas)


def write_done_marker(path: Path, marker: DoneMarker) -> None:
    """Write a done marker atomically and durably."""
    write_atomically(path, f"{json.dumps(marker.to_json(), separators=(',', ':'))}\n".encode())


def read_done_marker(path: Path) -> DoneMarker | None:
    """Read a done marker; None if it is missing or damaged."""
    try:
        return DoneMarker.from_json(read_json(path))
    except (OSError, LookupError, TypeError, ValueError, ArithmeticError, AttributeError):
        return None


@dataclass(slots=True)
class Checkpoint:
    """An open checkpoint folder."""

    folder: Path  # path of the checkpoint folder
    output: Path
    job: TranslationJob  # the translation, prepared according to the shared plan
    bands: tuple[Band, ...]
    levels: tuple[PyramidLevel, ...]  # levels of the output
    unreadable_areas: tuple[tuple[int, int, int], ...]  # found during tissue detection, as (level, x, y)
    in_use: TextIO  # file kept open while this process uses the folder
    # markers of bands that were found done, by number; they are not read and checked again
    done_markers: dict[int, DoneMarker] = field(default_factory=dict)

    @property
    def image(self) -> Path:
        """Path of the growing image."""
        return self.folder / IMAGE

    @property
    def is_published(self) -> bool:
        """Whether the output is published; the image of an OME-Zarr has then been moved out of the folder."""
        return is_committed(self.folder, self.output, self.job.options.pyramid)

    def still_exists(self) -> bool:
        """Return whether the folder still has its name; a process that completes the output removes it."""
        return is_there(self.in_use, self.folder / IN_USE)

    def band_lock(self, number: int) -> contextlib.AbstractContextManager[object]:
        """Lock a band for translation; `OutputBusyError` if another process holds the lock."""
        return exclusive_lock(self.folder / LOCKS, "", f"{number:04d}", make=False)

    def marker_path(self, number: int) -> Path:
        """Return the path of the done marker of a band."""
        return self.folder / DONE / f"{number:04d}.json"

    def missing_bands(self) -> list[int]:
        """List the bands that are not done; other processes may be translating some of them."""
        return [number for number in range(len(self.bands)) if self.done_marker(number) is None]

    def done_marker(self, number: int) -> DoneMarker | None:
        """Return the marker of a band that is done, else None; what is found is kept in `done_markers`."""
        if number not in self.done_markers:
            marker = read_done_marker(self.marker_path(number))
            if marker is None or marker.sizes != self.shards_on_disk(number):
                return None
            if marker.unreadable_areas and self.job.options.on_read_error == "fail":
                return None
            self.done_markers[number] = marker
        return self.done_markers[number]

    def remove_done_marker(self, number: int) -> None:
        """Remove the done marker of a band, whose lock must be held.

        Processes that have already read the marker keep it in their `done_markers`.
        """
        self.done_markers.pop(number, None)
        self.marker_path(number).unlink(missing_ok=True)

    def row_folders(self, number: int) -> list[Path]:
        """Return the folders of the rows of shards of a band, existing or not. Bands do not share them."""
        return [self.image / shard_path(0, row, 0).parent for row in self.bands[number].rows]

    def shards_on_disk(self, number: int) -> dict[str, int] | None:
        """Return the size in bytes of each shard of a band; None if one is missing or there are other files."""
        try:
            files = [file for folder in self.row_folders(number) for file in folder.iterdir()]
            sizes = {file.relative_to(self.image): file.stat().st_size for file in files}
        except (FileNotFoundError, NotADirectoryError):  # also if the image has become the output meanwhile
            return None
        _, columns = shard_grid(self.levels[0])
        expected = {shard_path(0, row, column) for row in self.bands[number].rows for column in range(columns)}
        return {path.as_posix(): size for path, size in sizes.items()} if sizes.keys() == expected else None


def write_shared_plan(folder: Path, shared: SharedPlan) -> None:
    """Write the shared plan into a folder that no other process knows yet."""
    mask, buffer = shared.mask, io.BytesIO()
    np.savez_compressed(buffer, pixels=mask.pixels)
    (folder / MASK).write_bytes(buffer.getvalue())
    if shared.statistics is not None:
        (folder / STATISTICS).write_bytes(shared.statistics)
    values: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "fingerprint": shared.fingerprint,
        "band_px": shared.band_px,
        "size": [shared.size.width, shared.size.height],
        "damaged_areas": shared.unreadable_areas,
        "layout": dataclasses.asdict(shared.layout),
        "core_size": [shared.core_size.width, shared.core_size.height],
        "fill": shared.fill,
        "statistics": shared.statistics is not None,
        "mask": {one.name: getattr(mask, one.name) for one in dataclasses.fields(mask) if one.name != "pixels"},
    }
    values[_CHECKSUM] = _checksum(values, buffer.getvalue(), shared.statistics)
    (folder / PLAN).write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def read_shared_plan(folder: Path) -> SharedPlan:
    """Read the shared plan.

    Raises
    ------
    OutputError
        If it is damaged, or has another format version.
    PermissionError
        If another user owns it and does not share it.
    """
    try:
        values = read_json(folder / PLAN)
        if values["format"] != FORMAT or values["version"] != VERSION:
            raise ValueError(f"format {values['format']!r:.40}, version {values['version']!r:.20}")
        mask = read_regular(folder / MASK, LARGEST_FILE_BYTES)
        statistics = read_regular(folder / STATISTICS, LARGEST_FILE_BYTES) if values["statistics"] else None
        if values.pop(_CHECKSUM) != _checksum(values, mask, statistics):
            raise ValueError("the checksum differs")
        with np.load(io.BytesIO(mask), allow_pickle=False) as arrays:
            pixels = np.asarray(arrays["pixels"], np.bool_)
        return SharedPlan(
            fingerprint={str(group): dict(entries) for group, entries in values["fingerprint"].items()},
            mask=_mask_from_json(pixels, values["mask"]),
            statistics=statistics,
            layout=WindowLayout(**values["layout"]),
            core_size=Size(*values["core_size"]),
            fill=_triple(values["fill"]),
            band_px=int(values["band_px"]),
            size=Size(*values["size"]),
            unreadable_areas=tuple(_triple(area) for area in values["damaged_areas"]),
        )
    except (PermissionError, MemoryError):
        raise
    # numpy, zipfile and zlib raise many kinds of errors for damaged files
    except Exception as error:
        raise damaged_checkpoint(folder, str(error)) from error


def _checksum(values: Mapping[str, Any], mask: bytes, statistics: bytes | None) -> str:
    """Return the SHA-256 of a plan, in hex, equal before it is written and after it is read."""
    digest = hashlib.sha256(json.dumps(json.loads(json.dumps(values)), sort_keys=True).encode())
    for part in (mask, statistics or b""):
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()


def _mask_from_json(pixels: Any, values: Mapping[str, Any]) -> TissueMask:
    (x, y), (across, down), (left, top) = values["origin"], values["pixel_size"], values["bounds_origin"]
    annotations = tuple(Annotation(*one) for one in values["annotations"])
    return TissueMask(
        pixels,
        (x, y),
        (across, down),
        _triple(values["background"]),
        tuple(values["warnings"]),
        (left, top),
        annotations,
    )


def _triple(values: Any) -> tuple[int, int, int]:
    first, second, third = values
    return int(first), int(second), int(third)


def damaged_checkpoint(folder: Path, reason: str) -> OutputError:
    """Return the error for a checkpoint folder that cannot be read."""
    return OutputError(
        f"{folder}: the checkpoint of an earlier run is damaged ({reason:.80}); restart with --overwrite, or remove it"
    )


def record_commit(folder: Path, unpublished: Path, report: TranslateReport) -> None:
    """Write the commit record before an output is published: the state of its file, and its report."""
    values = {"state": _commit_state(unpublished), "report": report.to_json()}
    write_atomically(folder / COMMITTED, json_bytes(values))


def is_committed(folder: Path, output: Path, pyramid: PyramidOptions) -> bool:
    """Return whether the output was published from this folder with these storage options; only cleanup remains."""
    try:
        values = read_json(folder / COMMITTED)
        stored = values["report"]["options"]["pyramid"]
        return bool(values["state"] == _commit_state(output)) and is_stored_as(stored, output, pyramid)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def committed_report(folder: Path, output: Path) -> TranslateReport:
    """Read the report of a published output from the commit record; `OutputError` if it is damaged."""
    try:
        report = read_json(folder / COMMITTED)["report"]
        return replace(TranslateReport.from_json(report), output_name=output.name)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OutputError(
            f"{folder}: the commit record of the finished {output.name} is damaged ({error!s:.80}); the output is "
            "complete, and the folder can be removed"
        ) from error


def _commit_state(output: Path) -> list[int]:
    """Return inode and size of a file, or of the metadata of an OME-Zarr; publishing does not change them."""
    status = (output / "zarr.json" if output.is_dir() else output).stat()
    return [status.st_ino, status.st_size]
