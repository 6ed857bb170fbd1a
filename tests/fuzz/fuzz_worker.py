"""Runs inputs in a process of its own: one JSON request per line on stdin, one JSON answer per line on stdout.

What only the process itself can see is noticed here, by audit events: files opened for writing, processes, sockets and
pickles. Time and memory are watched from outside, see `fuzz_pool`.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import re
import resource
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LARGEST_OUTPUT_BYTES = 64 << 20
_ADDRESS_SPACE_BYTES = 12 << 30
"""Ends an allocation that is too large for the watching process to see in time."""

_WRITES = {
    "os.rename",
    "os.remove",
    "os.mkdir",
    "os.rmdir",
    "os.symlink",
    "os.link",
    "os.truncate",
    "os.chmod",
    "os.chown",
    "shutil.rmtree",
    "shutil.move",
    "shutil.copyfile",
}
_STARTS = {"subprocess.Popen", "os.exec", "os.posix_spawn", "os.system", "os.fork", "os.forkpty", "pty.spawn"}
_OTHER = {"socket.connect", "socket.bind", "pickle.find_class"}
_CONCURRENCY = str(Path(__file__).parents[2] / "wsi2ihc" / "concurrency.py")
_NOISE = re.compile(
    r"Traceback \(most recent call last\)|Exception ignored|was destroyed but it is pending|"
    r"never awaited|Segmentation fault|unexpected [A-Z]\w+:|\w+Warning:|out of memory"
)
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


class Watch:
    """Notes what a command does that no command may do."""

    def __init__(self, allowed: Path) -> None:
        self.allowed = f"{allowed}{os.sep}"
        self.seen: list[str] = []
        self.active = False
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.active:
            return
        if event == "open":
            path, _mode, flags = arguments
            writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            if writes and isinstance(path, (str, bytes)) and self._is_outside(path):
                self.seen.append(f"writes {os.fsdecode(path)}")
        elif event in _WRITES:
            for path in arguments[:2]:
                if isinstance(path, (str, bytes)) and self._is_outside(path):
                    self.seen.append(f"{event} {os.fsdecode(path)}")
        elif event == "pickle.find_class" and sys._getframe(1).f_code.co_filename == _CONCURRENCY:
            pass  # a message of a process that the program started
        elif event in _OTHER or (event in _STARTS and not _is_expected(arguments)):
            self.seen.append(f"{event} {arguments!r:.200}")

    def _is_outside(self, path: str | bytes) -> bool:
        full = os.path.realpath(os.fsdecode(path))
        return full != "/dev/null" and not full.startswith((self.allowed, os.environ["MPLCONFIGDIR"]))


def _is_expected(arguments: tuple[Any, ...]) -> bool:
    """Whether a process is one that the program starts: a child of its own, or matplotlib's search for fonts."""
    program, command = arguments[0], arguments[1] if len(arguments) > 1 else ()
    return program == "fc-list" or (program == sys.executable and list(command)[1:3] == ["-P", "-m"])


@contextlib.contextmanager
def _captured(folder: Path) -> Iterator[tuple[Path, Path]]:
    """Both outputs of the process in files, those of libraries in C included."""
    paths = folder / "stdout.txt", folder / "stderr.txt"
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(1), os.dup(2)]
    for number, path in enumerate(paths, start=1):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, number)
        os.close(descriptor)
    try:
        yield paths
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, descriptor in enumerate(kept, start=1):
            os.dup2(descriptor, number)
            os.close(descriptor)


def run_command(arguments: list[str], folder: Path) -> dict[str, Any]:
    """Run a command of the program in this process: its exit code, what it printed, and what is wrong with that."""
    from fuzz_targets import CALLS

    from wsi2ihc.cli.main import main
    from wsi2ihc.errors import Wsi2IhcError

    wrong: list[str] = []
    code: object = None
    with _captured(folder) as (out, err):
        try:
            if arguments[0] in CALLS:
                CALLS[arguments[0]](*arguments[1:])
                code = 0
            else:
                main(arguments)
        except SystemExit as leaving:
            code = leaving.code
        except Wsi2IhcError as error:
            code = 1
            sys.stderr.write(f"Error: {error}\n")
        except BaseException as error:
            wrong.append(f"raised {type(error).__name__}: {error!s:.300}")
    printed = out.read_bytes()[:LARGEST_OUTPUT_BYTES].decode("utf-8", "replace")
    errors = err.read_bytes()[:LARGEST_OUTPUT_BYTES].decode("utf-8", "replace")
    if code not in (0, 1, 2, 3):
        wrong.append(f"exit code {code}")
    if found := _NOISE.search(errors):
        wrong.append(f"stderr says {errors[found.start() : found.start() + 300]!r}")
    if control := _CONTROL.search(errors) or ("--json" not in arguments and _CONTROL.search(printed)):
        wrong.append(f"prints the control character {control.group()!a}")
    if code == 1 and (longest := max(map(len, errors.splitlines()), default=0)) > 10_000:
        wrong.append(f"an error of {longest} characters in one line")
    if code == 0 and "--json" in arguments:
        try:
            json.loads(printed, parse_constant=_no_constant)
        except ValueError as error:
            wrong.append(f"--json prints no JSON: {error}")
    return {"code": code, "out": printed[:2000], "err": errors[-2000:], "wrong": wrong}


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _signature(answers: list[dict[str, Any]]) -> str:
    """What is alike for inputs that take the same path through the program: codes and messages without their values."""
    parts = []
    for answer in answers:
        text = re.sub(r"'[^']*'|\"[^\"]*\"|\([^)]*\)|[\d.]+", "#", answer["err"][-600:])
        parts.append(f"{answer['code']} {text}")
    return " | ".join(parts)


def main() -> None:
    """Answer requests until stdin ends."""
    sys.dont_write_bytecode = True  # a module that is imported for the first time would count as a write outside
    from fuzz_targets import TARGETS

    home = Path(sys.argv[1]).resolve()
    requests = os.fdopen(os.dup(0), encoding="utf-8")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    limit = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_SPACE_BYTES, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    stacks = (home / "stacks.txt").open("w", encoding="utf-8")
    faulthandler.register(signal.SIGUSR1, file=stacks)  # where it hangs
    watch = Watch(home)
    for number, line in enumerate(requests):
        request = json.loads(line)
        target = TARGETS[request["target"]]
        folder = home / f"input-{os.getpid()}-{number}"
        folder.mkdir()
        scene = home / f"scene-{target.name}"
        if target.scene is not None and not scene.exists():
            target.scene(scene)
        if scene.exists():
            shutil.copytree(scene, folder, dirs_exist_ok=True, symlinks=True)
        commands = target.lay(folder, Path(request["path"]))
        outputs = folder / "printed"
        outputs.mkdir()
        Path("/proc/self/clear_refs").write_text("5")
        answers.write(json.dumps({"begins": time.time()}) + "\n")
        answers.flush()
        started = time.process_time()
        watch.seen.clear()
        watch.active = True
        results = [run_command(command, outputs) for command in commands]
        watch.active = False
        seconds = time.process_time() - started
        status = dict(part.split(":", 1) for part in Path("/proc/self/status").read_text().splitlines())
        shutil.rmtree(folder, ignore_errors=True)
        answers.write(
            json.dumps(
                {
                    "results": results,
                    "outside": watch.seen[:20],
                    "signature": _signature(results),
                    "seconds": seconds,
                    "peak_mb": int(status["VmHWM"].split()[0]) >> 10,
                }
            )
            + "\n"
        )
        answers.flush()


if __name__ == "__main__":
    main()
