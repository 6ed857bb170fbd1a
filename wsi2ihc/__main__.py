"""``python -m wsi2ihc``: the same as the command ``wsi2ihc``."""

from __future__ import annotations

import os
import sys


def _leave_current_folder_out() -> None:
    """Search for modules as the command ``wsi2ihc`` does: not in the current folder, which ``-m`` puts first."""
    if not sys.flags.safe_path and sys.path and sys.path[0] in ("", os.getcwd()):  # noqa: PTH109
        del sys.path[0]


if __name__ == "__main__":
    _leave_current_folder_out()
    from wsi2ihc.cli.main import main

    main()
