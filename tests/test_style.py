"""Rules of the code base: shape of packages, one home for each idea, size, and vocabulary."""

from __future__ import annotations

import ast
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("wsi2ihc", "training", "cli")
MODULES = sorted(
    path
    for folder in FOLDERS
    for path in (ROOT / folder).rglob("*.py")
    if not any(parent.is_symlink() for parent in path.parents)
)
SHARED_NAMES = {"__init__", "options", "report"}
"""Module names that several packages may use."""

MOST_MODULES = 15
MOST_LINES = 650

LINES = {
    "cli": 2520,
    "training": 2950,
    "training/data": 2040,
    "training/evaluation": 2740,
    "training/inspection": 1930,
    "training/metrics": 1710,
    "training/pairs": 3900,
    "training/reports": 1050,
    "wsi2ihc": 2230,
    "wsi2ihc/batch": 3280,
    "wsi2ihc/demo": 1590,
    "wsi2ihc/models": 2910,
    "wsi2ihc/pyramid": 1430,
    "wsi2ihc/registration": 3460,
    "wsi2ihc/slide": 3760,
    "wsi2ihc/slide/readers": 2190,
    "wsi2ihc/tissue": 1230,
    "wsi2ihc/translation": 4200,
}
"""Budget of each package in lines. A change that exceeds it raises the number and says why."""

HOMES = {
    # files in `atomic_files`; the others rename folders
    r"\.rename\(|\bos\.replace\(": {
        "training/reports/write.py",
        "wsi2ihc/atomic_files.py",
        "wsi2ihc/batch/worker.py",
        "wsi2ihc/pyramid/ome_zarr.py",
        "wsi2ihc/translation/checkpoint_folder.py",
        "wsi2ihc/translation/resume.py",
    },
    r"\b(flock|lock_descriptor)\(": {"wsi2ihc/locks.py"},
    r"\bcsv\.(reader|DictReader)\(": {"wsi2ihc/tables.py"},
    r"\bPopen\(|\bProcess\(|\bget_context\(": {"wsi2ihc/concurrency.py", "training/data/loader.py"},
}
"""Calls, and the only modules that may make them."""


def package_of(path: Path) -> str:
    return str(path.parent.relative_to(ROOT))


def test_packages_have_at_most_fifteen_modules() -> None:
    counts = Counter(package_of(path) for path in MODULES if path.stem != "__init__")
    assert {name: count for name, count in counts.items() if count > MOST_MODULES and name != "cli"} == {}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_are_short_and_not_named_by_gerunds(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MOST_LINES
    assert not path.stem.endswith("ing")


def test_module_names_are_used_once() -> None:
    packages = defaultdict(set)
    for path in MODULES:
        if path.stem not in SHARED_NAMES and package_of(path) != "cli":  # a command is named as what it calls
            packages[path.stem].add(package_of(path))
    assert {name: sorted(where) for name, where in packages.items() if len(where) > 1} == {}


def public_classes(path: Path) -> Iterator[str]:
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield node.name


def test_public_class_names_are_used_once() -> None:
    homes = defaultdict(list)
    for path in MODULES:
        for name in public_classes(path):
            homes[name].append(str(path.relative_to(ROOT)))
    assert {name: where for name, where in homes.items() if len(where) > 1} == {}


@pytest.mark.parametrize("pattern", HOMES)
def test_ideas_have_one_home(pattern: str) -> None:
    found = {str(path.relative_to(ROOT)) for path in MODULES if re.search(pattern, path.read_text(encoding="utf-8"))}
    assert found == HOMES[pattern]


@pytest.mark.parametrize("package", LINES)
def test_packages_stay_within_their_budget(package: str) -> None:
    lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES if package_of(path) == package)
    assert lines <= LINES[package]


BANNED = [
    re.compile(line.split("->")[0].strip(), re.IGNORECASE)
    for line in (ROOT / "tests" / "banned_words.txt").read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("#")
]
TEXTS = [*MODULES, ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "examples").iterdir())]


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_texts_use_the_words_of_the_field(path: Path) -> None:
    """The words of `banned_words.txt` occur nowhere; the right words stand beside them."""
    lines = path.read_text(encoding="utf-8").splitlines()
    found = [
        f"{number}: {line.strip()}" for number, line in enumerate(lines, 1) for word in BANNED if word.search(line)
    ]
    assert found == []
