"""Kinds of values on the command line, options that several commands share, and the set-up of logging."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Container
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import click

from wsi2ihc.cli.output import LineFormatter, ScreenHandler, log_warnings
from wsi2ihc.generator.registry import DEFAULT_MODEL
from wsi2ihc.notation import parse_auto, parse_bytes, parse_region

Command = TypeVar("Command", bound=Callable[..., Any])


class _Notation(click.ParamType):  # type: ignore[type-arg]  # generic only in click's stubs
    """A value that is written as text, which a function of `wsi2ihc.notation` reads."""

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except ValueError as error:
            self.fail(f"{value!r} {error}", param, ctx)


REGION = _Notation("X,Y,W,H", parse_region)
BYTES = _Notation("SIZE", parse_bytes)
AUTO_INTEGER = _Notation("auto|N", parse_auto)


class PositiveFloat(click.ParamType):  # type: ignore[type-arg]  # generic only in click's stubs
    """A finite number above zero."""

    name = "NUMBER"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            number = float(value)
        except ValueError:
            number = 0.0
        if not 0 < number < 1e6:
            self.fail(f"{value!r} is not a number above zero", param, ctx)
        return number


def options_of(
    options: type, *, skip: Container[str] = (), told: Callable[[str, Any], str] | None = None
) -> Callable[[Command], Command]:
    """One option for each field of an options dataclass, in its order: name, type, default, and the field's help.

    Parameters
    ----------
    options
        A dataclass whose fields carry ``metadata["help"]``.
    skip
        Fields without an option of their own.
    told
        What to call the default of a field, given its name and default. With it the options have none themselves, so
        that a command sees what was given and what was left to others to choose.
    """
    hints = get_type_hints(options)

    def decorate(command: Command) -> Command:
        for one in reversed(dataclasses.fields(options)):
            if one.name in skip:
                continue
            hint = hints[one.name]
            kinds = [kind for kind in get_args(hint) if kind is not type(None)]
            kind = hint if get_origin(hint) is Literal or not kinds else kinds[0]
            flag, is_switch = f"--{one.name.replace('_', '-')}", kind is bool
            shown = f"  [default: {told(one.name, one.default)}]" if told and one.default is not None else ""
            command = click.option(
                f"{flag}/--no-{flag[2:]}" if is_switch else flag,
                one.name,
                type=None if is_switch else _parameter_type(kind),
                default=None if told else one.default,
                show_default=one.default is not None and told is None,
                help=one.metadata["help"] + shown,
            )(command)
        return command

    return decorate


def _parameter_type(kind: Any) -> Any:
    if get_origin(kind) is Literal:
        return click.Choice(get_args(kind))
    return click.Path(path_type=Path) if kind is Path else kind


def verbosity_options(command: Command) -> Command:
    """``-v`` and ``-q``, and the logging that they ask for."""
    command = click.option("-v", "--verbose", count=True, help="Say more; with -vv also what libraries say.")(command)
    return click.option("-q", "--quiet", is_flag=True, help="Only errors.")(command)


json_option = click.option("--json", is_flag=True, help="Print one JSON object on stdout, and nothing else.")

model_option = click.option(
    "--model",
    default=DEFAULT_MODEL,
    show_default=True,
    help="Name or file of a generator (see `models`). The default is a demonstration on pan-cytokeratin, not HER2.",
)

mpp_option = click.option(
    "--mpp", type=PositiveFloat(), help="Resolution of the slide in µm per pixel, where it is missing or wrong."
)


def image_options(command: Command) -> Command:
    """``--series`` and ``--page``: which image of the slide's file is wanted."""
    command = click.option(
        "--page",
        type=click.IntRange(0),
        help="Number of the page in a TIFF file, from 0 (a plane of a focus stack).",
    )(command)
    return click.option(
        "--series", type=click.IntRange(0),
        help="Number of the image in a TIFF file, from 0.  [default: the largest RGB image]",
    )(command)  # fmt: skip


def set_up_logging(verbose: int, quiet: bool) -> None:
    """Log to stderr: warnings by default, more with -v, errors alone with -q."""
    level = logging.ERROR if quiet else logging.DEBUG if verbose else logging.WARNING
    handler = ScreenHandler()
    text = "%(levelname)s %(name)s: %(message)s" if verbose else "%(levelname)s: %(message)s"
    handler.setFormatter(LineFormatter(text))
    logging.basicConfig(level=logging.WARNING if verbose < 2 else logging.DEBUG, handlers=[handler], force=True)
    logging.getLogger("wsi2ihc").setLevel(level)
    log_warnings()
