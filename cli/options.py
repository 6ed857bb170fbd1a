"""Parameter types, shared options and logging set-up."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Container, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import click

from wsi2ihc.models.registry import DEFAULT_MODEL
from wsi2ihc.text import flag, option_name

from .console import LineFormatter, ScreenHandler, log_warnings

Command = TypeVar("Command", bound=Callable[..., Any])
Options = TypeVar("Options")


class _Parsed(click.ParamType):  # type: ignore[type-arg]  # generic only in click's stubs
    """A value written as text that a function reads."""

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


def _parse_positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < 1e6:
        raise ValueError("is not a positive number")
    return number


POSITIVE = _Parsed("NUMBER", _parse_positive)


def options_of(
    options: Any,
    *,
    skip: Container[str] = (),
    help_texts: Mapping[str, str] = MappingProxyType({}),
    default_text: Callable[[str, Any], str] | None = None,
) -> Callable[[Command], Command]:
    """Add an option for each field of an options dataclass that `wsi2ihc.text.option` made, nested ones included.

    `build_options` makes the dataclass from the values.

    Parameters
    ----------
    options
        The dataclass.
    skip
        Names of options to leave out; `build_options` keeps the defaults of their fields.
    help_texts
        Help of options that differs from that of their fields.
    default_text
        Returns the displayed default of an option from its name and default. The options themselves then default to
        None, so that the command can tell which were given.
    """
    nested = partial(options_of, skip=skip, help_texts=help_texts, default_text=default_text)

    def decorate(command: Command) -> Command:
        for one, hint in reversed(_fields_of(options)):
            if "help" not in one.metadata:
                command = nested(hint)(command) if dataclasses.is_dataclass(hint) else command
                continue
            name, default = option_name(one), one.metadata.get("shown", one.default)
            if name in skip:
                continue
            is_switch, has_default = hint is bool, one.default is not None
            shown = f"  [default: {default_text(name, default)}]" if default_text and has_default else ""
            command = click.option(
                f"{flag(name)}/--no-{flag(name)[2:]}" if is_switch else flag(name),
                name,
                type=None if is_switch else _parameter_type(hint, one.metadata),
                default=None if default_text else default,
                show_default=has_default and default_text is None,
                help=help_texts.get(name, one.metadata["help"]) + shown,
            )(command)
        return command

    return decorate


def build_options(options: type[Options], choices: dict[str, Any]) -> Options:
    """Build an options dataclass from the values of its command-line options, which are removed from ``choices``."""
    values: dict[str, Any] = {}
    for one, hint in _fields_of(options):
        if option_name(one) in choices:
            values[one.name] = choices.pop(option_name(one))
        elif "help" not in one.metadata and isinstance(hint, type) and dataclasses.is_dataclass(hint):
            values[one.name] = build_options(hint, choices)
    return options(**values)


def _fields_of(options: Any) -> list[tuple[dataclasses.Field[Any], Any]]:
    """Return the fields of a dataclass with their types; None and alternatives to the first type are left out."""
    hints = get_type_hints(options)
    found = []
    for one in dataclasses.fields(options):
        hint = hints[one.name]
        kinds = [kind for kind in get_args(hint) if kind is not type(None)]
        found.append((one, hint if get_origin(hint) is Literal or not kinds else kinds[0]))
    return found


def _parameter_type(kind: Any, metadata: Mapping[str, Any]) -> Any:
    if "parse" in metadata:
        return _Parsed(metadata["metavar"], metadata["parse"])
    if "bounds" in metadata:
        return click.IntRange(*metadata["bounds"])
    if get_origin(kind) is Literal:
        return click.Choice(get_args(kind))
    return click.Path(path_type=Path) if kind is Path else kind


def verbosity_options(command: Command) -> Command:
    """Add ``-v`` and ``-q``."""
    command = click.option("-v", "--verbose", count=True, help="Log more; -vv also logs libraries.")(command)
    return click.option("-q", "--quiet", is_flag=True, help="Print errors only.")(command)


json_option = click.option("--json", is_flag=True, help="Print only one JSON object on stdout.")

model_option = click.option(
    "--model",
    default=DEFAULT_MODEL,
    show_default=True,
    help="Name or file of a generator (see `models`). The default is a demonstration on pan-cytokeratin, not HER2.",
)

mpp_option = click.option("--mpp", type=POSITIVE, help="Resolution of the slide in µm/px, if it is missing or wrong.")


def image_options(command: Command) -> Command:
    """Add ``--series`` and ``--page``, which select an image in the file of a slide."""
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
