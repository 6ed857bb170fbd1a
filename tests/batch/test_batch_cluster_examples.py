"""The examples for clusters: scripts run as they are, on this machine, and files are read as the program reads them."""

from __future__ import annotations

import os
import shutil
import sys
from itertools import takewhile
from pathlib import Path

import pytest
import yaml
from listening import Listening
from make_batch import OPTIONS, write_slides

from wsi2ihc.batch.results_table import read_results
from wsi2ihc.batch.slide_manifest import read_rows
from wsi2ihc.batch.slurm import job_settings

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """With the programs of this environment on PATH, and a ``srun`` that starts two processes."""
    programs = tmp_path / "programs"
    programs.mkdir()
    srun = '#!/bin/bash\nshift\n"$@" &\n"$@" &\ntrap \'kill $(jobs -p)\' TERM\nwait\n'
    # as pip installs them: the folder of the script, and not the current one, is searched for modules
    script = f"#!{sys.executable}\nfrom {{}} import main\nif __name__ == '__main__':\n    main()\n"
    console, dask = script.format("wsi2ihc.cli.main"), script.format("dask.__main__")
    python = f'#!/bin/bash\nexec {sys.executable} "$@"\n'
    for name, text in {"srun": srun, "wsi2ihc": console, "dask": dask, "python": python}.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    return {
        **{name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"},
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "TMPDIR": str(tmp_path),
        "SLURM_JOB_ID": "4711", "SLURM_CPUS_PER_TASK": "1", "WSI2IHC_INTERFACE": "lo",
    }  # fmt: skip


def make_hostile(folder: Path) -> Path:
    """Add modules to a folder that end any process which executes them."""
    folder.mkdir(exist_ok=True)
    for name in ("distributed", "json", "numpy", "pickle", "sitecustomize", "socket", "torch", "wsi2ihc"):
        (folder / f"{name}.py").write_text("import os; open('executed', 'a').write(__file__); os._exit(77)\n")
    return folder


def bash(name: str, *arguments: str, env: dict[str, str], cwd: Path = EXAMPLES) -> set[str]:
    """Run an example to its end; the addresses at which its processes listened meanwhile."""
    with Listening(["bash", str(EXAMPLES / name), *arguments], env=env, cwd=cwd) as run:
        assert run.wait() == 0, run.printed
    return run.addresses


def test_the_array_job_does_its_shard(tmp_path: Path, environment: dict[str, str]) -> None:
    slides = write_slides(tmp_path / "slides", ["a", "b"])
    bash("batch_slurm_array.sh", str(slides), str(tmp_path / "out"), "identity", "--device", "cpu",
         env={**environment, "SLURM_ARRAY_TASK_ID": "1"})  # fmt: skip
    assert [(one.slide, one.status) for one in read_results(tmp_path / "out")[0]] == [("b.tif", "done")]


def test_the_job_with_dask_does_all(tmp_path: Path, environment: dict[str, str]) -> None:
    slides, here = write_slides(tmp_path / "slides", [*"abc"]), make_hostile(tmp_path / "here")
    addresses = bash("batch_slurm_dask.sh", str(slides), str(tmp_path / "out"), "identity", env=environment, cwd=here)
    assert not (here / "executed").exists(), (here / "executed").read_text()
    assert addresses == {"127.0.0.1"}
    assert [one.status for one in read_results(tmp_path / "out")[0]] == ["done"] * 3
    assert not list((tmp_path / "out").glob("scheduler-*.json"))


def test_the_list_of_slides_is_understood() -> None:
    rows, problems = read_rows(str(EXAMPLES / "slides.csv"), "counterstain", OPTIONS)
    assert not problems
    assert [row.output for row in rows] == [
        "case-01.ome.tiff", "case-02-her2.ome.tiff", "scanned-without-resolution.ome.tiff", "case-03-detail.ome.tiff",
    ]  # fmt: skip
    assert (rows[2].mpp, rows[3].options.batch_size) == (0.25, 4)


def test_the_settings_for_jobs_are_completed(tmp_path: Path) -> None:
    site = yaml.safe_load((EXAMPLES / "jobqueue.yaml").read_text())["jobqueue"]["slurm"]
    settings = job_settings(site, tmp_path, needs_gpu=True)
    assert settings["job_extra_directives"] == ["--gres=gpu:1"]
    assert settings["worker_extra_args"][3:7] == ["--resources", "GPU=1", "--lifetime", "42900s"]


@pytest.mark.parametrize("name", ["Dockerfile", "wsi2ihc.def"])
def test_images_hold_all_that_is_installed(name: str) -> None:
    text = (EXAMPLES / name).read_text()
    for needed in ("pyproject.toml", "constraints.txt", "README.md", "LICENSE", "wsi2ihc", "training", "cli"):
        assert f"COPY {needed} " in text or f" {needed}" in text
        assert (EXAMPLES.parent / needed).exists()


CLUSTER = EXAMPLES.parent / "docs" / "batch.md"


def indented_after(text: str, phrase: str) -> str:
    """The first block of commands in the documentation after a phrase."""
    lines = text[text.index(phrase) :].splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("    "))
    indent = len(lines[first]) - len(lines[first].lstrip())
    block = takewhile(lambda line: line.startswith(" " * indent) or not line.strip(), lines[first:])
    return "\n".join(line[indent:] for line in block)


def test_certificates_work_as_documented(tmp_path: Path, environment: dict[str, str]) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    slides, text = write_slides(tmp_path / "slides", ["a", "b"]), CLUSTER.read_text(encoding="utf-8")
    worker = indented_after(text, "Start one Dask worker per GPU").replace("FILE", "s.json")
    script = f"""set -eu
        {indented_after(text, "**Certificates**")}
        dask scheduler --scheduler-file s.json --interface lo --port 0 --dashboard-address 127.0.0.1:0 &
        {worker.strip().replace("ib0", "lo")} &
        until [ -s s.json ]; do sleep 0.1; done
        for trial in 1 2 3 4 5 6 7 8 9; do
            wsi2ihc batch {slides} out --model identity --scheduler s.json && break
            sleep 3  # the worker may not be there yet
        done
        env -i PATH="$PATH" HOME="$HOME" wsi2ihc batch {slides} other --model identity --scheduler s.json 2>refused &&
            exit 9
        cp s.json kept.json
        kill %1 %2
        """
    with Listening(["bash", "-c", script], env=environment, cwd=make_hostile(tmp_path)) as run:
        assert run.wait() == 0, run.printed
    assert not (tmp_path / "executed").exists(), (tmp_path / "executed").read_text()
    assert run.addresses == {"127.0.0.1"}
    assert [one.status for one in read_results(tmp_path / "out")[0]] == ["done"] * 2
    assert '"tls://127.0.0.1:' in (tmp_path / "kept.json").read_text()
    assert "requires certificates" in (tmp_path / "refused").read_text()
    assert (tmp_path / "key.pem").stat().st_mode & 0o077 == 0
