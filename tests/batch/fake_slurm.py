"""Programs by the names of SLURM's, which run jobs as processes of this machine."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from dask_processes import hooks

_PROGRAM = """#!{python}
import os, signal, subprocess, sys
from pathlib import Path
import psutil

jobs, name = Path({jobs!r}), Path(sys.argv[0]).name

def is_running(pid_file):
    try:
        return psutil.Process(int(pid_file.read_text())).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False

if name == "sbatch":
    if (jobs / "refuse").exists():
        sys.exit("sbatch: error: Batch job submission failed: Invalid account")
    number = 4711
    while True:
        try:
            script = jobs / f"{{number}}.sh"
            script.touch(exist_ok=False)  # several may be at it at once
            break
        except FileExistsError:
            number += 1
    script.write_text(Path(sys.argv[1]).read_text() if not (jobs / "broken").exists() else "exit 1")
    with (jobs / f"{{number}}.log").open("wb") as log:
        job = subprocess.Popen(["bash", str(script)], stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                               start_new_session=True)
    (jobs / f"{{number}}.pid").write_text(str(job.pid))
    print(f"Submitted batch job {{number}}")
elif name == "squeue":
    print("\\n".join(pid.stem for pid in sorted(jobs.glob("*.pid")) if is_running(pid)))
elif name == "scancel":
    (jobs / "cancelled").open("a").write(sys.argv[1] + "\\n")
    if is_running(pid_file := jobs / f"{{sys.argv[1]}}.pid"):
        os.killpg(int(pid_file.read_text()), signal.SIGTERM)
"""


class FakeSlurm:
    """Its programs, in a folder for the front of PATH; and its jobs, whose scripts and processes can be looked at."""

    def __init__(self, folder: Path, settings: str = "") -> None:
        self.jobs, self._programs = folder / "jobs", folder / "programs"
        for made in (self.jobs, self._programs, folder / "config"):
            made.mkdir(parents=True)
        (folder / "config" / "jobqueue.yaml").write_text(f"jobqueue:\n  slurm:\n    interface: lo\n{settings}")
        for name in ("sbatch", "squeue", "scancel"):
            program = self._programs / name
            program.write_text(_PROGRAM.format(python=sys.executable, jobs=str(self.jobs)))
            program.chmod(0o755)
        self.environment = {
            **os.environ, "PATH": f"{self._programs}{os.pathsep}{os.environ['PATH']}",
            "DASK_CONFIG": str(folder / "config"), "DASK_TEMPORARY_DIRECTORY": str(folder), "PYTHONPATH": hooks(folder),
        }  # fmt: skip

    def without(self, program: str) -> None:
        (self._programs / program).unlink()

    def scripts(self) -> list[str]:
        return [path.read_text() for path in sorted(self.jobs.glob("*.sh"))]

    def pids(self) -> list[int]:
        return [int(path.read_text()) for path in sorted(self.jobs.glob("*.pid"))]

    def cancelled(self) -> set[str]:
        return set((self.jobs / "cancelled").read_text().split())
