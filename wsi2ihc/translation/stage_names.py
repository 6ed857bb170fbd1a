"""What a translation is at, as its `Progress` says: for those who have to act upon it."""

from __future__ import annotations

TRANSLATING = "translating"
"""Windows go through the generator; ``done`` and ``total`` are their px. Where there are bands it comes more than once,
also after any of the others."""

WRITING = "writing the file"
"""Finished bands become the output."""

CHECKING = "checking the file"
"""The output is read back."""

WAITING = "waiting for other processes"
"""They have the bands that are missing, or make the output."""
