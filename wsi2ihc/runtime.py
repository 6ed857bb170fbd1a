"""What the program runs on: the cores and the memory that it may use, and the versions of its libraries."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

VERSIONED = ("wsi2ihc", "numpy", "scipy", "opencv-python-headless", "pillow", "imagecodecs", "openslide-python",
             "openslide-bin", "tiffslide", "tifffile")  # fmt: skip
"""Distributions whose versions can change pixels, transforms or files."""


def cores() -> int:
    """Cores that this process may use: fewer than there are in containers and under SLURM."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def available_memory_bytes(root: Path = Path("/")) -> int | None:
    """Memory that can be had without swapping; None where the system does not tell.

    That is what Linux calls available, the file cache included, and no more than what the control groups of this
    process leave it, as in containers and under SLURM. Memory that is "free" is not used for anything, and close to
    nothing on a machine that has read some files.
    """
    found = [_number_after("MemAvailable:", root / "proc/meminfo"), *_left_by_groups(root)]
    known = [amount for amount in found if amount is not None]
    return min(known) if known else None


def _left_by_groups(root: Path) -> Iterator[int | None]:
    """What each control group that this process is in, and each above it, leaves (both versions of the interface)."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            names = "memory.max", "memory.current", "inactive_file "
            mounted = root / "sys/fs/cgroup"
        elif "memory" in controllers.split(","):
            names = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file "
            mounted = root / "sys/fs/cgroup/memory"
        else:
            continue
        group = mounted / path.lstrip("/")
        for folder in (group, *group.parents):
            if not folder.is_relative_to(mounted):
                break
            yield _left_by(folder, *names)


def _left_by(folder: Path, limit: str, used: str, cached: str) -> int | None:
    """The limit of a group less what it uses, of which the files that can be dropped do not count."""
    most, now = _text(folder / limit).strip(), _text(folder / used).strip()
    if not (most.isdecimal() and now.isdecimal()):  # no limit, or no such group in this namespace
        return None
    return max(0, int(most) - int(now) + (_number_after(cached, folder / "memory.stat", unit=1) or 0))


def _number_after(name: str, path: Path, unit: int = 1024) -> int | None:
    for line in _text(path).splitlines():
        if line.startswith(name):
            words = line.removeprefix(name).split()
            return unit * int(words[0]) if words and words[0].isdecimal() else None
    return None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""


def versions(*more: str) -> dict[str, str]:
    """Versions of Python, of `VERSIONED` and of ``more`` distributions; those not installed are left out."""
    found = {"python": platform.python_version()}
    for name in (*VERSIONED, *more):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
