"""Messages without folders: these can name a patient, and results and logs are passed around."""

from __future__ import annotations

import contextlib
import getpass
import re
import socket
from functools import lru_cache
from pathlib import Path

from ..errors import Wsi2IhcError
from ..text import describe_error

_URL = re.compile(r"\b[a-z][a-z0-9+.-]{1,9}://[^\s\"'<>]+", re.IGNORECASE)
_PATH = re.compile(r"(?<![\w.:/\\-])(?:[A-Za-z]:|~)?(?:[\\/][^\\/\s\"'<>|:;,()]+){2,}[\\/]?")

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


def anonymous(text: str, *paths: str | Path) -> str:
    """A text of unknown origin without folders, addresses, and the names of this machine and its user.

    What libraries and the interpreter print names files in full. These paths, which may hold blanks, and whatever looks
    like a path or a URL stand as base names.
    """
    text = without_folders(text, *paths)
    text = _URL.sub(lambda found: base_name(found[0]) if "/" in found[0].partition("://")[2] else "ADDRESS", text)
    text = _PATH.sub(lambda found: base_name(found[0]), text)
    for name, stands_for in _local_names():
        text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", stands_for, text)
    return text


@lru_cache(maxsize=1)
def _local_names() -> list[tuple[str, str]]:
    """Names of this machine and its user, as far as they are no ordinary words, with what replaces them."""
    names = [(socket.gethostname(), "HOST"), (socket.gethostname().partition(".")[0], "HOST")]
    with contextlib.suppress(OSError, KeyError, ImportError):
        names.append((getpass.getuser(), "USER"))
    return [(name, stands_for) for name, stands_for in names if len(name) > 2 and name not in ("root", "localhost")]


def told(error: BaseException, *paths: str | Path) -> str:
    """Describe an error in one line of bounded length, without the folders of these paths."""
    redact = without_folders if isinstance(error, Wsi2IhcError) else anonymous
    text = describe_error(error, lambda text: redact(text, *paths))
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
