"""Files of a run that are written in one piece: whole and new, or as they were."""

from __future__ import annotations

from pathlib import Path

from wsi2ihc.errors import OutputError
from wsi2ihc.pyramid import published


def write_whole(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path`` through a file beside it; what is there is replaced.

    Raises
    ------
    OutputError
        If the file system refuses, for instance since the disk is full; ``path`` is then as it was.
    """
    try:
        with published(path, overwrite=True) as partial:
            partial.write_bytes(content)
    except OutputError:
        raise
    except OSError as error:
        raise cannot_write(path, error) from error


def cannot_write(path: Path, error: OSError) -> OutputError:
    """The one line for a file that cannot be written."""
    return OutputError(f"cannot write {path}: {error.strerror or error}; free some space or write elsewhere")
