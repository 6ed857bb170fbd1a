"""The examples for clusters: scripts run as they are, on this machine, and files are read as the program reads them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from make_batch import OPTIONS, write_slides

from wsi2ihc.batch.manifest import read_rows
from wsi2ihc.batch.results import read_results
from wsi2ihc.batch.slurm import job_settings

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """With the programs of this environment on PATH, and a ``srun`` that starts two processes."""
    programs = tmp_path / "programs"
    programs.mkdir()
    srun = '#!/bin/bash\nshift\n"$@" &\n"$@" &\ntrap \'kill $(jobs -p)\' TERM\nwait\n'
    console = f'#!/bin/bash\nexec {sys.executable} -m wsi2ihc.cli.main "$@"\n'
    dask = f'#!/bin/bash\nexec {sys.executable} -m dask "$@"\n'
    python = f'#!/bin/bash\nexec {sys.executable} "$@"\n'
    for name, text in {"srun": srun, "wsi2ihc": console, "dask": dask, "python": python}.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    return {
        **os.environ, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "TMPDIR": str(tmp_path),
        "SLURM_JOB_ID": "4711", "SLURM_CPUS_PER_TASK": "1", "WSI2IHC_INTERFACE": "lo",
    }  # fmt: skip


def bash(name: str, *arguments: str, env: dict[str, str]) -> None:
    done = subprocess.run(
        ["bash", str(EXAMPLES / name), *arguments], env=env, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_array_job_does_its_shard(tmp_path: Path, environment: dict[str, str]) -> None:
    slides = write_slides(tmp_path / "slides", ["a", "b"])
    bash("batch_slurm_array.sh", str(slides), str(tmp_path / "out"), "identity", "--device", "cpu",
         env={**environment, "SLURM_ARRAY_TASK_ID": "1"})  # fmt: skip
    assert [(one.slide, one.status) for one in read_results(tmp_path / "out")[0]] == [("b.tif", "done")]


def test_the_job_with_dask_does_all(tmp_path: Path, environment: dict[str, str]) -> None:
    slides = write_slides(tmp_path / "slides", [*"abc"])
    bash("batch_slurm_dask.sh", str(slides), str(tmp_path / "out"), "identity", env=environment)
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
    assert settings["worker_extra_args"][:5] == ["--no-dashboard", "--resources", "GPU=1", "--lifetime", "42900s"]


@pytest.mark.parametrize("name", ["Dockerfile", "wsi2ihc.def"])
def test_images_hold_all_that_is_installed(name: str) -> None:
    text = (EXAMPLES / name).read_text()
    for needed in ("pyproject.toml", "constraints.txt", "README.md", "LICENSE", "wsi2ihc", "training", "cli"):
        assert f"COPY {needed} " in text or f" {needed}" in text
        assert (EXAMPLES.parent / needed).exists()
