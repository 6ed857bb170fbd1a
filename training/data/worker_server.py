"""Loaded by the process that workers are forked from, and by no other: it removes the folder of its socket.

Python removes it when the training process ends by itself. When that is killed, this process is what is left, and ends
as soon as all workers have.
"""

from __future__ import annotations

import atexit
import os
import shutil

if folder := os.environ.pop("WSI2IHC_WORKER_SERVER_FOLDER", ""):  # as `patches` states it
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
