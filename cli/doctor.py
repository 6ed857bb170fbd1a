"""``wsi2ihc doctor``: check the environment."""

from __future__ import annotations

import click

from wsi2ihc.cli.console import print_json, print_out
from wsi2ihc.cli.options import json_option, set_up_logging, verbosity_options


@click.command("doctor")
@json_option
@verbosity_options
def command(json: bool, verbose: int, quiet: bool) -> None:
    """Check this environment: slide readers, codecs, devices and precisions, memory, disk."""
    from wsi2ihc.doctor import examine

    set_up_logging(verbose, quiet)
    checks = examine()
    if json:
        print_json(
            {"ok": all(check.ok for check in checks if check.needed), "checks": [check.to_json() for check in checks]}
        )
    elif not quiet:
        rows = [("ok" if check.ok else "FAIL" if check.needed else "none", check.name, check.found) for check in checks]
        print_out(*rows, styles={"ok": "green", "FAIL": "bold red", "none": "yellow"})
    if not all(check.ok for check in checks if check.needed):
        raise SystemExit(1)
