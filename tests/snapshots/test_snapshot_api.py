"""What can be imported from the packages of the program, with signatures."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from snapshot_compare import Snapshot

import wsi2ihc


def test_public_names(snapshot: Snapshot) -> None:
    lines = []
    for name in sorted(_packages(wsi2ihc)):
        lines.append(name)
        package = importlib.import_module(name)
        for public in _exported(package):
            lines += [f"    {line}" for line in _described(public, getattr(package, public))]
    snapshot.lines("public_api", lines)


def _packages(package: ModuleType) -> Iterator[str]:
    yield package.__name__
    for found in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        if found.ispkg:
            yield from _packages(importlib.import_module(found.name))


def _exported(package: ModuleType) -> list[str]:
    if hasattr(package, "__all__"):
        return sorted(package.__all__)
    return sorted(
        name for name, value in vars(package).items()
        if not name.startswith("_") and getattr(value, "__module__", "").startswith("wsi2ihc") and callable(value)
    )  # fmt: skip


def _described(name: str, value: Any) -> list[str]:
    if inspect.isclass(value):
        return [f"class {name}", *(f"    {line}" for line in [*_signature(value), *_members(value)])]
    if inspect.isroutine(value):
        return [f"def {name}", *(f"    {line}" for line in _signature(value))]
    if name == "__version__":
        return [name]
    return [f"{name} = {sorted(value) if isinstance(value, frozenset) else value}"]


def _members(value: type) -> Iterator[str]:
    fields = {one.name for one in dataclasses.fields(value)} if dataclasses.is_dataclass(value) else set()
    for name, member in sorted(vars(value).items()):
        if name.startswith("_") or name in fields:
            continue
        if isinstance(member, property):
            yield name
            yield f"    -> {inspect.signature(member.fget).return_annotation if member.fget else ''}"
        elif isinstance(member, staticmethod | classmethod) or inspect.isroutine(member):
            yield f"def {name}"
            yield from (f"    {line}" for line in _signature(getattr(value, name)))


def _signature(value: Any) -> list[str]:
    """Return a line for each parameter and the result, without addresses and without where types are defined."""
    signature = inspect.signature(value)
    lines = [str(parameter) for parameter in signature.parameters.values()]
    kinds = [parameter.kind for parameter in signature.parameters.values()]
    if inspect.Parameter.KEYWORD_ONLY in kinds and inspect.Parameter.VAR_POSITIONAL not in kinds:
        lines.insert(kinds.index(inspect.Parameter.KEYWORD_ONLY), "*")
    if signature.return_annotation is not inspect.Signature.empty:
        lines.append(f"-> {signature.return_annotation}")
    return [_plain(line) for line in lines]


def _plain(text: str) -> str:
    text = re.sub(r" at 0x[0-9a-f]+|ForwardRef\(|(?<='\))\)", "", text)
    text = re.sub(r"\b(?:wsi2ihc|pathlib|collections|typing|numpy|torch)(?:\.\w+)*\.(?=\w)", "", text)
    return re.sub(r"^(\*{0,2}\w+: )(['\"])(.*?)\2", r"\1\3", text)
