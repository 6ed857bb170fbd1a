"""Remove the folder of the fork server's socket when the server exits."""

from __future__ import annotations

import atexit
import os
import shutil

if folder := os.environ.pop("WSI2IHC_WORKER_SERVER_FOLDER", ""):  # set by `loader`
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
