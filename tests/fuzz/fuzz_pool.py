"""A process that runs inputs, watched from outside: it is ended where it hangs or takes too much memory."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

HANG_S = 20.0
"""Seconds of processor time."""

STILL_S = 30.0
"""In which no thread of the process wants the processor. One that waits for its turn does not count."""

LARGEST_MB = 2048
_LOOK_S = 0.05
_INPUTS_PER_PROCESS = 400
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an input led to.

    findings:  what may not happen, one line each; the first word says of what kind
    signature: alike for inputs that took the same path
    seconds:   of processor time
    peak_mb:   of resident memory
    text:      what the commands said
    """

    findings: tuple[str, ...]
    signature: str = ""
    seconds: float = 0.0
    peak_mb: int = 0
    text: str = ""


@dataclass(slots=True)
class Pool:
    """One process at a time, replaced after a crash and after some hundred inputs."""

    folder: Path
    worker: Path = Path(__file__).parent / "fuzz_worker.py"
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)
    _inputs: int = field(default=0, init=False)
    _unread: bytes = field(default=b"", init=False)

    def run(self, target: str, path: Path) -> Outcome:
        """Run one input."""
        process = self._ready()
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps({"target": target, "path": str(path)}).encode() + b"\n")
            process.stdin.flush()
        except BrokenPipeError:
            self.close()
            return Outcome((f"crash: the process ended before the input ({process.poll()})",))
        self._inputs += 1
        began = self._answer(process, None)
        if isinstance(began, Outcome):
            return began
        answer = self._answer(process, _cpu_seconds(process.pid))
        return answer if isinstance(answer, Outcome) else _judged(answer)

    def close(self) -> None:
        """End the process and remove its files except the scenes, which take time to make."""
        if self._process is not None:
            with contextlib.suppress(psutil.Error):
                for child in psutil.Process(self._process.pid).children(recursive=True):
                    child.kill()
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    pipe.close()
            self._process = None
        for left in self.folder.glob("input-*"):
            shutil.rmtree(left, ignore_errors=True)

    def _ready(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._inputs >= _INPUTS_PER_PROCESS or self._process.poll() is not None:
            self.close()
            empty = self.folder / "home"
            empty.mkdir(parents=True, exist_ok=True)
            here = str(Path(__file__).parent)
            search = os.pathsep.join([here, str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
            settings = {
                "PYTHONPATH": search.rstrip(os.pathsep),
                "HOME": str(empty),
                "TMPDIR": str(empty),
                # torch sets it in this process where another test compiled something
                "TORCHINDUCTOR_CACHE_DIR": str(empty / "inductor"),
                "OMP_NUM_THREADS": "1",
                # matplotlib lists fonts for seconds where it finds no list
                "MPLCONFIGDIR": os.environ.get("MPLCONFIGDIR") or str(Path.home() / ".cache" / "matplotlib"),
            }
            self._process = subprocess.Popen(
                [sys.executable, "-P", str(self.worker), str(self.folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                cwd=empty,
                env=os.environ | settings,
            )
            self._inputs, self._unread = 0, b""
        return self._process

    def _answer(self, process: subprocess.Popen[bytes], cpu_before: float | None) -> dict[str, Any] | Outcome:
        """The next line of the process; an outcome if there is none. Limits hold if ``cpu_before`` is given."""
        assert process.stdout is not None
        still_s, peak_mb = 0.0, 0
        while b"\n" not in self._unread:
            if select.select([process.stdout], [], [], _LOOK_S)[0]:
                part = os.read(process.stdout.fileno(), 1 << 20)
                if not part:
                    code = process.wait()
                    name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
                    return self._ended(f"crash: {name}", peak_mb)
                self._unread += part
                continue
            used = _cpu_seconds(process.pid) - (cpu_before or 0.0)
            memory_mb = _resident_mb(process.pid)
            peak_mb = max(peak_mb, memory_mb)
            still_s += 0.0 if cpu_before is None or _wants_to_run(process.pid) else _LOOK_S
            if cpu_before is not None and memory_mb > LARGEST_MB:
                return self._ended(f"memory: {memory_mb} MB after {used:.0f} s", peak_mb)
            if still_s > STILL_S or (cpu_before is not None and used > HANG_S):
                return self._ended(f"hang: {used:.0f} s of processor time, {still_s:.0f} s of waiting", peak_mb)
        line, _, self._unread = self._unread.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _ended(self, finding: str, peak_mb: int) -> Outcome:
        text = ""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGUSR1)
            time.sleep(0.5)
            with contextlib.suppress(OSError):
                text = (self.folder / "stacks.txt").read_text(encoding="utf-8")
        self.close()
        return Outcome((finding,), finding.split(":")[0], peak_mb=peak_mb, text=text)


def _judged(answer: dict[str, Any]) -> Outcome:
    findings = [f"output: {wrong}" for result in answer["results"] for wrong in result["wrong"]]
    findings += [f"outside: {event}" for event in answer["outside"]]
    if answer["peak_mb"] > LARGEST_MB:
        findings.append(f"memory: {answer['peak_mb']} MB at its peak")
    if answer["seconds"] > HANG_S:
        findings.append(f"hang: {answer['seconds']:.0f} s of processor time")
    text = "\n".join(f"[{result['code']}] {result['err'] or result['out'][:300]}" for result in answer["results"])
    return Outcome(tuple(findings), answer["signature"], answer["seconds"], answer["peak_mb"], text)


def _cpu_seconds(pid: int) -> float:
    """Processor time of a process, and of its children that have ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()
    except OSError:
        return 0.0
    return sum(int(fields[number]) for number in (11, 12, 13, 14)) / _TICKS


def _wants_to_run(pid: int) -> bool:
    """Whether a thread runs, waits for a processor or for a disk."""
    for task in Path(f"/proc/{pid}/task").glob("*/stat"):
        with contextlib.suppress(OSError, IndexError):
            if task.read_text(encoding="utf-8").rsplit(")", 1)[1].split()[0] in "RD":
                return True
    return False


def _resident_mb(pid: int) -> int:
    """Memory of a process and its children."""
    total = 0
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        for one in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                total += one.memory_info().rss
    return total >> 20
