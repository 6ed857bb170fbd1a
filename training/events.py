"""Events for TensorBoard, written by the thread that has them.

TensorBoard's own writer hands them to a thread, where a full disk ends in a traceback on the screen and is noticed only
later. Here it is an `OutputError` of the call. What is written is the same: records in a file that TensorBoard reads
while it grows.
"""

from __future__ import annotations

import io
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wsi2ihc.arrays import RGBImage

from .files import GrowingFile, make_folder

FLUSH_S = 20.0
"""Events are held back for this long at most, as long as others come."""

FORMAT = "brain.Event:2"
"""What a file of events begins with. Readers purge by a start of session only where it says so."""

_log = logging.getLogger(__name__)


class EventFile:
    """One file of events; a run has one for each time that it was started.

    Parameters
    ----------
    folder
        For all files of the run; made if it is not there.
    first_step
        Events of this step and later ones, that are in older files, are hidden.

    Raises
    ------
    ImportError
        If TensorBoard is not installed.
    OutputError
        If the file cannot be written, then or later. What was held back is then lost.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter
        from torch.utils.tensorboard import summary

        self._event: Any = Event
        self._summary: Any = summary
        self._held = io.BytesIO()
        self._records = RecordWriter(self._held)
        make_folder(folder)
        # files are read in the order of their names
        self._file = GrowingFile(folder / f"events.out.tfevents.{time.time():.6f}.{os.getpid()}")
        self._add(file_version=FORMAT)
        self._add(step=first_step, session_log=SessionLog(status=SessionLog.START))
        self._flush()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Add values of a step by their tags."""
        for tag, value in values.items():
            self._add(step=step, summary=self._summary.scalar(tag, value))
        self._flush_when_due()

    def image(self, step: int, tag: str, image: RGBImage) -> None:
        """Add an image, (rows, columns, 3)."""
        self._add(step=step, summary=self._summary.image(tag, image, dataformats="HWC"))
        self._flush_when_due()

    def close(self) -> None:
        """Write what is held back, and close the file."""
        try:
            self._flush()
        finally:
            self._file.close()

    def _add(self, **content: Any) -> None:
        self._records.write(self._event(wall_time=time.time(), **content).SerializeToString())

    def _flush_when_due(self) -> None:
        if time.monotonic() - self._flushed >= FLUSH_S:
            self._flush()

    def _flush(self) -> None:
        content = self._held.getvalue()
        self._held.seek(0)
        self._held.truncate()
        self._flushed = time.monotonic()
        if content:
            self._file.append(content)


def open_events(folder: Path, first_step: int) -> EventFile | None:
    """An `EventFile`, or None where TensorBoard is not installed."""
    try:
        return EventFile(folder, first_step)
    except ImportError:
        _log.info("TensorBoard is not installed (pip install tensorboard): going on without it")
        return None
