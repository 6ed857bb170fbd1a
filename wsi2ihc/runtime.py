"""What the program runs on: the cores that it may use, and the versions of the libraries that it uses."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version

VERSIONED = ("wsi2ihc", "numpy", "scipy", "opencv-python-headless", "pillow", "imagecodecs", "openslide-python",
             "openslide-bin", "tiffslide", "tifffile")  # fmt: skip
"""Distributions whose versions can change pixels, transforms or files."""


def cores() -> int:
    """Cores that this process may use: fewer than there are in containers and under SLURM."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def versions(*more: str) -> dict[str, str]:
    """Versions of Python, of `VERSIONED` and of ``more`` distributions; those not installed are left out."""
    found = {"python": platform.python_version()}
    for name in (*VERSIONED, *more):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
