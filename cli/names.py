"""Names of files and folders on the command line."""

from __future__ import annotations

import copy
from typing import Any

import click


def refuse_empty_names(command: click.Command) -> None:
    """Make a command and its subcommands refuse empty names, which would stand for the current folder.

    An empty name usually comes from a shell variable that is not set.
    """
    for below in command.commands.values() if isinstance(command, click.Group) else ():
        refuse_empty_names(below)
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
