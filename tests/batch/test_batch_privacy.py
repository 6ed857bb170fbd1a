"""What is kept beside the outputs names no folders, machines or users."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from wsi2ihc import text as text_module
from wsi2ihc.batch import local
from wsi2ihc.batch.dask_worker import _label
from wsi2ihc.batch.local import LocalWorker
from wsi2ihc.batch.task import Event, SlideTask
from wsi2ihc.concurrency import Send
from wsi2ihc.text import anonymize, one_line_error


@pytest.fixture(autouse=True)
def _names(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(text_module.socket, "gethostname", lambda: "gpu07.hospital.org")
    monkeypatch.setattr(text_module.getpass, "getuser", lambda: "jsmith")
    text_module._local_names.cache_clear()
    yield
    text_module._local_names.cache_clear()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('File "/home/jsmith/venv/lib/torch/nn.py", line 3', 'File "nn.py", line 3'),
        ("TIFFOpen: /data/Patient Smith/a b.svs: damaged", "TIFFOpen: a b.svs: damaged"),
        ("cannot open (/data/smith/b.svs)", "cannot open (b.svs)"),
        (r"cannot open C:\Users\jsmith\b.svs", "cannot open b.svs"),
        ("GET https://host/smith/a.svs?X-Signature=secret failed", "GET a.svs failed"),
        ("lost tcp://10.1.2.3:4567 s3://bucket/smith/a.svs", "lost ADDRESS a.svs"),
        ("user jsmith on gpu07.hospital.org (gpu07)", "user USER on HOST (HOST)"),
        ("0.25 µm/px, 3/4 of it, n/a, -1/2/3, jsmithers", "0.25 µm/px, 3/4 of it, n/a, -1/2/3, jsmithers"),
    ],
)
def test_text_of_libraries_is_kept_without_folders_and_names(text: str, expected: str) -> None:
    assert anonymize(text, "/data/Patient Smith/a b.svs") == expected


def test_an_unexpected_error_names_no_folders() -> None:
    assert one_line_error(RuntimeError("no /scratch/jsmith/x.tif")).startswith(
        "unexpected RuntimeError: no x.tif (run again"
    )
    assert one_line_error(PermissionError(13, "Permission denied", "/scratch/jsmith/x.tif")) == "Permission denied"


def complain(tasks: Iterator[SlideTask], send: Send) -> None:
    """Serve one task as libraries do that print what is wrong."""
    task = next(tasks)
    sys.stderr.write(f"damaged: {task.slide} {task.output} /home/jsmith/lib/x.py\x1b[31m\n")
    sys.stdout.write("\u00e4" * 100_000 + "\n")
    sys.stdout.flush()


def test_the_log_of_a_child_names_no_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "serve", complain)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    heard: list[Event | None] = []
    log = tmp_path / "child.log"
    child = LocalWorker(0, lambda _number, event: heard.append(event), {}, log)
    child.submit(SlideTask(0, "/data/Patient Smith/a.svs", Path("/results/Patient Smith/a.ome.tiff"), "identity"))
    until = time.monotonic() + 20
    while None not in heard and time.monotonic() < until:
        time.sleep(0.01)
    assert child.end() == 0
    first, *others = log.read_text(encoding="utf-8").splitlines()
    assert first == r"damaged: a.svs a.ome.tiff x.py\x1b[31m"
    assert "".join(others).strip("�") == "ä" * 100_000


def test_the_name_of_a_log_contains_no_address() -> None:
    assert _label("wsi2ihc-0-1") == "wsi2ihc-0-1"
    assert _label("tcp://10.1.2.3:4567").isalnum()
    assert _label("tcp://10.1.2.3:4567") != _label("tcp://10.1.2.4:4567")
