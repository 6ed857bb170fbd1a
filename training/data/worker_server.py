"""Remove the folder of the fork server's socket when the server exits; only the fork server imports this module.

Python removes the folder when the training process exits normally. If that process is killed, the fork server is left,
and exits when all workers have.
"""

from __future__ import annotations

import atexit
import os
import shutil

if folder := os.environ.pop("WSI2IHC_WORKER_SERVER_FOLDER", ""):  # set by `patches`
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
