"""Write the folder of a report (HTML page, Markdown, tables, figures), all files or none.

The new report is written to a hidden folder next to the output and then renamed. ``report.json`` lists the files of the
report, so that overwriting never removes other files.
"""

from __future__ import annotations

import base64
import contextlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from wsi2ihc.atomic_files import cannot_write, make_folder, write_atomically
from wsi2ihc.errors import OutputError, OutputExistsError
from wsi2ihc.files import json_bytes, read_json
from wsi2ihc.locks import exclusive_lock
from wsi2ihc.pages import render_page

from .document import (
    Attachment,
    Figure,
    Report,
    Table,
    attachments_of,
    encoded_text,
    format_cell,
    numeric_columns,
    reason_marks,
)
from .markdown import markdown_text

FORMAT, VERSION = "wsi2ihc report", 2

FILES_KEY = "report_files"
"""Key of the list of the report's files in ``report.json``."""

HTML_NAME, MARKDOWN_NAME, JSON_NAME = "report.html", "report.md", "report.json"

CLUTTER = (".DS_Store", "Thumbs.db", "desktop.ini")
"""Files of file managers, which are removed with the report."""

NEW, OLD = "new", "old"
"""Subfolders of the partial folder: the report being written and the one it replaces."""


def check_report_folder(folder: Path, overwrite: bool) -> None:
    """Check before any work is done that a report can be written to a folder.

    The folder may be missing, empty or, with ``overwrite``, contain an earlier report and nothing else.

    Raises
    ------
    OutputExistsError
        If the folder contains a report that may not be replaced, or other files.
    OutputError
        If it is a file or cannot be replaced, or if its parent is not writable.
    """
    if os.path.lexists(folder) and not folder.is_dir():
        raise OutputError(f"output {folder} exists and is not a folder: name a folder")
    path = folder.resolve()
    if path.is_dir():
        if os.path.ismount(path) or path == Path.cwd():
            raise OutputError(
                f"output folder {folder} is a mount point or the current folder, which cannot be replaced: "
                "name a folder inside it"
            )
        _check_contents(folder, path, overwrite)
    parent = next(above for above in path.parents if os.path.lexists(above))
    if not parent.is_dir():
        raise OutputError(f"output folder {folder} cannot be created: {parent} is not a folder")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(f"output folder {parent} is not writable: change its permissions, or write elsewhere")


def write_report(folder: Path, report: Report, *, overwrite: bool = False) -> tuple[Path, ...]:
    """Write all files of a report or, if anything fails, none.

    ``report.html`` is self-contained; ``report.md`` has the same content with links to ``figures/``; ``tables/``
    contains every table as CSV; ``report.json`` contains the data, format, version and list of files.

    Parameters
    ----------
    folder
        Output folder, created if missing; see `check_report_folder`.
    report
        Report to write. Names of tables and figures are made unique and valid as file names.
    overwrite
        Replace an earlier report with its folder.

    Returns
    -------
    tuple of Path
        The files, ``report.html`` first.

    Raises
    ------
    OutputExistsError, OutputError
        See `check_report_folder`; also if another run is writing the same report, or writing fails.
    ValueError
        If the data are not valid JSON (NaN included) or use the keys ``format``, ``version`` or ``report_files``, or
        the number of cells in a row differs from the number of columns.
    """
    check_report_folder(folder, overwrite)
    files = _render(report)
    path = folder.resolve()
    partial = path.with_name(f".{path.name}.partial")
    try:
        with exclusive_lock(partial, f"another run is writing {folder}: wait for it to end, or choose another folder"):
            _recover(partial, path)
            check_report_folder(folder, overwrite)
            try:
                for name, content in files.items():
                    make_folder((partial / NEW / name).parent)
                    write_atomically(partial / NEW / name, content)
                _publish(partial, path)
            finally:
                shutil.rmtree(partial / NEW, ignore_errors=True)
    finally:
        with contextlib.suppress(OSError):
            partial.rmdir()  # fails, as intended, if another run uses it
    return tuple(folder / name for name in files)


def _check_contents(folder: Path, path: Path, overwrite: bool) -> None:
    try:
        first = min((entry.name for entry in path.iterdir() if entry.name not in CLUTTER), default=None)
        if first is None:
            return
        own = _files_of_report(path)
        # search recursively only if it is a report: other folders may contain millions of files
        foreign = _first_foreign(path, own) if own else first
    except OSError as error:
        raise OutputError(f"output folder {folder} cannot be read ({error.strerror}): choose another") from error
    if foreign is not None:
        raise OutputExistsError(
            f"output folder {folder} contains other files ({foreign[:60]}): name a new or an empty folder"
        )
    if not overwrite:
        raise OutputExistsError(f"{folder} already contains a report: choose another folder, or use --overwrite")


def _files_of_report(path: Path) -> set[str]:
    """Return the relative paths of the report's files; empty if there is no report."""
    try:
        data = read_json(path / JSON_NAME)
    except (FileNotFoundError, IsADirectoryError, ValueError):
        return set()
    if not isinstance(data, dict) or data.get("format") != FORMAT or not isinstance(data.get(FILES_KEY), list):
        return set()
    return {name for name in data[FILES_KEY] if isinstance(name, str)}


def _first_foreign(path: Path, own: set[str]) -> str | None:
    known = own | {Path(name).parent.as_posix() for name in own}
    names = {file.relative_to(path).as_posix() for file in path.rglob("*") if file.name not in CLUTTER}
    return min(names - known, default=None)


def _render(report: Report) -> dict[str, bytes]:
    """Return the content of all files by relative path."""
    attachments = attachments_of(report)
    files = {
        HTML_NAME: encoded_text(html_page(report, attachments)),
        MARKDOWN_NAME: encoded_text(markdown_text(report, attachments)),
        JSON_NAME: b"",  # replaced below; keeps the order
    }
    files |= {file.path: file.content for section in attachments for file in section}
    header = {"format": FORMAT, "version": VERSION, FILES_KEY: list(files)}
    if reserved := header.keys() & report.data.keys():
        raise ValueError(f"the data of a report may not use the keys {', '.join(sorted(reserved))}")
    return files | {JSON_NAME: json_bytes(header | dict(report.data))}


def _recover(partial: Path, path: Path) -> None:
    """Clean up after an interrupted run: discard its report, and restore the old one if nothing replaced it."""
    shutil.rmtree(partial / NEW, ignore_errors=True)
    old = partial / OLD
    if not old.is_dir():
        return
    if os.path.lexists(path):
        shutil.rmtree(old, ignore_errors=True)
        return
    try:
        old.rename(path)
    except OSError as error:
        raise cannot_write(path, error) from error


def _publish(partial: Path, path: Path) -> None:
    """Replace the old report by the new one; restore the old one if that fails."""
    old = partial / OLD
    try:
        if path.is_dir():
            path.rename(old)
        try:
            (partial / NEW).rename(path)
        except BaseException:
            if old.is_dir():
                old.rename(path)
            raise
    except OSError as error:
        raise cannot_write(path, error) from error
    shutil.rmtree(old, ignore_errors=True)


PLOT_SCALE = 0.7
"""Displayed size of plots relative to their pixels, for sharp rendering on high-density screens and paper."""


def html_page(report: Report, attachments: Sequence[Sequence[Attachment]]) -> str:
    """Return the report as one HTML document with the figures that `attachments_of` encoded."""
    return render_page(
        "report.html",
        report=report,
        attachments=attachments,
        data_url=_data_url,
        displayed_size=_displayed_size,
        format_cell=format_cell,
        is_table=lambda content: isinstance(content, Table),
        numeric_columns=numeric_columns,
        reason_marks=reason_marks,
        zip=lambda *iterables: zip(*iterables, strict=True),
    )


def _displayed_size(figure: Figure) -> tuple[int, int]:
    scale = PLOT_SCALE if figure.kind == "plot" else 1.0
    height, width = (max(1, round(side * scale)) for side in figure.pixels.shape[:2])
    return width, height


def _data_url(file: Attachment) -> str:
    return f"data:{file.media_type};base64,{base64.b64encode(file.content).decode('ascii')}"
