"""Translate many slides in one process, and see whether its memory, threads and open files stay as they are.

    python tests/fuzz/many_slides.py --slides 120

Runs ``wsi2ihc batch --children 1`` on synthetic slides, and measures the process that translates whenever a slide is
done. After the first quarter, in which caches fill, none of the three may grow: the median of the last quarter is
compared with that of the second. Needs Linux. This is a long mode, not part of the tests.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parent))

ALLOWED = {"memory_mb": 0.05, "threads": 0.0, "files": 0.0}
"""Growth that counts as none, as a share."""


@dataclass(frozen=True)
class Look:
    """What a process holds."""

    memory_mb: float
    threads: int
    files: int


def main() -> None:
    """Run the batch, print a table, and exit with 1 if something has grown."""
    parser = argparse.ArgumentParser(description="Translate many slides in one process.")
    parser.add_argument("--slides", type=int, default=120)
    parser.add_argument("--side", type=int, default=400, help="of a slide, in pixels")
    parser.add_argument("--model", default="pan-ck-demo")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="wsi2ihc-many-") as folder:
        looks = watch(Path(folder), asked.slides, asked.side, asked.model)
    quarter = len(looks) // 4
    failed = len(looks) < 0.9 * asked.slides  # several may be done between two looks
    print(f"{len(looks)} of {asked.slides} slides done")  # noqa: T201
    for name, allowed in ALLOWED.items():
        values = [getattr(look, name) for look in looks]
        before, after = median(values[quarter : 2 * quarter]), median(values[-quarter:])
        has_grown = after > before * (1 + allowed)
        failed = failed or has_grown
        print(f"{name}: {before:.0f} in the second quarter, {after:.0f} in the last, "  # noqa: T201
              f"{min(values):.0f} to {max(values):.0f} in all{': has grown' if has_grown else ''}")  # fmt: skip
    sys.exit(1 if failed else 0)


def watch(folder: Path, count: int, side: int, model: str) -> list[Look]:
    """Run a batch; what its child held each time that a slide was done."""
    from kill import write_slides

    (folder / "slides").mkdir()
    write_slides(folder / "slides", count, side)
    command = [
        str(Path(sys.executable).with_name("wsi2ihc")), "batch", str(folder / "slides"), str(folder / "out"),
        "--model", model, "--device", "cpu", "--children", "1", "--restart-every", str(count + 1), "--quiet",
    ]  # fmt: skip
    batch = subprocess.Popen(command)
    markers, looks, known = folder / "out" / ".wsi2ihc-batch" / "done", list[Look](), 0
    while batch.poll() is None:
        done = sum(1 for _ in markers.glob("*.json"))
        if done > known and (look := look_at(batch.pid)) is not None:
            looks += [look] * (done - known)
            known = done
        time.sleep(0.05)
    return looks


def look_at(batch: int) -> Look | None:
    """What the process that translates holds now; None if it has ended."""
    try:
        for child in psutil.Process(batch).children():
            if "wsi2ihc.batch.worker:serve" in child.cmdline():
                return Look(child.memory_info().rss / 2**20, child.num_threads(), child.num_fds())
    except psutil.Error:
        return None
    return None


if __name__ == "__main__":
    main()
