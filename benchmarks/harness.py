"""Shared parts of all benchmarks: rows of results, subprocesses, medians of interleaved runs."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Row:
    """One metric; ``met`` is None if it has no target."""

    what: str
    bar: str
    measured: str
    met: bool | None
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Context:
    """Folders: ``data`` with real slides, and ``work`` for large files that are kept between runs."""

    data: Path
    work: Path
    quick: bool = False

    @property
    def slide(self) -> Path:
        return self.data / "slides" / "CMU-1-Small-Region.svs"


def interleaved(runs: Mapping[str, Callable[[], float]], times: int) -> dict[str, list[float]]:
    """Call each function in turn, ``times`` times; return the seconds of each."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(times):
        for name, run in runs.items():
            seconds[name].append(run())
    return seconds


def ratio_of_medians(seconds: Mapping[str, list[float]], above: str, below: str) -> float:
    return statistics.median(seconds[above]) / statistics.median(seconds[below])


def child(module: str, *arguments: str, environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Run ``python -m module arguments`` and return the JSON object that it prints, with its peak memory.

    Peak memory is that of the process tree, sampled every 20 ms.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        stdout=subprocess.PIPE, text=True, env={**os.environ, **(environment or {})},
    )  # fmt: skip
    peak = [0]
    watcher = threading.Thread(target=_watch, args=(process.pid, peak), daemon=True)
    watcher.start()
    output, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"{module} {' '.join(arguments)} ended with {process.returncode}")
    answer: dict[str, Any] = json.loads(output)
    answer["peak_bytes"] = peak[0]
    return answer


def _watch(pid: int, peak: list[int]) -> None:
    import psutil

    try:
        root = psutil.Process(pid)
        while root.is_running():
            tree = [root, *root.children(recursive=True)]
            peak[0] = max(peak[0], sum(process.memory_info().rss for process in tree))
            time.sleep(0.02)
    except psutil.Error:
        return


def machine() -> dict[str, Any]:
    """Describe the machine."""
    import torch

    from wsi2ihc.translation.report import versions

    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    features = [name for name in ("amx_bf16", "avx512_bf16") if cpuinfo.exists() and name in cpuinfo.read_text()]
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "features": features,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": versions(),
        "date": time.strftime("%Y-%m-%d"),
    }
