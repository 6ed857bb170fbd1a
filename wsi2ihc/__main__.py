"""``python -m wsi2ihc``: the same as the command ``wsi2ihc``."""

from __future__ import annotations

import os
import sys


def _remove_current_folder() -> None:
    """Remove the current folder, which ``-m`` puts first, from the module search path."""
    if not sys.flags.safe_path and sys.path and sys.path[0] in ("", os.getcwd()):  # noqa: PTH109
        del sys.path[0]


if __name__ == "__main__":
    _remove_current_folder()
    from wsi2ihc.cli.main import main

    main()
