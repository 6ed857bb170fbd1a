"""Messages without folders: these can name a patient, and results and logs are passed around."""

from __future__ import annotations

from pathlib import Path

from ..errors import Wsi2IhcError

_LONGEST = 600
"""Characters of a message: what cells and files hold can be as long as they like."""


def base_name(path: str) -> str:
    """Of a path or a URL; without what follows a URL's path, which can be a signature."""
    if "://" in path:
        path = path.partition("?")[0].partition("#")[0]
    return path.rstrip("/\\").replace("\\", "/").rpartition("/")[2]


def without_folders(text: str, *paths: str | Path) -> str:
    """A text in which these paths, and those that begin with their folders, stand as base names."""
    known = sorted({str(path) for path in paths if str(path)}, key=len, reverse=True)
    for path in known:
        if (name := base_name(path)) and name != path:
            text = text.replace(path, name)
    folders = {str(Path(path).parent) for path in known if "://" not in path} - {".", "/"}
    for folder in sorted(folders, key=len, reverse=True):
        text = text.replace(f"{folder}/", "")
    return text


def told(error: BaseException, *paths: str | Path) -> str:
    """One line for people of an error, without the folders of these paths."""
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError) and not isinstance(error, Wsi2IhcError):
        return "out of memory"
    if isinstance(error, OSError) and not isinstance(error, Wsi2IhcError) and error.strerror:
        return error.strerror
    if not isinstance(error, Wsi2IhcError):
        text = f"unexpected {type(error).__name__}: {text:.200}"
    text = without_folders(text, *paths)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
