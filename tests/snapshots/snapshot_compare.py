"""Comparison with the committed files in ``expected/``."""

from __future__ import annotations

import difflib
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

EXPECTED = Path(__file__).with_name("expected")
TOLERANCE = 1e-5

UPDATE = "WSI2IHC_UPDATE_SNAPSHOTS"


class Snapshot:
    """Compares values with committed files."""

    def lines(self, name: str, lines: Sequence[str]) -> None:
        """Compare lines of text."""
        path = EXPECTED / f"{name}.txt"
        before = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        if before != list(lines):
            self._differs(path, before, lines)

    def numbers(
        self, name: str, values: dict[str, Any], relative: float = TOLERANCE, absolute: float = TOLERANCE
    ) -> None:
        """Compare lists and objects of numbers and texts; floats with a tolerance, all else exactly."""
        path = EXPECTED / f"{name}.json"
        before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
        if not _close(before, values, relative, absolute):
            texts = [json.dumps(_rounded(one), indent=1, sort_keys=True).splitlines() for one in (before, values)]
            self._differs(path, *texts)

    def _differs(self, path: Path, before: Sequence[str], now: Sequence[str]) -> None:
        if os.environ.get(UPDATE) == "1":
            path.parent.mkdir(exist_ok=True)
            path.write_text("\n".join(now) + "\n", encoding="utf-8")
            return
        changes = list(difflib.unified_diff(before, now, path.name, "now", lineterm="", n=1))
        pytest.fail("\n".join([*changes[:80], f"If this is intended: {UPDATE}=1 pytest tests/snapshots"]), False)


def _close(one: Any, other: Any, relative: float, absolute: float) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_close(one[name], other[name], relative, absolute) for name in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(_close(a, b, relative, absolute) for a, b in zip(one, other, strict=True))
    if isinstance(one, float) or isinstance(other, float):
        numbers = isinstance(one, int | float) and isinstance(other, int | float)
        return numbers and math.isclose(one, other, rel_tol=relative, abs_tol=absolute)
    return type(one) is type(other) and bool(one == other)


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(below) for name, below in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(below) for below in value]
    return float(f"{value:.8g}") if isinstance(value, float) else value
