"""Entry point of the ``wsi2ihc`` command."""

from __future__ import annotations

import contextlib
import copy
import importlib
import io
import logging
import os
import signal
import sys
import threading
import traceback
import weakref
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any, NoReturn

import click

from wsi2ihc.system import safe_path
from wsi2ihc.text import describe_error

from .console import print_err, print_out, screen, standard_streams

COMMANDS = {
    "translate": "Turn an H&E slide into a virtual IHC slide.",
    "info": "Show the metadata of a slide and its problems.",
    "tissue": "Find the tissue of a slide and save it as a mask.",
    "register": "Register an IHC slide onto its H&E slide.",
    "warp": "Warp an IHC slide onto its H&E slide.",
    "batch": "Translate many slides, on one machine or many.",
    "pairs": "Make a paired dataset from H&E and IHC slides.",
    "models": "List, show and import generators.",
    "doctor": "Check what works in this environment.",
    "train": "Train a generator on paired patches.",
    "evaluate": "Evaluate virtual stains against references.",
    "dataset": "Describe a paired dataset and find problems.",
    "curves": "Draw the losses and metrics of training runs.",
    "demo": "Make a synthetic H&E slide and translate it.",
}
"""Subcommands, each in the module of its name; their help is here so that ``--help`` imports none of them."""

EXIT_SOME_FAILED = 3
EXIT_INTERRUPTED = 130


class LazyGroup(click.Group):
    """A group that imports a subcommand only when it is used."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a subcommand. Before its exception is reported, remove the live display, and print the hints in notes."""
        try:
            return super().invoke(ctx)
        except BaseException as error:
            screen.clear()
            is_interrupt, log = isinstance(error, KeyboardInterrupt), logging.getLogger("wsi2ihc")
            if is_interrupt:
                print_err("")  # ends the line with ^C
            print_err(*(getattr(error, "__notes__", ()) if log.isEnabledFor(logging.WARNING) else ()))
            if is_interrupt:
                raise click.Abort from error  # of a KeyboardInterrupt, click would print an empty line
            raise

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"wsi2ihc.cli.{cmd_name}").command
        _refuse_empty_names(command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def _show_version(ctx: click.Context, param: click.Parameter, value: bool) -> None:  # noqa: ARG001
    if not value or ctx.resilient_parsing:
        return
    from wsi2ihc.translation.report import versions

    print_out(*(f"{name} {number}" for name, number in versions().items()))
    ctx.exit()


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "WSI2IHC", "max_content_width": 100},
)
@click.option(
    "--version", is_flag=True, expose_value=False, is_eager=True, callback=_show_version,
    help="Show the versions of the program and its libraries and exit.",
)  # fmt: skip
def cli() -> None:
    """Turn a scanned H&E slide into a virtual IHC slide.

    Research use only, not for diagnosis.

    Every option can also be set by an environment variable named WSI2IHC_COMMAND_OPTION (WSI2IHC_TRANSLATE_DEVICE=cpu).
    """


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with its code; the state of the calling process is restored."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    with standard_streams(), cleaned_up_when_ended(), safe_path():
        code = _run(given)
    sys.exit(code)


def _run(arguments: list[str]) -> int:
    try:
        code = cli.main(args=arguments, prog_name="wsi2ihc", standalone_mode=False)
    except click.ClickException as error:
        text = io.StringIO()
        error.show(text)
        print_err(*text.getvalue().rstrip("\n").split("\n"))
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        print_err("Interrupted; no half-written file is left.")
        return EXIT_INTERRUPTED
    except Exception as error:
        print_err(f"Error: {describe_error(error)}")
        if logging.getLogger("wsi2ihc").isEnabledFor(logging.DEBUG):
            print_err(*"".join(traceback.format_exception(error)).rstrip("\n").split("\n"))
        return 1
    return code if isinstance(code, int) else 0


def _refuse_empty_names(command: click.Command) -> None:
    """Make a command and its subcommands refuse empty names, which would stand for the current folder.

    An empty name usually comes from a shell variable that is not set.
    """
    for below in command.commands.values() if isinstance(command, click.Group) else ():
        _refuse_empty_names(below)
    for param in command.params:
        is_name = isinstance(param, click.Argument) or isinstance(param.type, click.Path)
        if is_name and "convert" not in vars(param.type):
            param.type = _not_empty(param.type)


def _not_empty(kind: click.ParamType[Any]) -> click.ParamType[Any]:
    convert = kind.convert

    def checked(value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            raise click.BadParameter("the name is empty", ctx, param)
        return convert(value, param, ctx)

    own = copy.copy(kind)
    setattr(own, "convert", checked)  # noqa: B010  # of this instance, not of its class
    return own


_ENDING = ("SIGTERM", "SIGHUP")
"""Signals that end the program. SIGINT is an exception already. Windows has no SIGHUP."""

_AGAIN_S = 0.1


@contextlib.contextmanager
def cleaned_up_when_ended() -> Iterator[None]:
    """Raise SystemExit (128 + the signal) in the body when the process is terminated or its terminal is closed.

    The previous handlers are restored afterwards. Outside the main thread, which alone can set handlers, this does
    nothing. Signals that the process was started to ignore, as `nohup` does, stay ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before, leaving = {}, _Leaving()
    for name in _ENDING:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            before[number] = signal.signal(number, leaving.begin)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        before[signal.SIGINT] = signal.signal(signal.SIGINT, _interrupt)
    try:
        yield
    finally:
        leaving.is_over = True
        for number, handler in before.items():
            # None: it was set by a library in C, and cannot be restored
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


class _Interrupt(KeyboardInterrupt):
    """Interrupt that was handled, and leads to an exit code.

    If a KeyboardInterrupt itself leaves a call of `exec`, with which dataclasses are made, Python ends by SIGINT later,
    whatever handles the exception.
    """


def _interrupt(*_: object) -> NoReturn:
    raise _Interrupt


class _Ended(SystemExit):
    """SystemExit that supports weak references."""


class _Leaving:
    """Signal handler that raises the exception, and raises it again if it was dropped.

    Destructors and callbacks of C libraries drop exceptions; the program would then continue, and ignore further
    signals. While the exception exists, further signals are ignored, so that the cleanup is not interrupted.
    """

    def __init__(self) -> None:
        self.is_over = False
        self._error: weakref.ref[_Ended] | None = None

    def begin(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if self._error is None or self._error() is None:
            raise self._new(number)  # not through a variable: its own traceback would keep it alive

    def _new(self, number: int) -> _Ended:
        error = _Ended(128 + number)
        self._error = weakref.ref(error, lambda _: self._lost(number))
        return error

    def _lost(self, number: int) -> None:
        if not self.is_over:  # later, and by a signal: an exception raised here would be dropped, too
            again = threading.Timer(_AGAIN_S, self._send, (number,))
            again.daemon = True
            again.start()

    def _send(self, number: int) -> None:
        if not self.is_over:
            os.kill(os.getpid(), number)


if __name__ == "__main__":
    main()
