"""Kill a command at random moments, run it again, and compare the result with that of an undisturbed run.

    python tests/fuzz/kill.py translate --kills 30
    python tests/fuzz/kill.py --list

Each kill is a SIGKILL of the command's own process in a new folder, after a random part of the time of an undisturbed
run. Then the same command must succeed, every file must equal that of the undisturbed run, and nothing may be left
behind: no other file, hidden ones included, no temporary file, no process. Needs Linux. This is the long mode, which
is not part of the tests; `test_kill_script.py` tests this script itself.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import hashlib
import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

MARK = "WSI2IHC_KILL_RUN"
"""Environment variable by which the processes of a run are found."""

TORCH_CACHE = "torchinductor_"
"""What the folder begins with that PyTorch makes for its cache, which is empty here and shared by all its programs."""

ORPHANS_S = 30.0
"""Time that processes may take to notice that the one that started them is gone."""

OUT, TEMPORARY = "out", "tmp"
"""Folders of a run: for results, and for temporary files (TMPDIR). Both are empty at the start."""

VOLATILE_KEYS = frozenset({
    "created", "seconds", "mpx_per_s", "generator_s", "run_s", "attempts", "status", "changed_at",
    "modified_ns", "changed_ns", "report", "model_sha256", "images_per_s",
})  # fmt: skip
"""Keys of JSON files and columns of CSV files that may differ between two good runs."""


@dataclass(frozen=True)
class Scenario:
    """A command to kill.

    make:      writes the inputs into a folder; called once
    command:   arguments of ``wsi2ihc`` from the folder of inputs; it runs in the folder of the run, and writes to `OUT`
    volatile:  pattern of paths, relative to `OUT`, that may be missing or differ, such as logs
    contents:  patterns of paths whose content may differ, but which must be there
    finished:  text of the message with which the command may refuse when the killed run had finished all its work
    resumes:   a path relative to `OUT`, and the option that the command needs where it is there
    program:   what to run; by default the console script of this environment
    """

    make: Callable[[Path], None]
    command: Callable[[Path], Sequence[str | Path]]
    volatile: str = r"$^"
    contents: str = r"$^"
    finished: str = ""
    resumes: tuple[str, str] | None = None
    program: tuple[str, ...] = field(default=(str(Path(sys.executable).with_name("wsi2ihc")),))


@dataclass
class Tally:
    """What came of the kills of a scenario."""

    kills: int = 0
    ended_before: int = 0
    faults: list[str] = field(default_factory=list)


def kill_repeatedly(scenario: Scenario, work: Path, kills: int, seed: int = 0, timeout_s: float = 600) -> Tally:
    """Kill a scenario's command ``kills`` times, each time in a new folder below ``work``."""
    inputs, moments, tally = work / "inputs", random.Random(seed), Tally()
    inputs.mkdir(parents=True)
    scenario.make(inputs)
    sources = contents_of(inputs, scenario)
    reference = new_folder(work / "undisturbed")
    began = time.monotonic()
    ended = run(scenario, inputs, reference, timeout_s)
    whole_s = time.monotonic() - began
    if ended.returncode != 0:
        raise SystemExit(f"the undisturbed run failed: {ended.stderr[-1000:]}")
    expected = contents_of(reference / OUT, scenario)
    if left := left_behind(reference):
        tally.faults.append(f"undisturbed: left behind {left}")
    for number in range(kills):
        folder = new_folder(work / f"run-{number:03d}")
        # one moment in each part of the run, so that few kills cover all of it
        delay_s = whole_s * (number + moments.random()) / kills
        while not kill_once(scenario, inputs, folder, delay_s):  # it was faster than the undisturbed run
            tally.ended_before += 1
            delay_s *= 0.8
            shutil.rmtree(folder)
            new_folder(folder)
        tally.kills += 1
        before = contents_of(folder / OUT, scenario)
        ended = run(scenario, inputs, folder, timeout_s)
        faults = differences(expected, contents_of(folder / OUT, scenario)) + left_behind(folder)
        is_refusal = scenario.finished and before == expected and scenario.finished in ended.stderr
        if ended.returncode != 0 and not is_refusal:
            faults.insert(0, f"exit {ended.returncode}: {ended.stderr.strip()[-300:]}")
        if faults:
            tally.faults.append(f"run {number}, killed after {delay_s:.2f} s: {'; '.join(faults)} (seed {seed})")
            print(tally.faults[-1], flush=True)  # noqa: T201
        else:
            shutil.rmtree(folder)
    if contents_of(inputs, scenario) != sources:
        tally.faults.append("the inputs have changed")
    return tally


def new_folder(folder: Path) -> Path:
    """An empty folder for a run."""
    for name in (OUT, TEMPORARY):
        (folder / name).mkdir(parents=True)
    return folder


def run(scenario: Scenario, inputs: Path, folder: Path, timeout_s: float) -> subprocess.CompletedProcess[str]:
    """Run the command to its end; a timeout counts as exit code 124."""
    try:
        return subprocess.run(
            arguments(scenario, inputs, folder), cwd=folder, env=environment(folder), capture_output=True, text=True,
            errors="replace", timeout=timeout_s, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess([], 124, "", f"no end after {timeout_s:g} s")


def kill_once(scenario: Scenario, inputs: Path, folder: Path, delay_s: float) -> bool:
    """Start the command and kill it after a delay; False if it had ended before."""
    process = subprocess.Popen(
        arguments(scenario, inputs, folder), cwd=folder, env=environment(folder), start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        process.wait(delay_s)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
    return process.returncode == -signal.SIGKILL


def arguments(scenario: Scenario, inputs: Path, folder: Path) -> list[str]:
    """The command line of a scenario in the folder of a run."""
    there, option = scenario.resumes or ("", "")
    more = [option] if there and (folder / OUT / there).exists() else []
    return [*scenario.program, *map(str, scenario.command(inputs)), *more]


def environment(folder: Path) -> dict[str, str]:
    """Variables of a run: its own folder for temporary files, and a mark by which its processes are found."""
    return {**os.environ, MARK: folder.name + uuid.uuid5(uuid.NAMESPACE_URL, str(folder)).hex,
            "TMPDIR": str(folder / TEMPORARY)}  # fmt: skip


def left_behind(folder: Path) -> list[str]:
    """What a run left outside of its results: temporary files, and processes that do not end."""
    mark = f"{MARK}={environment(folder)[MARK]}".encode()
    until = time.monotonic() + ORPHANS_S
    while (alive := marked_processes(mark)) and time.monotonic() < until:
        time.sleep(0.1)
    for process in alive:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    files = [
        f"left {path.relative_to(folder)}"
        for path in (folder / TEMPORARY).rglob("*")
        if not path.name.startswith(TORCH_CACHE)
    ]
    beside = [f"left {path.name}" for path in folder.iterdir() if path.name not in (OUT, TEMPORARY)]
    return [*files, *beside, *(f"process {process} is left" for process in alive)]


def marked_processes(mark: bytes) -> list[int]:
    """Processes whose environment holds a mark."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark in (process / "environ").read_bytes().split(b"\0"):
                found.append(int(process.name))
    return found


def contents_of(folder: Path, scenario: Scenario) -> dict[str, str]:
    """Digests of all files of a folder, by their relative paths, without what may differ between two good runs."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if re.search(scenario.volatile, name):
            continue
        if path.is_dir():
            found[name] = "folder"
        elif re.search(scenario.contents, name):
            found[name] = "file"
        else:
            found[name] = digest_of(path)
    return found


def digest_of(path: Path) -> str:
    """SHA-256 of what a file says, without what is volatile in it."""
    content = path.read_bytes()
    with contextlib.suppress(ValueError, KeyError):
        if path.suffix == ".json":
            content = json.dumps(steady(json.loads(content)), sort_keys=True).encode()
        elif path.suffix == ".csv":
            rows = csv.DictReader(io.StringIO(content.decode("utf-8-sig")))
            content = json.dumps([steady(row) for row in rows], sort_keys=True).encode()
        elif path.suffix == ".safetensors":
            size = 8 + int.from_bytes(content[:8], "little")
            header = json.loads(content[8:size])
            spec = json.loads(header.pop("__metadata__")["spec"])
            content = json.dumps([header, steady(spec)], sort_keys=True).encode() + content[size:]
    return hashlib.sha256(content).hexdigest()


def steady(facts: Any) -> Any:
    """JSON values without `VOLATILE_KEYS`."""
    if isinstance(facts, Mapping):
        return {key: steady(value) for key, value in facts.items() if key not in VOLATILE_KEYS}
    if isinstance(facts, list):
        return [steady(value) for value in facts]
    return facts


def differences(expected: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    """How the results of a run differ from those of the undisturbed one."""
    return [
        *(f"missing {name}" for name in expected if name not in found),
        *(f"left {OUT}/{name}" for name in found if name not in expected),
        *(f"different {name}" for name in expected if name in found and found[name] != expected[name]),
    ]


def one_slide(folder: Path) -> None:
    """A slide of some bands."""
    write_slides(folder, 1, side=1500)


def some_slides(folder: Path) -> None:
    """A folder of slides for `batch`."""
    (folder / "slides").mkdir()
    write_slides(folder / "slides", 4, side=500)


def write_slides(folder: Path, count: int, side: int) -> None:
    """Write synthetic slides ``0.tif``, ``1.tif`` and so on."""
    from make_slides import halves, write_slide

    from wsi2ihc.demo import synthetic_tissue

    for number in range(count):
        write_slide(folder / f"{number}.tif", halves(synthetic_tissue(side, side, seed=number), 3))


def weights(folder: Path) -> None:
    """A training checkpoint of the usual size, with random weights."""
    import torch

    from wsi2ihc.models.networks import ResnetGenerator

    torch.manual_seed(0)
    torch.save({"netG": ResnetGenerator(9, 64).state_dict(), "epoch": 200}, folder / "net.pth")


def slides_of_both_stains(folder: Path) -> None:
    """A manifest of three pairs of slides for `pairs`."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "training" / "pairs"))
    from make_slide_pairs import row, write_manifest, write_pairs

    write_pairs(folder, 3)
    write_manifest(folder / "manifest.csv", [row(number) for number in range(3)])


def paired_patches(folder: Path) -> None:
    """A data set for `train`."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "training"))
    from tiny_runs import tiny_pairs

    tiny_pairs(folder / "patches")


_THERE = "already there"

_QUICK = ("--model", "counterstain", "--device", "cpu")
"""Without a network, what is written and published is the same, and a kill rarely meets the import of PyTorch."""

_IN_BANDS = ("--resume", "--band-height", "256", "--tile-size", "256", *_QUICK)

SCENARIOS: dict[str, Scenario] = {
    "translate": Scenario(
        one_slide,
        lambda inputs: ["translate", inputs / "0.tif", f"{OUT}/0.ome.tiff", "--preview", f"{OUT}/0.png",
                        *_QUICK],
        finished=_THERE,
    ),
    "translate-resume": Scenario(
        one_slide, lambda inputs: ["translate", inputs / "0.tif", f"{OUT}/0.ome.tiff", *_IN_BANDS], finished=_THERE
    ),
    "translate-resume-zarr": Scenario(
        one_slide, lambda inputs: ["translate", inputs / "0.tif", f"{OUT}/0.ome.zarr", *_IN_BANDS], finished=_THERE
    ),
    "batch": Scenario(
        some_slides,
        lambda inputs: ["batch", inputs / "slides", OUT, "--model", "identity", "--device", "cpu"],
        volatile=r"(^|/)logs(/|$)",
        contents=r"^summary\.html$",
    ),
    "import": Scenario(
        weights, lambda inputs: ["models", "import", inputs / "net.pth", f"{OUT}/net.safetensors", "--mpp", "0.5"]
    ),
    "pairs": Scenario(
        slides_of_both_stains,
        lambda inputs: ["pairs", inputs / "manifest.csv", f"{OUT}/data", "--patch-size", "128", "--mpp", "1",
                        "--validation", "0.3", "--test", "0.3", "--workers", "2"],
    ),
    "train": Scenario(
        paired_patches,
        lambda inputs: ["train", inputs / "patches", "--out", f"{OUT}/run", "--ngf", "4", "--ndf", "4", "--depth", "1",
                        "--crop-size", "32", "--batch-size", "2", "--epochs", "6", "--checkpoint-every", "2",
                        "--log-every", "2", "--samples", "1", "--workers", "1", "--precision", "fp32",
                        "--device", "cpu", "--no-tensorboard", "--mpp", "0.5", "--stain", "HER2"],
        contents=r"^run/(checkpoints/.*|curves\.png)$",
        resumes=("run/checkpoints/last.pt", "--resume"),
    ),
}  # fmt: skip
"""What can be killed, by the name on the command line."""


def main() -> None:
    """Kill what is named on the command line, and exit with 1 if anything went wrong."""
    parser = argparse.ArgumentParser(description="Kill commands at random moments and run them again.")
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=f"one or more of {', '.join(SCENARIOS)}")
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timeout", type=float, default=600, metavar="SECONDS", help="of a run")
    parser.add_argument("--work", type=Path, help="folder in which runs that went wrong are kept")
    parser.add_argument("--list", action="store_true", help="name all scenarios")
    asked = parser.parse_args()
    if unknown := set(asked.scenarios) - set(SCENARIOS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    if asked.list or not asked.scenarios:
        print("\n".join(SCENARIOS))  # noqa: T201
        return
    work = asked.work or Path(tempfile.mkdtemp(prefix="wsi2ihc-kill-"))
    failed = False
    for name in asked.scenarios:
        tally = kill_repeatedly(SCENARIOS[name], work / name, asked.kills, asked.seed, asked.timeout)
        failed = failed or bool(tally.faults)
        print(f"{name}: {tally.kills} kills ({tally.ended_before} runs ended before theirs), "  # noqa: T201
              f"{len(tally.faults)} faults", flush=True)  # fmt: skip
    if not failed:
        shutil.rmtree(work)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
