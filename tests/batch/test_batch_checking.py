"""The check of a list: nothing that one slide does ends the check of the others."""

from __future__ import annotations

import os
import pickle
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from make_batch import OPTIONS, write_slides
from make_slides import write_slide
from PIL import Image

from wsi2ihc.batch import preflight
from wsi2ihc.batch.preflight import MemoryBudget, check_row, check_rows, memory_of
from wsi2ihc.batch.slide_manifest import Problem, Row, read_rows
from wsi2ihc.concurrency import Send
from wsi2ihc.slide import Slide
from wsi2ihc.slide.readers.image_reader import memory_to_open


def faulty_serve(messages: Iterator[Any], send: Send) -> None:
    """Check rows with a decoder that crashes, hangs, or runs out of memory over slides of some names."""
    opened, serve = preflight.open_slide, preflight.serve

    def open_slide(path: str, **options: Any) -> Slide:
        name = Path(path).name
        if name.startswith("crash"):
            os.abort()
        if name.startswith("hang"):
            time.sleep(60)
        if name.startswith("large"):
            bytearray(1 << 40)
        return opened(path, **options)

    preflight.open_slide = open_slide  # type: ignore[assignment]
    serve(messages, send)


def rows_of(slides: Path) -> list[Row]:
    rows, problems = read_rows(str(slides), "identity", OPTIONS)
    assert not problems
    return rows


@pytest.fixture
def _faulty_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slides by whose names the process that opens them crashes, hangs, or runs out of memory."""
    monkeypatch.setattr(preflight, "serve", faulty_serve)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (Path(__file__).parent, Path(__file__).parents[1]))))
    monkeypatch.setattr(preflight, "CHECK_S", 1.0)


@pytest.mark.usefixtures("_faulty_decoder")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("crash", "it cannot be opened: its process crashed (SIGABRT)"),
        ("hang", "opening it took more than"),
        ("large", "out of memory while it was opened"),
    ],
)
def test_a_slide_that_ends_the_process_that_opens_it_ends_nothing_else(name: str, message: str, tmp_path: Path) -> None:
    slides = write_slides(tmp_path / "slides", ["a", name, "z"], side=64)
    seen: list[int] = []
    rows = rows_of(slides)
    tasks, (problem,) = check_rows(rows, tmp_path, rows, seen.append)
    assert [task.name for task in tasks] == ["a.ome.tiff", "z.ome.tiff"]
    assert [task.number for task in tasks] == [0, 1]
    assert (problem.name, problem.line, problem.output) == (f"{name}.tif", 2, f"{name}.ome.tiff")
    assert problem.message.startswith(message)
    assert seen == [1, 2, 3]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError(), "out of memory while it was opened"),
        (RuntimeError("decoder lost"), "unexpected RuntimeError: decoder lost"),
        (RecursionError("too deep"), "unexpected RecursionError: too deep"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), "unexpected UnicodeDecodeError"),
        (PermissionError(13, "Permission denied", "/somewhere/Patient_Smith"), "Permission denied"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_whatever_is_raised_while_a_slide_is_opened_belongs_to_its_row(
    error: Exception, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise error

    (row,) = rows_of(write_slides(tmp_path, ["a"], side=64))
    monkeypatch.setattr(preflight, "open_slide", refuse)
    found = check_row(row, tmp_path, frozenset())
    assert isinstance(found, Problem)
    assert found.message.startswith(message)
    assert "Patient_Smith" not in found.message


def test_a_property_that_is_not_utf_8_concerns_its_own_slide_at_most(tmp_path: Path) -> None:
    slides = write_slides(tmp_path / "slides", ["a"], side=64)
    image = np.full((128, 128, 3), 200, np.uint8)
    description = "Aperio Image Library v11.2.1 \r\n128x128 |AppMag = 20|MPP = 0.5|Name_XX = yes"
    bad = write_slide(slides / "bad.svs", image, style="aperio", tile=64, description=description)
    bad.write_bytes(bad.read_bytes().replace(b"Name_XX", b"Name_\xff\xfe"))
    rows = rows_of(slides)
    tasks, problems = check_rows(rows, tmp_path, rows)
    assert "a.ome.tiff" in [task.name for task in tasks]
    assert {problem.name for problem in problems} <= {"bad.svs"}


def test_rows_survive_the_pipe_to_the_process(tmp_path: Path) -> None:
    row = Row(3, "s\udcff.svs", "s.ome.tiff", 0.5, "identity", OPTIONS)
    assert pickle.loads(pickle.dumps(row)) == row


def test_what_a_plain_image_takes_follows_from_its_header(tmp_path: Path) -> None:
    Image.new("RGB", (300, 200)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    assert memory_to_open(tmp_path / "a.png") == 300 * 200 * 7
    assert memory_to_open(tmp_path / "b.png") == 0
    assert memory_to_open(tmp_path / "gone.png") == 0


def test_outlines_count_when_memory_is_shared_out(tmp_path: Path) -> None:
    (row,) = rows_of(write_slides(tmp_path / "slides", ["a"], side=64))
    mask = tmp_path / "mask.geojson"
    mask.write_bytes(b" " * 1000)
    assert memory_of(row) == 0
    assert memory_of(replace(row, options=replace(row.options, tissue=mask))) >= 9000


def test_threads_together_hold_no_more_memory_than_there_is() -> None:
    budget, held, most = MemoryBudget(100), [0], [0]
    lock = threading.Lock()

    def use(wanted: int) -> None:
        with budget.held(wanted):
            with lock:
                held[0] += min(wanted, 100)
                most[0] = max(most[0], held[0])
            with lock:
                held[0] -= min(wanted, 100)

    threads = [threading.Thread(target=use, args=(wanted,)) for wanted in _WANTED]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(5)
    assert not any(thread.is_alive() for thread in threads)
    assert 0 < most[0] <= 100


_WANTED: Sequence[int] = [60, 60, 100, 1000, 0, 30, 30, 30] * 4


def test_any_cell_that_cannot_be_read_is_a_problem_of_its_row(tmp_path: Path) -> None:
    path = tmp_path / "slides.csv"
    path.write_text(f"path,model,blend\na.svs,{'m' * 5000},\nb.svs,,{'x' * 5000}\nc.svs,,\n", encoding="utf-8")
    rows, problems = read_rows(str(path), "identity", OPTIONS)
    assert [row.name for row in rows] == ["c.svs"]
    assert [problem.line for problem in problems] == [2, 3]
    assert all(len(str(problem)) < 700 for problem in problems)
