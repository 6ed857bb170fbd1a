"""Outputs that are folders (OME-Zarr): like files, they appear under their name only when they are complete."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from pathlib import Path

from ..errors import OutputError
from ..storage import check_folder, check_name, check_writable, exists, hidden_path, leftovers, sync_folder

ZARR_SUFFIX = ".ome.zarr"
"""What the name of an OME-Zarr ends in."""

_METADATA = ("zarr.json", ".zgroup", ".zattrs")
"""A folder with one of these is a Zarr group, of either version."""

_log = logging.getLogger(__name__)


def is_zarr(path: Path) -> bool:
    """Whether an output of this name is to be an OME-Zarr."""
    return path.name.lower().endswith(ZARR_SUFFIX)


def check_folder_output(path: Path, overwrite: bool) -> None:
    """See early, before any work is done, whether a folder can be written as an output; see `check_output`.

    Only a Zarr group is ever replaced, never another folder: a slip of the pen must not cost somebody's data.

    Raises
    ------
    OutputExistsError
        If it is there and may not be replaced.
    OutputError
        If its own folder is missing or not writable, or the name belongs to something else.
    """
    check_name(path)
    check_folder(path.parent)
    if os.path.lexists(path):
        if path.is_symlink() or not any((path / name).is_file() for name in _METADATA):
            raise OutputError(f"output {path} exists and is not a Zarr image: choose another name")
        if not overwrite:
            raise exists(path)
    check_writable(path.parent)


def publish_folder(folder: Path, path: Path, overwrite: bool) -> None:
    """Make a folder durable and move it to ``path``, on the same file system.

    A folder that is there is moved away first, and removed when the new one has taken its place: two renames, between
    which a killed process leaves none of that name.

    Raises
    ------
    OutputExistsError
        If ``path`` is there, or has appeared meanwhile, and may not be replaced.
    OutputError
        If the file system refuses.
    """
    check_folder_output(path, overwrite)
    old = hidden_path(path, "old")
    try:
        sync_tree(folder)
        if os.path.lexists(path):
            path.rename(old)
        try:
            folder.rename(path)
        except OSError:
            with contextlib.suppress(OSError):
                old.rename(path)
            raise
        sync_folder(path.parent)
    except OSError as error:
        raise OutputError(f"cannot finish {path.name} in {path.parent}: {error.strerror}") from error
    remove_replaced(path)


def remove_replaced(path: Path) -> None:
    """Remove what a folder that is there has replaced, and a killed run has left beside it."""
    if os.path.lexists(path):  # else it may be the only one there is
        for leftover in leftovers(path, "old"):
            remove_tree(leftover)


def sync_tree(folder: Path) -> None:
    """Make all that is in a folder durable."""
    for place, _, names in os.walk(folder):
        for name in names:
            sync_file(Path(place, name))
        sync_folder(Path(place))


def sync_file(path: Path) -> None:
    """Make a file's content durable."""
    handle = os.open(path, os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_tree(folder: Path) -> None:
    """Remove a folder, as far as the file system lets it."""
    shutil.rmtree(folder, ignore_errors=True)
    if folder.exists():
        _log.warning("cannot remove all of %s", folder)


def tree_bytes(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(Path(place, name).stat().st_size for place, _, names in os.walk(folder) for name in names)
