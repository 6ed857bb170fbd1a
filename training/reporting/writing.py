"""A report's folder: the web page, the Markdown, the tables and the pictures, all of them or none.

Everything is rendered before anything is written. It is written in ``.NAME.partial`` beside the folder, locked against
other runs, and takes the folder's place at the end. What a killed run left there is dealt with by the next one.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

from wsi2ihc.errors import OutputError, OutputExistsError
from wsi2ihc.files import json_bytes, read_json
from wsi2ihc.locks import locked

from ..files import cannot_write, make_folder, write_whole
from .attachments import attachments_of, encoded_text
from .document import Report
from .html import html_page
from .markdown import markdown_text

FORMAT, VERSION = "wsi2ihc report", 1

FILES_KEY = "report_files"
"""In ``report.json``: what the report consists of, so that nothing else is ever taken for a part of it."""

HTML_NAME, MARKDOWN_NAME, JSON_NAME = "report.html", "report.md", "report.json"
SUBFOLDERS = ("tables", "pictures")

CLUTTER = (".DS_Store", "Thumbs.db", "desktop.ini")
"""What file managers leave in a folder that was looked at; it goes with the folder."""

NEW, OLD = "new", "old"
"""In the partial folder: the report that is being written, and the one that it replaces."""


def check_report_folder(folder: Path, overwrite: bool) -> None:
    """See early, before any work is done, whether a report can be written to a folder.

    It may be missing, be empty, or, with ``overwrite``, hold nothing but an earlier report.

    Raises
    ------
    OutputExistsError
        If a report is there and may not be replaced, or the folder holds anything else.
    OutputError
        If it is a file, cannot be replaced by another folder, or the folder it is in cannot be written to.
    """
    if os.path.lexists(folder) and not folder.is_dir():
        raise OutputError(f"output {folder} exists and is not a folder: name a folder")
    place = folder.resolve()
    if place.is_dir():
        if os.path.ismount(place) or place == Path.cwd():
            raise OutputError(
                f"output folder {folder} is a mounted or the current one, which cannot be replaced: "
                "name a folder inside it"
            )
        _check_contents(folder, place, overwrite)
    parent = next(above for above in place.parents if os.path.lexists(above))
    if not parent.is_dir():
        raise OutputError(f"output folder {folder} cannot be made, since {parent} is no folder: write elsewhere")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(f"output folder {parent} is not writable: change its permissions, or write elsewhere")


def write_report(folder: Path, report: Report, *, overwrite: bool = False) -> tuple[Path, ...]:
    """Write a report: all of its files, or, if anything fails, none.

    ``report.html`` is self-contained; ``report.md`` has the same content with ``pictures/``; ``tables/`` has every
    table as CSV; ``report.json`` has the report's data, its format and version, and the names of all its files.

    Parameters
    ----------
    folder
        Made if it is not there; see `check_report_folder`.
    report
        What to write. Names of tables and pictures that cannot be names of files, or come twice, are changed.
    overwrite
        Whether an earlier report may be replaced. Its folder is replaced as a whole.

    Returns
    -------
    tuple of Path
        The files, the web page first.

    Raises
    ------
    OutputExistsError, OutputError
        As `check_report_folder` does, if another run is writing the same report, or if the file system refuses.
    ValueError
        If the data hold what JSON does not know (NaN included) or use the names ``format``, ``version`` or
        ``report_files``, or a row of a table has not one cell for each column.
    """
    check_report_folder(folder, overwrite)
    files = _rendered(report)
    place = folder.resolve()
    partial = place.with_name(f".{place.name}.partial")
    try:
        with locked(partial, f"another run is writing {folder}: wait for it to end, or choose another folder"):
            _clear(partial, place)
            check_report_folder(folder, overwrite)
            try:
                _write_all(partial / NEW, files)
                _publish(partial, place)
            finally:
                shutil.rmtree(partial / NEW, ignore_errors=True)
    finally:
        with contextlib.suppress(OSError):
            partial.rmdir()  # another run's is not empty, and stays
    return tuple(folder / name for name in files)


def _check_contents(folder: Path, place: Path, overwrite: bool) -> None:
    try:
        first = min((entry.name for entry in place.iterdir() if entry.name not in CLUTTER), default=None)
        if first is None:
            return
        own = _files_of_report(place)
        # only a report is searched to its depths: what else was named may hold millions of files
        foreign = _first_foreign(place, own) if own else first
    except OSError as error:
        raise OutputError(f"output folder {folder} cannot be read ({error.strerror}): choose another") from error
    if foreign is not None:
        raise OutputExistsError(
            f"output folder {folder} holds other files ({foreign[:60]}): name a new folder, or an empty one"
        )
    if not overwrite:
        raise OutputExistsError(f"{folder} already holds a report: choose another folder, or allow it with --overwrite")


def _files_of_report(place: Path) -> set[str]:
    """The files of the report in a folder, by their paths in it; empty if there is no report."""
    try:
        data = read_json(place / JSON_NAME)
    except (FileNotFoundError, IsADirectoryError, ValueError):
        return set()
    if not isinstance(data, dict) or data.get("format") != FORMAT or not isinstance(data.get(FILES_KEY), list):
        return set()
    return {name for name in data[FILES_KEY] if isinstance(name, str)}


def _first_foreign(place: Path, own: set[str]) -> str | None:
    known = own | set(SUBFOLDERS)
    found = (path for path in place.rglob("*") if path.name not in CLUTTER)
    return min((name for name in (path.relative_to(place).as_posix() for path in found) if name not in known),
               default=None)  # fmt: skip


def _rendered(report: Report) -> dict[str, bytes]:
    """All files by their paths in the folder."""
    attachments = attachments_of(report)
    files = {
        HTML_NAME: encoded_text(html_page(report, attachments)),
        MARKDOWN_NAME: encoded_text(markdown_text(report, attachments)),
        JSON_NAME: b"",  # its place in the order
    }
    files |= {file.path: file.content for section in attachments for file in section}
    head = {"format": FORMAT, "version": VERSION, FILES_KEY: list(files)}
    if clash := head.keys() & report.data.keys():
        raise ValueError(f"the data of a report may not be named {', '.join(sorted(clash))}")
    return files | {JSON_NAME: json_bytes(head | dict(report.data))}


def _clear(partial: Path, place: Path) -> None:
    """Deal with what a killed run left: its new report is incomplete; the old one goes back if nothing replaced it."""
    shutil.rmtree(partial / NEW, ignore_errors=True)
    old = partial / OLD
    if not old.is_dir():
        return
    if os.path.lexists(place):
        shutil.rmtree(old, ignore_errors=True)
        return
    try:
        old.rename(place)
    except OSError as error:
        raise cannot_write(place, error) from error


def _write_all(new: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        make_folder((new / name).parent)
        write_whole(new / name, content)


def _publish(partial: Path, place: Path) -> None:
    """Put the new folder where the old one is, which is put back if that fails."""
    old = partial / OLD
    try:
        if place.is_dir():
            place.rename(old)
        try:
            (partial / NEW).rename(place)
        except BaseException:
            if old.is_dir():
                old.rename(place)
            raise
    except OSError as error:
        raise cannot_write(place, error) from error
    shutil.rmtree(old, ignore_errors=True)
