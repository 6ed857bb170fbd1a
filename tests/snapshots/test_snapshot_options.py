"""The commands with their arguments and options: types, choices and defaults, not their texts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import click
from snapshot_compare import Snapshot

from wsi2ihc.cli.main import cli


def test_options_of_every_command(snapshot: Snapshot) -> None:
    lines = []
    for name, command in _commands(cli, "wsi2ihc"):
        lines += [name, *(f"    {_described(param)}" for param in command.params)]
    snapshot.lines("options", lines)


def test_every_help_page_can_be_shown(run: Any) -> None:
    for name, _ in _commands(cli, "wsi2ihc"):
        ended = run(*name.split()[1:], "--help")
        assert (ended.code, ended.err) == (0, "")
        assert ended.out.startswith(f"Usage: {name} ")


def _commands(command: click.Command, name: str) -> Iterator[tuple[str, click.Command]]:
    yield name, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for below in command.list_commands(context):
            found = command.get_command(context, below)
            assert found is not None
            yield from _commands(found, f"{name} {below}")


def _described(param: click.Parameter) -> str:
    parts = [", ".join([*param.opts, *param.secondary_opts]) if isinstance(param, click.Option)
             else param.make_metavar(click.Context(click.Command("any")))]  # fmt: skip
    parts.append(_kind(param.type))
    if isinstance(param, click.Option):
        parts += [word for word, holds in (("flag", param.is_flag), ("counted", param.count)) if holds]
        parts.append(f"default {_default(param)}")
    parts += [word for word, holds in (("required", param.required), ("repeated", getattr(param, "multiple", False)))
              if holds]  # fmt: skip
    if param.nargs != 1:
        parts.append(f"{param.nargs} values")
    return "; ".join(parts)


def _kind(kind: click.ParamType[Any]) -> str:
    if isinstance(kind, click.Choice):
        return f"one of {', '.join(map(str, kind.choices))}"
    if isinstance(kind, click.IntRange | click.FloatRange):
        return f"{kind.name} from {kind.min} to {kind.max}"
    if isinstance(kind, click.Path):
        return "path" if kind.file_okay else "folder"
    return str(kind.name)


def _default(option: click.Option) -> str:
    """Return the default, and what is shown instead of it; texts of several words are left out."""
    default = option.to_info_dict().get("default")
    shown = option.show_default if isinstance(option.show_default, str) else ""
    if match := re.search(r"\[default: (.*)\]$", option.help or ""):
        shown = match[1]
    if shown:
        shown = f" shown as {shown if ' ' not in shown else '(text)'}"
    return f"{default if isinstance(default, str | int | float | bool) else None}{shown}"
