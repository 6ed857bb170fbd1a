"""What is printed: safe for terminals, in any encoding, and never the end of the work."""

from __future__ import annotations

import contextlib
import fcntl
import io
import logging
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from make_slides import halves, write_slide
from rich.cells import cell_len

from wsi2ihc.batch.scheduler import SlideState, Status
from wsi2ihc.batch.task import SlideTask
from wsi2ihc.cli import console
from wsi2ihc.cli.console import LineFormatter, ScreenHandler, print_err, print_out, screen, standard_streams
from wsi2ihc.cli.main import cleaned_up_when_ended, main
from wsi2ihc.cli.options import set_up_logging
from wsi2ihc.cli.progress import BatchDisplay, ProgressBar, duration, file_size
from wsi2ihc.concurrency import Progress
from wsi2ihc.demo import synthetic_tissue
from wsi2ihc.text import pluralize, printable

HOSTILE = "a\x1b]0;owned\x07\x1b[31m\nError: forged\u202egnp.\u200b\udcff\x9b2J\r"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Größe 4 µm × 漢字 a\u0301\u00a0\u3000", "Größe 4 µm × 漢字 a\u0301\u00a0\u3000"),
        ("\x1b[2J\x00\x7f\x9b\r\n\t", r"\x1b[2J\x00\x7f\x9b\r\n\t"),
        ("\u202a\u202e\u2066\u2069\u200b\u2028\ufeff\u3164", r"\u202a\u202e\u2066\u2069\u200b\u2028\ufeff\u3164"),
        (os.fsdecode(b"sk\xe4n.svs") + "\ud800", r"sk\xe4n.svs\ud800"),
    ],
)
def test_untrusted_text_is_made_printable(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert printable(shown) == shown


def test_all_that_commands_print_goes_through_one_module() -> None:
    folder = Path(console.__file__).parent
    for path in folder.glob("*.py"):
        if path.name != "console.py":
            assert not re.search(r"click\.s?echo|\bprint\(|sys\.std(out|err)|print_exc", path.read_text()), path.name


def test_names_and_messages_cannot_forge_lines(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("wsi2ihc.test")
    handler = ScreenHandler()
    handler.setFormatter(LineFormatter("%(levelname)s: %(message)s"))
    logger.addHandler(handler)
    try:
        logger.warning("%s", HOSTILE)
        try:
            raise ValueError(HOSTILE)
        except ValueError:
            logger.exception("it failed")
    finally:
        logger.removeHandler(handler)
    print_err(HOSTILE)
    print_out(HOSTILE)
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 1
    first, second, *_, last = err.splitlines()
    assert (first, second, last) == (f"WARNING: {printable(HOSTILE)}", "ERROR: it failed", printable(HOSTILE))
    assert not set("\x1b\x07\r\x9b\u202e\u200b\udcff") & set(out + err)


def test_names_of_slides_reach_the_terminal_escaped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = np.full((260, 260, 3), 240, dtype=np.uint8)
    name = HOSTILE.replace("/", "") + ".tif"
    slide = write_slide(tmp_path / "plain.tif", halves(image, 2), mpp=0.5).rename(tmp_path / name)
    with pytest.raises(SystemExit) as ended:
        main(["info", str(slide)])
    out, _ = capsys.readouterr()
    assert (ended.value.code, out.splitlines()[0]) == (0, printable(name))
    for arguments in (["info", f"lost{HOSTILE}"], ["models", "show", HOSTILE], [HOSTILE], ["info", f"--{HOSTILE}"],
                      ["tissue", str(slide), str(tmp_path / "mask.png")]):  # fmt: skip
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        out, err = capsys.readouterr()
        assert ended.value.code in (1, 2)
        assert not set("\x1b\x07\r\x9b\u202e\u200b\udcff") & set(out + err)
        assert "\nError: forged" not in err


class Broken(io.StringIO):
    """A stream that takes nothing."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self._error = error

    def write(self, _: str) -> int:
        raise self._error


@pytest.mark.parametrize(
    "error", [BrokenPipeError(32, "Broken pipe"), OSError(28, "No space left"), OSError(5, "I/O"), ValueError("closed")]
)
def test_progress_and_messages_that_cannot_be_written_end_nothing(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(sys, "stderr", Broken(error))
    print_err("message")
    bar = ProgressBar()
    bar(Progress("working", 1, 2))
    bar.close()
    ScreenHandler().emit(logging.makeLogRecord({"msg": "record"}))
    monkeypatch.setattr(sys, "stdout", Broken(error))
    with pytest.raises(type(error)):
        print_out("result")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-16"])
def test_any_encoding_of_the_terminal_will_do(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding, write_through=True))
    print_out("0.25 µm × 漢 ≥")
    text = raw.getvalue().decode(encoding)
    assert text == "0.25 µm × 漢 ≥\n" or r"\u6f22 \u2265" in text


SCRIPT = """
import sys
from wsi2ihc.cli.main import main
main(sys.argv[1:])
"""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("where", ["full", "closed", "gone"])
def test_a_translation_whose_stderr_cannot_be_written_is_done(tmp_path: Path, where: str) -> None:
    slide = write_slide(tmp_path / "case.tif", halves(synthetic_tissue(260, 260, seed=0), 2), mpp=0.5)
    out = tmp_path / "out.ome.tiff"
    command = [sys.executable, "-c", SCRIPT, "translate", str(slide), str(out), "--model", "counterstain", "-v"]
    redirect = {"full": "2>/dev/full", "closed": "2>&-", "gone": "2> >(exec true)"}[where]
    shell = ["bash", "-c", f'exec "$@" {redirect}', "bash"]
    finished = subprocess.run([*shell, *command], capture_output=True, text=True, check=False)
    assert (finished.returncode, "not for diagnosis" in finished.stdout) == (0, True), finished.stdout
    assert finished.stderr == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["case.tif", "out.ome.tiff", "out.ome.tiff.json"]


def test_a_reader_that_is_gone_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SCRIPT, "models", "list"]
    finished = subprocess.run(
        ["bash", "-c", '"$@" > >(exec true); echo $?', "bash", *command], capture_output=True, text=True, check=False
    )
    assert finished.stdout.strip() in ("0", "1")  # the reader may be quicker to come than to go
    assert finished.stderr in ("", "Error: the program that read the output has ended\n")


def test_a_file_never_takes_the_number_of_a_closed_stream(tmp_path: Path) -> None:
    script = "import os; from wsi2ihc.cli.console import standard_streams\nwith standard_streams(): "
    script += f"print(os.open({str(tmp_path / 'file')!r}, os.O_CREAT | os.O_WRONLY), flush=True)"
    command = ["bash", "-c", 'exec "$@" 0<&- 2>&-', "bash", sys.executable, "-c", script]
    assert int(subprocess.run(command, capture_output=True, check=True).stdout) > 2


def in_a_terminal(script: str, *, width: int, term: str = "xterm-256color", **environment: str) -> str:
    """What a script writes to a terminal of that width."""
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    unset = ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "TTY_INTERACTIVE", "TTY_COMPATIBLE")
    variables = {name: value for name, value in os.environ.items() if name not in unset}
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=child, env={**variables, "TERM": term, **environment},
    )  # fmt: skip
    os.close(child)
    written = b""
    while select.select([parent], [], [], 30)[0]:
        try:
            part = os.read(parent, 65536)
        except OSError:  # the other end was closed
            break
        if not part:
            break
        written += part
    os.close(parent)
    process.communicate(timeout=120)
    assert process.returncode == 0, written
    return written.decode()


def screens(written: str) -> list[list[str]]:
    """The lines on a terminal, whenever its cursor returns to the start of a line."""
    lines, row, seen = [""], 0, []
    for part in re.split(r"(\r|\n|\x1b\[[0-9;?]*[A-Za-z])", written):
        if part == "\r":
            seen.append([line for line in lines if line])
        elif part == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif part.startswith("\x1b["):
            assert part[-1] in "AKmhl", part
            row -= int(part[2:-1]) if part[-1] == "A" else 0
            lines[row] = "" if part == "\x1b[2K" else lines[row]
        elif part:
            lines[row] += part
    return [*seen, [line for line in lines if line]]


PROGRESS = """if True:
    import logging
    from wsi2ihc.cli.options import set_up_logging
    from wsi2ihc.cli.progress import BatchDisplay, ProgressBar
    from wsi2ihc.concurrency import Progress
    set_up_logging(0, False)
    bar = ProgressBar()
    bar(Progress("training [red] 漢字漢字漢字", 1, 9, note="loss 0.125, " * 30 + "[/nonsense]"))
    logging.getLogger("wsi2ihc").warning("a warning [bold]" + "x" * 100)
    bar(Progress("validating", 2, 9, note=chr(27) + "]0;owned"))
    bar.close()
"""
WARNING = ["WARNING: a warning", "[bold]" + "x" * 100]


@pytest.mark.parametrize("width", [40, 80, 120])
def test_progress_fits_the_terminal_and_log_lines_stand_alone(width: int) -> None:
    seen = screens(in_a_terminal(PROGRESS, width=width))
    assert {cell_len(line) <= width or line == WARNING[1] for lines in seen for line in lines} == {True}
    before = next(lines for lines in seen if len(lines) > 1)
    assert before[0].startswith("training" if width > 40 else "train")
    assert any(lines[:2] == WARNING and len(lines) > 3 for lines in seen), "above the bar"
    assert any("[/nonsense]" in lines[-1] for lines in seen if lines), "the note is complete, on several lines"
    assert any(lines[-1].strip() == r"\x1b]0;owned" for lines in seen if lines)
    assert seen[-1] == WARNING, "nothing else stays"


INTERRUPTED = """if True:
    import click
    from wsi2ihc.cli import main
    from wsi2ihc.cli.options import set_up_logging
    from wsi2ihc.cli.progress import ProgressBar
    from wsi2ihc.concurrency import Progress
    @click.command
    def command():
        set_up_logging(0, {quiet})
        ProgressBar()(Progress("training", 1, 9))
        error = KeyboardInterrupt()
        error.add_note("The last checkpoint is kept.")
        raise error
    main.LazyGroup.get_command = lambda self, ctx, name: command
    try:
        main.main(["train"])
    except SystemExit as ended:
        assert ended.code == 130
"""


@pytest.mark.parametrize(("quiet", "hints"), [(False, ["The last checkpoint is kept."]), (True, [])])
def test_an_interruption_removes_the_bar_before_its_messages(quiet: bool, hints: list[str]) -> None:
    *before, last = screens(in_a_terminal(INTERRUPTED.format(quiet=quiet), width=80))
    assert any("training" in line for lines in before for line in lines)
    assert last == [*hints, "Interrupted; no half-written file is left."]


def test_a_terminal_without_color_gets_none() -> None:
    colored = r"\x1b\[[0-9;]*(3[0-9]|4[0-9])[0-9;]*m"
    assert re.search(colored, in_a_terminal(PROGRESS, width=80))
    assert not re.search(colored, in_a_terminal(PROGRESS, width=80, NO_COLOR="1"))


@pytest.mark.parametrize("term", ["dumb", "unknown"])
def test_a_terminal_that_cannot_redraw_gets_lines(term: str) -> None:
    lines = in_a_terminal(PROGRESS, width=80, term=term).split("\r\n")
    assert "\x1b" not in "".join(lines)
    assert lines[0].startswith("training [red] 漢字漢字漢字 [###.....................]  11% (loss 0.125, ")
    assert lines[-4:] == [*WARNING, r"validating [#####...................]  22% (\x1b]0;owned)", ""]


def test_a_file_gets_a_line_per_stage_whatever_the_environment_says(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    bar = ProgressBar()
    for done in range(1, 9):
        bar(Progress("training", done, 9))
    assert capsys.readouterr().err == "training [###.....................]  11%\n"


def slide_state(name: str, share: float, status: Status = "running") -> SlideState:
    task = SlideTask(0, f"{name}.svs", Path(name), "identity")
    return SlideState(task, status, share=share)


def test_the_board_of_a_batch_is_replaced_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr("wsi2ihc.cli.progress.BATCH_REDRAW_S", 0.0)
    display = BatchDisplay()
    names = ["[red]" + "long" * 30, *map(str, range(9))]
    display.show([slide_state(name, 0.5) for name in names], None)
    failed = slide_state("a", 0, "failed")
    display.show([failed, slide_state("b", 1)], failed)
    screen.clear()
    seen = screens(stream.getvalue())
    full = next(lines for lines in seen if len(lines) == 10)
    assert full[0] == "10 running"
    assert full[1].startswith("[red]longlong")
    assert full[1].rstrip().endswith("50%")
    assert full[-1] == "and 2 more"
    assert {cell_len(line) <= 60 for lines in seen for line in lines} == {True}
    assert seen[-1] == ["failed  a:  (0 attempts)"]


def test_rows_are_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    print_out(
        "title", ("", "µm", "count"), ("[red]a", "1.25", "12"), (HOSTILE, "10.5", "1,234"), "end", ("漢字", "x" * 200)
    )
    name = printable(HOSTILE)
    assert capsys.readouterr().out.splitlines() == [
        "title",
        f"  {'':{len(name)}}    µm  count",
        f"  {'[red]a':{len(name)}}  1.25     12",
        f"  {name}  10.5  1,234",
        "end",
        f"  漢字  {'x' * 200}",
    ]


def test_tables_fit_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setenv("TERM", "dumb")
    print_out(("vendor", "word " * 40), ("name", "x" * 100))
    lines = stream.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert "".join(line[10:] for line in lines if "x" in line) == "x" * 100
    assert [line[:10] for line in lines[1:3]] == [" " * 10] * 2


LONG = f"Error: the slide /data/{'x' * 50}.svs is not a slide, research use only, not for diagnosis."


@pytest.mark.parametrize("with_bar", [False, True])
def test_messages_are_wrapped_between_words_on_terminals(with_bar: bool) -> None:
    script = f"from wsi2ihc.cli.console import print_err, screen; screen.draw('a bar') if {with_bar} else None; "
    *_, last = screens(in_a_terminal(f"{script}print_err({LONG!r}, '  next: {LONG}'); screen.clear()", width=40))
    command = f"  next: {LONG}"
    assert last == [
        "Error: the slide",
        f"/data/{'x' * 50}.svs",
        "is not a slide, research use only, not",
        "for diagnosis.",
        command,
    ]


def test_lines_on_stdout_are_wrapped_on_terminals_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    console.print_out(LONG)
    assert capsys.readouterr().out == f"{LONG}\n"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "60")
    console.print_out("  note: every pixel of the slide lies at the border of the tissue")
    assert capsys.readouterr().out == "  note: every pixel of the slide lies at the border of the\n  tissue\n"


def test_nothing_of_a_command_stays_in_the_calling_process(capsys: pytest.CaptureFixture[str]) -> None:
    signals = [signal.SIGTERM, signal.SIGHUP, signal.SIGINT]
    before = [signal.getsignal(one) for one in signals], dict(os.environ), warnings.showwarning
    with pytest.raises(SystemExit):
        main(["models", "list"])
    assert ([signal.getsignal(one) for one in signals], dict(os.environ), warnings.showwarning) == before
    assert "default" in capsys.readouterr().out


def test_a_command_runs_in_any_thread(capsys: pytest.CaptureFixture[str]) -> None:
    codes: list[object] = []

    def run() -> None:
        try:
            main(["models", "list"])
        except SystemExit as ended:
            codes.append(ended.code)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert codes == [0]


def test_warnings_of_libraries_are_printed_as_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with standard_streams():
        set_up_logging(0, False)
        warnings.showwarning(UserWarning(HOSTILE), UserWarning, "file.py", 1)
    assert capsys.readouterr().err == f"WARNING: UserWarning: {printable(HOSTILE)}\n"


def lose_the_exception() -> None:
    with cleaned_up_when_ended():
        with contextlib.suppress(BaseException):  # as a library in C does
            signal.raise_signal(signal.SIGTERM)
        for _ in range(1000):
            time.sleep(0.01)
        pytest.fail("it went on")


def test_a_signal_ends_the_program_even_where_its_exception_gets_lost() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        lose_the_exception()
    assert (ended.value.code, signal.getsignal(signal.SIGTERM)) == (143, before)


def clean_up(cleaned: list[bool]) -> None:
    with cleaned_up_when_ended():
        try:
            signal.raise_signal(signal.SIGHUP)
        finally:
            signal.raise_signal(signal.SIGHUP)
            signal.raise_signal(signal.SIGTERM)
            time.sleep(0.01)
            cleaned.append(True)


def test_further_signals_do_not_interrupt_the_cleaning_up() -> None:
    cleaned: list[bool] = []
    with pytest.raises(SystemExit) as ended:
        clean_up(cleaned)
    assert (ended.value.code, cleaned) == (129, [True])


def test_a_command_started_by_nohup_survives_its_terminal() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with cleaned_up_when_ended():
            signal.raise_signal(signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_one_of_a_thing_is_not_several() -> None:
    assert [pluralize(number, "level") for number in (0, 1, 2, 1234)] == [
        "0 levels",
        "1 level",
        "2 levels",
        "1,234 levels",
    ]


def test_durations_have_a_decimal_below_a_second() -> None:
    assert [duration(seconds) for seconds in (0, 0.2, 0.96, 42, 185)] == ["0 s", "0.2 s", "1 s", "42 s", "3 min 05 s"]


def test_small_files_have_a_size() -> None:
    assert [file_size(size) for size in (400, 85_000, 3_200_000)] == ["0 kB", "85 kB", "3.2 MB"]


def test_an_interrupt_within_exec_leads_to_the_exit_code(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import os, signal, sys\n"
        "from wsi2ihc.cli import main as module\n"
        "def interrupted(_):\n"
        "    try:\n"
        "        exec('import os, signal, time; os.kill(os.getpid(), signal.SIGINT); time.sleep(5)')\n"
        "    except KeyboardInterrupt:\n"
        "        return module.EXIT_INTERRUPTED\n"
        "module._run = interrupted\n"
        "module.main([])\n"
    )
    assert subprocess.run([sys.executable, "-m", "program"], cwd=tmp_path, check=False).returncode == 130
