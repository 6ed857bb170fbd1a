"""Entry point of the ``wsi2ihc`` command: finds the subcommands, and turns errors into one line and an exit code.

Exit codes: 0 done, 1 a clear error, 2 wrong usage, 3 done but for some of several slides, 129 the terminal was closed,
130 interrupted, 143 terminated.
"""

from __future__ import annotations

import importlib
import io
import logging
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

import click

from wsi2ihc.cli.failures import one_line
from wsi2ihc.cli.names import refuse_empty_names
from wsi2ihc.cli.output import say, standard_streams, tell
from wsi2ihc.cli.signals import cleaned_up_when_ended
from wsi2ihc.processes import safe_path

COMMANDS = {
    "translate": "Turn an H&E slide into a virtual IHC slide.",
    "info": "Show what a slide is, and what is wrong with it.",
    "tissue": "Find the tissue of a slide and save it as a mask.",
    "register": "Register an IHC slide onto its H&E slide.",
    "warp": "Write an IHC slide as it lies on its H&E slide.",
    "batch": "Translate many slides, on one machine or many.",
    "pairs": "Make a paired dataset from H&E and IHC slides.",
    "models": "List, show and import generators.",
    "doctor": "Check what works in this environment.",
    "train": "Train a generator on paired patches.",
    "evaluate": "Say how good a virtual stain is, in numbers and pictures.",
    "dataset": "Say what is in a paired dataset, and what is wrong with it.",
    "curves": "Draw the losses and metrics of training runs.",
    "demo": "Make a synthetic H&E slide, translate it, and say how to look at it.",
}
"""Each subcommand lives in the module of its name; its help is here so that ``--help`` imports none of them."""

EXIT_SOME_FAILED = 3
EXIT_INTERRUPTED = 130


class LazyGroup(click.Group):
    """A group that imports a subcommand only when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"wsi2ihc.cli.{cmd_name}").command
        refuse_empty_names(command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def _show_version(ctx: click.Context, param: click.Parameter, value: bool) -> None:  # noqa: ARG001
    if not value or ctx.resilient_parsing:
        return
    from wsi2ihc.translation.report import versions

    say(*(f"{name} {number}" for name, number in versions().items()))
    ctx.exit()


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "WSI2IHC", "max_content_width": 100},
)
@click.option(
    "--version", is_flag=True, expose_value=False, is_eager=True, callback=_show_version,
    help="Show the versions that matter and exit.",
)  # fmt: skip
def cli() -> None:
    """Turn a scanned H&E slide into a virtual IHC slide.

    Research use only, not for diagnosis.

    Every option can also be given as an environment variable: WSI2IHC_, the command, the option, in capitals
    (WSI2IHC_TRANSLATE_DEVICE=cpu).
    """


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with its code; nothing of it stays in the process that calls this."""
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
        tell(*text.getvalue().rstrip("\n").split("\n"))
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        tell("", "Interrupted; no half-written file is left.")
        return EXIT_INTERRUPTED
    except Exception as error:
        tell(f"Error: {one_line(error)}")
        if logging.getLogger("wsi2ihc").isEnabledFor(logging.DEBUG):
            tell(*"".join(traceback.format_exception(error)).rstrip("\n").split("\n"))
        return 1
    return code if isinstance(code, int) else 0


if __name__ == "__main__":
    main()
