"""``wsi2ihc doctor``: check the environment."""

from __future__ import annotations

import click

from wsi2ihc.cli.console import echo_json, say
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
        echo_json(
            {"ok": all(check.ok for check in checks if check.needed), "checks": [check.to_json() for check in checks]}
        )
    else:
        width = max(len(check.name) for check in checks)
        for check in checks:
            verdict = "ok" if check.ok else "FAIL" if check.needed else "none"
            say(f"{verdict:<5} {check.name:<{width}}  {check.found}")
    if not all(check.ok for check in checks if check.needed):
        raise SystemExit(1)
