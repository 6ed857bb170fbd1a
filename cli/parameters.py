"""Kinds of values on the command line, options that several commands share, and the set-up of logging."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
from collections.abc import Callable, Container
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import click

from wsi2ihc.geometry import Region

Command = TypeVar("Command", bound=Callable[..., Any])

UNITS = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4}


class RegionParameter(click.ParamType):  # type: ignore[type-arg]  # generic only in click's stubs
    """``X,Y,W,H`` in px."""

    name = "X,Y,W,H"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Region:
        if isinstance(value, Region):
            return value
        parts = re.fullmatch(r"\s*(-?\d{1,9})\s*,\s*(-?\d{1,9})\s*,\s*(\d{1,9})\s*,\s*(\d{1,9})\s*", str(value))
        if parts is None:
            self.fail(f"{value!r} is not X,Y,W,H in whole pixels, such as 1000,2000,512,512", param, ctx)
        x, y, width, height = map(int, parts.groups())
        if not width or not height:
            self.fail(f"{value!r} is empty: width and height must be at least 1", param, ctx)
        return Region(x, y, width, height)


class BytesParameter(click.ParamType):  # type: ignore[type-arg]  # generic only in click's stubs
    """An amount of memory, such as ``4G`` or ``1500M``."""

    name = "SIZE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        parts = re.fullmatch(r"\s*(\d{1,6}(?:\.\d{1,6})?)\s*([KMGT]?)(?:i?B)?\s*", str(value), re.IGNORECASE)
        if parts is None:
            self.fail(f"{value!r} is not an amount of memory such as 4G or 1500M", param, ctx)
        return int(float(parts[1]) * UNITS[parts[2].upper()])


class AutoInteger(click.ParamType):  # type: ignore[type-arg]  # generic only in click's stubs
    """A whole number of at least 1, or ``auto``, which becomes 0."""

    name = "auto|N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if value in ("auto", 0):
            return 0
        if re.fullmatch(r"\d{1,6}", str(value)) is None or int(value) < 1:
            self.fail(f"{value!r} is neither auto nor a whole number of at least 1", param, ctx)
        return int(value)


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

mpp_option = click.option(
    "--mpp", type=PositiveFloat(), help="Resolution of the slide in µm per pixel, where it is missing or wrong."
)


def set_up_logging(verbose: int, quiet: bool) -> None:
    """Log to stderr: warnings by default, more with -v, errors alone with -q."""
    level = logging.ERROR if quiet else logging.DEBUG if verbose else logging.WARNING
    handler = logging.StreamHandler()
    text = "%(levelname)s %(name)s: %(message)s" if verbose else "%(levelname)s: %(message)s"
    handler.setFormatter(logging.Formatter(text))
    logging.basicConfig(level=logging.WARNING if verbose < 2 else logging.DEBUG, handlers=[handler], force=True)
    logging.getLogger("wsi2ihc").setLevel(level)


def echo_json(value: Any) -> None:
    """One JSON object on stdout."""
    click.echo(json.dumps(value, indent=2, allow_nan=False, default=str))
