"""Describe what the program writes by its structure: key paths and types, headers, shapes; no values."""

from __future__ import annotations

import csv
import json
import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import tifffile
import torch
from PIL import Image
from safetensors import safe_open

_VALUES = frozenset({"format", "type"})
"""Keys whose values name a kind of file or object, and are part of its structure."""


def structure(value: Any) -> list[str]:
    """Return a sorted line for each key path of a JSON value, with the types that occur there.

    Keys beside each other whose values have the same structure share lines: ``{a,b}.c: int``.
    """
    return [f"{path or '(all)'}: {' | '.join(sorted(kinds))}" for path, kinds in sorted(_types(value).items())]


def _types(value: Any) -> dict[str, set[str]]:
    if isinstance(value, list):
        merged: dict[str, set[str]] = {} if value else {"[]": {"nothing"}}
        for below in value:
            for path, kinds in _types(below).items():
                merged.setdefault(_joined("[]", path), set()).update(kinds)
        return merged
    if not isinstance(value, Mapping):
        return {"": {"null" if value is None else type(value).__name__}}
    alike: dict[str, tuple[list[str], dict[str, set[str]]]] = {}
    for name, below in value.items():
        is_kind = (name in _VALUES and isinstance(below, str)) or (name == "version" and type(below) is int)
        types = {"": {json.dumps(below)}} if is_kind else _types(below) if name != "versions" else {"": {"versions"}}
        nested = isinstance(below, Mapping) or (isinstance(below, list) and any(types.keys() - {"[]"}))
        alike.setdefault(str(sorted(types.items())) if nested else name, ([], types))[0].append(name)
    return {
        _joined(names[0] if len(names) == 1 else f"{{{','.join(sorted(names))}}}", path): kinds
        for names, types in alike.values()
        for path, kinds in types.items()
    } or {"": {"empty object"}}


def _joined(name: str, path: str) -> str:
    return f"{name}{path}" if not path or path.startswith("[") else f"{name}.{path}"


def folder_structure(folder: Path, skip: Callable[[str], bool] | None = None) -> list[str]:
    """Return the names of all files of a folder, each followed by its structure where its format is known."""
    lines = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_dir() or (skip is not None and skip(name)):
            continue
        shown = without_keys(re.sub(r"tfevents\..*", "tfevents", name))
        lines += [shown, *(f"    {line}" for line in _file_structure(path))]
    return lines


def without_keys(path: str) -> str:
    """Return the path of a patch without the hash of its inputs, which includes times and versions."""
    return re.sub(r"^(patches/[^/]+)/[0-9a-f]{8}/", r"\1/KEY/", path)


def _file_structure(path: Path) -> list[str]:
    suffix = path.suffix.lower()
    if suffix in (".json", ".geojson"):
        return structure(json.loads(path.read_text(encoding="utf-8")))
    if suffix == ".toml":
        return structure(tomllib.loads(path.read_text(encoding="utf-8")))
    if suffix == ".csv":
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.reader(file))
        return [f"{len(rows) - 1} rows of {', '.join(rows[0])}"]
    if suffix in (".png", ".jpg"):
        with Image.open(path) as image:
            return [f"{image.format} {image.mode}"]
    if suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            return [f"{name}: {arrays[name].dtype}, {arrays[name].ndim} axes" for name in sorted(arrays)]
    if suffix == ".safetensors":
        return _safetensors_structure(path)
    if suffix == ".pt":
        return structure(_without_tensors(torch.load(path, "cpu", weights_only=True)))
    if suffix == ".tiff":
        return tiff_structure(path)
    return []


def _safetensors_structure(path: Path) -> list[str]:
    with safe_open(path, "numpy") as file:
        metadata = {name: _decoded(text) for name, text in (file.metadata() or {}).items()}
        tensors = [f"{name}: {file.get_slice(name).get_dtype()}" for name in sorted(file.keys())]
    return [*structure(metadata), *tensors]


def _without_tensors(value: Any) -> Any:
    """Return a value of a checkpoint with the states of networks and optimizers as one word each."""
    if not isinstance(value, dict):
        return value
    if any(isinstance(below, torch.Tensor) for below in value.values()):
        return "tensors"
    if "param_groups" in value:
        return "optimizer"
    return {str(name): _without_tensors(below) for name, below in value.items()}


def _decoded(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def tiff_structure(path: Path) -> list[str]:
    """Return the layout of a TIFF file: its pages and levels, and how their tiles are stored."""
    lines = []
    with tifffile.TiffFile(path) as tiff:
        for number, page in enumerate(tiff.pages):
            for level, own in enumerate([page, *(page.pages or [])] if isinstance(page, tifffile.TiffPage) else []):
                assert isinstance(own, tifffile.TiffPage)
                names = sorted(tag.name for tag in own.tags)
                codec, color = tifffile.COMPRESSION(own.compression).name, tifffile.PHOTOMETRIC(own.photometric).name
                lines += [
                    f"page {number}, level {level}: {own.shape}, tiles {own.tile}, {codec}, "
                    f"{color}, subsampling {own.subsampling}, predictor {int(own.predictor)}",
                    f"    tags {' '.join(names)}",
                ]
    return lines


def normalized_xml(text: str) -> list[str]:
    """Return the elements of an XML text with their attributes; UUIDs, dates and versions are left out."""
    lines = []

    def describe(element: ET.Element, depth: int) -> None:
        attributes = " ".join(f"{name}={_normalized(value)!r}" for name, value in sorted(element.attrib.items()))
        content = _normalized((element.text or "").strip())
        tag = element.tag.rpartition("}")[2]
        lines.append(" ".join(filter(None, ["  " * depth + tag, attributes, content])).rstrip())
        for below in element:
            describe(below, depth + 1)

    root = ET.fromstring(text)
    lines.append(f"namespace {root.tag.partition('}')[0].lstrip('{')}")
    describe(root, 0)
    return lines


def _normalized(text: str) -> str:
    text = re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "UUID", text)
    text = re.sub(r"\d{4}-\d\d-\d\dT[\d:.+Z-]+", "DATE", text)
    text = re.sub(r"\b[0-9a-f]{32,64}\b", "HASH", text)
    return re.sub(r"\d+\.\d+\.\d+\S*", "VERSION", text)
