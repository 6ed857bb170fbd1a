"""The rules of a batch, with an engine that only pretends."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from make_batch import PretendEngine, Script, fail, succeed

from wsi2ihc.batch.scheduler import MOST_RETURNS, SlideState, run_batch
from wsi2ihc.batch.task import BatchOptions, Done, Event, Failed, Requeued, SlideTask, write_marker
from wsi2ihc.errors import OptionError
from wsi2ihc.files import sha256_of_file
from wsi2ihc.translation.output_files import report_path


def tasks(folder: Path, count: int) -> list[SlideTask]:
    return [SlideTask(number, f"{number}.svs", folder / f"{number}.ome.tiff", "identity") for number in range(count)]


def run(folder: Path, count: int, script: Script, **options: int) -> tuple[list[SlideState], PretendEngine]:
    engine = PretendEngine(script)
    states = run_batch(tasks(folder, count), lambda: engine, BatchOptions(**options))
    assert engine.is_closed
    return states, engine


def test_all_slides_are_taken_once_and_two_at_a_time(tmp_path: Path) -> None:
    states, engine = run(tmp_path, 7, succeed)
    assert [state.status for state in states] == ["done"] * 7
    assert len(engine.taken) == 7
    assert engine.most_in_hand == 2


def test_permanent_errors_are_not_tried_again(tmp_path: Path) -> None:
    (state,), engine = run(tmp_path, 1, fail("permanent"))
    assert (state.status, state.attempts, len(engine.taken)) == ("failed", 1, 1)
    assert state.error == "permanent trouble"


@pytest.mark.parametrize("kind", ["transient", "memory", "crash", "timeout"])
def test_others_are_tried_as_often_as_said(tmp_path: Path, kind: str) -> None:
    (state,), engine = run(tmp_path, 1, fail(kind), attempts=4)
    assert (state.status, state.attempts, len(engine.taken)) == ("failed", 4, 4)


def test_success_at_the_second_attempt_is_done(tmp_path: Path) -> None:
    def script(task: SlideTask, alone: bool, before: int) -> list[Event]:
        return [Done(task.number)] if before else [Failed(task.number, "transient", "a hiccup")]

    (state,), _ = run(tmp_path, 1, script)
    assert (state.status, state.attempts, state.error) == ("done", 2, "")


def test_out_of_memory_is_tried_with_less(tmp_path: Path) -> None:
    seen: list[int] = []

    def script(task: SlideTask, alone: bool, before: int) -> list[Event]:
        seen.append(task.options.max_memory_bytes)
        return [Failed(task.number, "memory", "no room")]

    run(tmp_path, 1, script, attempts=3)
    assert seen == [4 << 30, 2 << 30, 1 << 30]


def test_of_two_that_come_back_only_the_guilty_one_fails(tmp_path: Path) -> None:
    """Slide 1 ends its worker process; slides in flight with it are requeued."""
    engine = PretendEngine(succeed)
    together: list[int] = []

    def script(task: SlideTask, alone: bool, before: int) -> list[Event]:
        if alone:
            return [Failed(1, "crash", "it crashed")] if task.number == 1 else [Done(task.number)]
        together.append(task.number)
        if len(together) % 2:
            return []
        first, second = together[-2:]
        if 1 in (first, second):
            return [Requeued(first, "the child crashed"), Requeued(second, "the child crashed")]
        return [Done(first), Done(second)]

    engine.script = script
    states = run_batch(tasks(tmp_path, 6), lambda: engine, BatchOptions(attempts=3))
    assert [state.status for state in states] == ["done", "failed", "done", "done", "done", "done"]
    assert states[1].attempts == 3
    assert [alone for name, alone in engine.taken if name == "1.ome.tiff"] == [False, True, True, True]


def test_one_that_always_comes_back_is_given_up_in_the_end(tmp_path: Path) -> None:
    (state,), engine = run(tmp_path, 1, lambda task, *_: [Requeued(task.number, "the worker was lost")])
    assert state.status == "failed"
    assert len(engine.taken) == MOST_RETURNS + 1


def test_the_board_hears_of_every_end(tmp_path: Path) -> None:
    ended: list[str] = []
    engine = PretendEngine(succeed)
    run_batch(
        tasks(tmp_path, 3),
        lambda: engine,
        BatchOptions(),
        lambda _, slide: ended.append(slide.status) if slide else None,
    )
    assert ended == ["done"] * 3


def test_an_output_that_another_batch_has_replaced_is_not_done(tmp_path: Path) -> None:
    def succeed_with_marker(task: SlideTask, alone: bool, before: int) -> list[Event]:
        other = dataclasses.replace(task, model="counterstain" if task.number == 1 else task.model, version="another")
        task.output.touch()
        report_path(task.output).touch()
        write_marker(other if task.number == 1 else task, {}, sha256_of_file(task.output))
        return succeed(task, alone, before)

    states, _ = run(tmp_path, 2, succeed_with_marker)
    assert [state.status for state in states] == ["done", "failed"]
    assert states[1].error == "another batch has replaced its output, made with another model or other options"


def test_impossible_options_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong in ({"attempts": 0}, {"timeout_min": -1}, {"children": -1}, {"cache": tmp_path / "absent"}):
        with pytest.raises(OptionError, match="--"):
            BatchOptions(**wrong)
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(OptionError, match=r"^--cache .* is not writable"):
        BatchOptions(cache=tmp_path)


def test_what_another_batch_has_done_meanwhile_is_not_counted_as_ours(tmp_path: Path) -> None:
    states, _ = run(tmp_path, 1, lambda task, *_: [Done(task.number, {"seconds": 9.0}, is_new=False)])
    assert [(state.status, state.facts["seconds"]) for state in states] == [("done before", 9.0)]


def test_what_was_done_as_its_child_died_is_ours(tmp_path: Path) -> None:
    def script(task: SlideTask, alone: bool, before: int) -> list[Event]:
        return [Done(task.number, is_new=False)] if before else [Requeued(task.number, "the worker was lost")]

    states, _ = run(tmp_path, 1, script)
    assert [(state.status, state.attempts) for state in states] == [("done", 1)]
