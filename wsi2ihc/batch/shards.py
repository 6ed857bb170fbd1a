"""Whether the tasks of an array job were dealt from one list of slides."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from ..files import read_regular
from ..pyramid import published
from .manifest import Row
from .places import shards_folder


def record_shard(folder: Path, shard: str, listed: Sequence[Row]) -> list[str]:
    """Note the list of slides that a shard is dealt from; the numbers of shards that were dealt from another one.

    If the list has changed between two tasks of an array job, some slides are in none of them.

    Parameters
    ----------
    folder
        Of the outputs.
    shard
        ``"I/N"``.
    listed
        All rows of the list.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    number, _, count = shard.partition("/")
    names = "\n".join(sorted(row.output for row in listed))
    path = shards_folder(folder) / f"{int(number)}-of-{int(count)}"
    path.parent.mkdir(parents=True, exist_ok=True)
    with published(path, overwrite=True) as partial:
        partial.write_text(hashlib.sha256(names.encode()).hexdigest(), encoding="utf-8")
    return dealt_otherwise(folder, int(count))


def dealt_otherwise(folder: Path, count: int) -> list[str]:
    """The numbers of those shards, of so many, whose list was not that of the shard that was begun last."""
    notes = sorted(shards_folder(folder).glob(f"*-of-{count}"), key=lambda path: path.stat().st_mtime_ns)
    lists = {path.name.partition("-")[0]: _text_of(path) for path in notes}
    last = next(reversed(lists.values()), "")
    return sorted((number for number, own in lists.items() if own != last), key=int)


def _text_of(path: Path) -> str:
    try:
        return read_regular(path, 1 << 10).decode("utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
