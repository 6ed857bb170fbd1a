"""Small slides to be translated, and a fake engine."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from make_slides import halves, write_slide

from wsi2ihc.batch.preflight import check_folder, check_rows
from wsi2ihc.batch.slide_manifest import read_rows
from wsi2ihc.batch.task import Done, Event, Failed, SlideTask, Started
from wsi2ihc.demo import synthetic_tissue
from wsi2ihc.translation.options import TranslateOptions

OPTIONS = TranslateOptions(device="cpu", workers=1)


def write_slides(folder: Path, names: Sequence[str], side: int = 260) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(names):
        write_slide(folder / f"{name}.tif", halves(synthetic_tissue(side, side, seed=seed), 2))
    return folder


def tasks_of(slides: Path, out: Path, model: str = "identity", options: TranslateOptions = OPTIONS) -> list[SlideTask]:
    """Checked tasks of all slides in a folder."""
    rows, problems = read_rows(str(slides), model, options)
    assert not problems
    check_folder(out)
    tasks, problems = check_rows(rows, out, rows)
    assert not problems
    return tasks


Script = Callable[[SlideTask, bool, int], Sequence[Event]]
"""What becomes of a slide: of the task, whether it is alone, and how often it was taken before."""


class PretendEngine:
    """Reports the events of a script. It takes two slides at a time, or one alone."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.taken: list[tuple[str, bool]] = []
        self.in_hand = 0
        self.most_in_hand = 0
        self.is_closed = False
        self._alone = False
        self._events: deque[Event] = deque()

    def has_room(self, *, alone: bool) -> bool:
        return not self._alone and self.in_hand < (1 if alone else 2)

    def take(self, task: SlideTask, *, alone: bool) -> None:
        before = sum(name == task.name for name, _ in self.taken)
        self.taken.append((task.name, alone))
        self.in_hand += 1
        self.most_in_hand = max(self.most_in_hand, self.in_hand)
        self._alone = alone
        self._events.append(Started(task.number))
        self._events.extend(self.script(task, alone, before))

    def next_event(self, timeout_s: float) -> Event | None:
        if not self._events:
            return None
        event = self._events.popleft()
        if not isinstance(event, Started):
            self.in_hand -= 1
            self._alone = False
        return event

    def close(self) -> None:
        self.is_closed = True


def succeed(task: SlideTask, alone: bool, before: int) -> list[Event]:
    return [Done(task.number, {"seconds": 1.0, "mpx": 2.0})]


def fail(kind: str) -> Script:
    return lambda task, *_: [Failed(task.number, kind, f"{kind} trouble")]  # type: ignore[arg-type]
