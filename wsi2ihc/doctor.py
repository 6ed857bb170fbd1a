"""Checks of the environment, each of which does a small part of the real work."""

from __future__ import annotations

import dataclasses
import io
import os
import platform
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True)
class Check:
    """Result of a check; translation is impossible if one that is ``needed`` fails."""

    name: str
    ok: bool
    needed: bool
    found: str

    def to_json(self) -> dict[str, Any]:
        """Return a dictionary for JSON."""
        return dataclasses.asdict(self)


def examine() -> list[Check]:
    """Run all checks. A check that fails does not raise."""
    return [
        _check("Python", _python),
        _check("OpenSlide", _openslide),
        _check("tiffslide", _tiffslide),
        _check("JPEG", _jpeg),
        _check("deflate", _deflate),
        _check("torch", _torch),
        _check("CPU precision", _cpu_precision),
        _check("CUDA", _cuda, needed=False),
        _check("Apple GPU", _mps, needed=False),
        _check("memory", _memory, needed=False),
        _check("disk", _disk),
    ]


def _check(name: str, check: Callable[[], str], *, needed: bool = True) -> Check:
    try:
        return Check(name, True, needed, check())
    except Exception as error:
        text = " ".join(str(error).split())[:200]
        return Check(name, False, needed, text or type(error).__name__)


def _python() -> str:
    return f"{platform.python_version()} on {platform.system()} {platform.machine()}"


def _openslide() -> str:
    import openslide

    return f"library {openslide.__library_version__}, binding {openslide.__version__}"


def _tiffslide() -> str:
    from importlib.metadata import version

    import tiffslide  # noqa: F401

    return f"{version('tiffslide')}, tifffile {version('tifffile')}"


def _jpeg() -> str:
    import imagecodecs

    red = np.zeros((16, 16, 3), dtype=np.uint8)
    red[..., 0] = 255
    encoded = imagecodecs.jpeg8_encode(red, level=85, colorspace="RGB", outcolorspace="YCBCR", subsampling="422")
    error = int(np.abs(imagecodecs.jpeg8_decode(encoded).astype(int) - red).max())
    if error > 8:
        raise RuntimeError(f"a red tile came back wrong by {error} gray levels")
    return f"{imagecodecs.jpeg8_version()}"


def _deflate() -> str:
    import zlib

    import imagecodecs

    data = bytes(range(256)) * 16
    if zlib.decompress(imagecodecs.zlib_encode(data)) != data:
        raise RuntimeError("data came back changed")
    return f"{imagecodecs.zlib_version()}"


def _torch() -> str:
    import torch

    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU build"
    return f"{torch.__version__} ({build}), {torch.get_num_threads()} threads"


def _cpu_precision() -> str:
    import torch

    from .models.device import choose_precision

    return f"{choose_precision('auto', torch.device('cpu'))} is fastest here"


def _cuda() -> str:
    import torch

    from .models.device import choose_precision

    if not torch.cuda.is_available():
        raise RuntimeError("no CUDA device" + ("" if torch.version.cuda else "; this torch is a CPU build"))
    found = io.StringIO()
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        precision = choose_precision("auto", torch.device("cuda", number))
        found.write(f"{number}: {properties.name}, {properties.total_memory / 1024**3:.0f} GiB, {precision}; ")
    return found.getvalue().rstrip("; ")


def _mps() -> str:
    import torch

    if not torch.backends.mps.is_available():
        raise RuntimeError("no Apple GPU")
    return "available"


def _memory() -> str:
    if not hasattr(os, "sysconf"):
        raise RuntimeError("the system does not report it")
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if total < 4 * 1024**3:
        raise RuntimeError(f"{total / 1024**3:.1f} GiB; translate with --max-memory below that")
    return f"{total / 1024**3:.1f} GiB"


def _disk() -> str:
    folder = Path.cwd()
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".wsi2ihc-doctor-"):
        free = shutil.disk_usage(folder).free
    return f"{free / 1e9:.1f} GB free in the working folder, which is writable"
