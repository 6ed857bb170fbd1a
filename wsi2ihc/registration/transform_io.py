"""Transform files: JSON, with the coefficients of the local field in a separate file."""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from ..atomic_files import make_folder, write_atomically
from ..errors import TransformError
from ..files import json_bytes, read_regular
from ..geometry import Size
from ..slide.metadata import MPP_RANGE
from ..slide.readers.base import MAX_SIDE_PX
from .transform import LocalField, SlideFrame, Transform

TRANSFORM_NAME = "transform.json"
FORMAT, VERSION = "wsi2ihc transform", 1

LARGEST_JSON_BYTES = 16 << 20
LARGEST_FIELD_BYTES = 256 << 20
"""Largest size of coefficients: 60 × 25 mm with a control point every 20 µm have 60 MB."""

_MEMBER = "coefficients"
"""Name of the array in the .npz."""

_HEADER_BYTES = 4096
"""Upper bound of the numpy header of an array (128 bytes)."""

_RESERVED = ("format", "version", "fixed", "moving", "matrix", "field")


def save_transform(
    path_or_folder: str | os.PathLike[str], transform: Transform, extra: Mapping[str, Any] | None = None
) -> Path:
    """Write a transform; `load_transform` reads the same values to the bit.

    Parameters
    ----------
    path_or_folder
        A name that ends in ``.json``, or a folder, which gets a ``transform.json`` and is made if it is not there. The
        coefficients of a local field go beside it, into ``.npz``. Files of these names are replaced, each only by a
        complete one, the JSON last.
    transform
        What to write.
    extra
        Additional metadata for the JSON file, such as a status or score.

    Returns
    -------
    Path
        Of the JSON.

    Raises
    ------
    OutputError
        If the files cannot be written.
    ValueError
        If ``extra`` has a name that is taken, or a value that JSON does not know (NaN).
    """
    path = Path(path_or_folder)
    if path.suffix.lower() != ".json":
        path = path / TRANSFORM_NAME
    if taken := [name for name in extra or {} if name in _RESERVED]:
        raise ValueError(f"a transform has its own {', '.join(taken)}")
    content = None if transform.field is None else _packed(transform.field)
    facts = json_bytes(_as_json(transform, path.with_suffix(".npz").name, content) | dict(extra or {}))
    make_folder(path.parent)
    if content is not None:
        write_atomically(path.with_suffix(".npz"), content)
    write_atomically(path, facts)
    return path


def load_transform(path_or_folder: str | os.PathLike[str]) -> Transform:
    """Read a transform that `save_transform` wrote.

    Parameters
    ----------
    path_or_folder
        The JSON, or the folder that holds a ``transform.json``.

    Raises
    ------
    TransformError
        If a file is missing, damaged, of another kind, or has been changed without the other.
    """
    path = Path(path_or_folder)
    if path.is_dir():
        path = path / TRANSFORM_NAME
    facts = _facts(path)
    name = path.name
    try:
        return Transform(
            matrix=np.array(facts["matrix"], np.float64),
            field=None if facts["field"] is None else _load_field(path, facts["field"]),
            fixed=_frame(facts["fixed"]),
            moving=_frame(facts["moving"]),
        )
    except TransformError as error:
        raise TransformError(f"{name}: {error}") from error
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise TransformError(
            f"{name}: not a complete transform ({type(error).__name__}: {str(error)[:80]}); register again"
        ) from error


def fingerprint(transform: Transform) -> str:
    """Return the SHA-256 of the values of a transform, equal in memory and after reading from a file."""
    digest = hashlib.sha256(np.ascontiguousarray(transform.matrix, "<f8").tobytes())
    if transform.field is not None:
        digest.update(np.array([*transform.field.origin_um, transform.field.spacing_um], "<f8").tobytes())
        digest.update(str(transform.field.coefficients.shape).encode())
        digest.update(np.ascontiguousarray(transform.field.coefficients, "<f8").tobytes())
    return digest.hexdigest()


def _as_json(transform: Transform, field_name: str, content: bytes | None) -> dict[str, Any]:
    field = None
    if transform.field is not None and content is not None:
        rows, columns = transform.field.coefficients.shape[:2]
        field = {
            "file": field_name,
            "sha256": hashlib.sha256(content).hexdigest(),
            "origin_um": list(transform.field.origin_um),
            "spacing_um": transform.field.spacing_um,
            "rows": rows,
            "columns": columns,
        }
    return {
        "format": FORMAT,
        "version": VERSION,
        "fixed": _frame_as_json(transform.fixed),
        "moving": _frame_as_json(transform.moving),
        "matrix": transform.matrix.tolist(),
        "field": field,
    }


def _frame_as_json(frame: SlideFrame | None) -> dict[str, Any] | None:
    if frame is None:
        return None
    return {
        "name": frame.name,
        "width": frame.size.width,
        "height": frame.size.height,
        "mpp": list(frame.mpp),
        "quickhash": frame.quickhash,
    }


def _frame(facts: Any) -> SlideFrame | None:
    if facts is None:
        return None
    width, height = facts["width"], facts["height"]
    if not (isinstance(width, int) and isinstance(height, int)):
        raise ValueError("the size of a slide is not an integer number of px")
    x, y = (float(value) for value in facts["mpp"])
    low, high = MPP_RANGE
    if not (low <= x <= high and low <= y <= high):
        raise ValueError(f"a slide of {x:g} × {y:g} µm/px")
    if not (0 < width <= MAX_SIDE_PX and 0 < height <= MAX_SIDE_PX):
        raise ValueError(f"a slide of {width} × {height} px")
    return SlideFrame(str(facts["name"]), Size(width, height), (x, y), str(facts["quickhash"]))


def _packed(field: LocalField) -> bytes:
    buffer = io.BytesIO()
    # Not compressed: displacements are noise to a compressor. numpy dates the member 1980, so bytes are repeatable.
    np.savez(buffer, coefficients=field.coefficients)
    return buffer.getvalue()


def _load_field(path: Path, facts: Any) -> LocalField:
    name = facts["file"]
    if not isinstance(name, str) or Path(name).name != name:
        raise TransformError(f"its local field is in {str(name)[:80]!r}, not in a file beside it; register again")
    rows, columns = int(facts["rows"]), int(facts["columns"])
    if not (rows > 0 and columns > 0 and 16 * rows * columns <= LARGEST_FIELD_BYTES):
        raise TransformError(f"a local field of {rows}×{columns} control points cannot be; register again")
    content = _content(path.with_name(name), LARGEST_FIELD_BYTES + _HEADER_BYTES)
    if hashlib.sha256(content).hexdigest() != facts["sha256"]:
        raise TransformError(f"{name} is not the local field that belongs to it (SHA-256 differs); copy both again")
    coefficients = _unpacked(content, name, 16 * rows * columns)
    if not isinstance(coefficients, np.ndarray) or coefficients.shape != (rows, columns, 2):
        raise TransformError(f"{name} does not hold {rows}×{columns} control points of 2 numbers; register again")
    x, y = (float(value) for value in facts["origin_um"])
    return LocalField((x, y), float(facts["spacing_um"]), coefficients)


def _unpacked(content: bytes, name: str, expected_bytes: int) -> Any:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            # Checked before it is unpacked: a few kB can unpack to gigabytes.
            if archive.getinfo(f"{_MEMBER}.npy").file_size > expected_bytes + _HEADER_BYTES:
                raise ValueError("larger than stated")
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            return arrays[_MEMBER]
    # numpy, zipfile and zlib raise many kinds on damage: tokenize.TokenError, zlib.error, and MemoryError for a header
    # that states terabytes
    except Exception as error:
        raise TransformError(f"{name} cannot be read ({str(error)[:80]}); register again") from error


def _facts(path: Path) -> dict[str, Any]:
    content = _content(path, LARGEST_JSON_BYTES)
    try:
        facts = json.loads(content, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise TransformError(
            f"{path.name}: not JSON ({str(error)[:80]}); give a transform.json or its folder"
        ) from error
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise TransformError(f"{path.name}: not a saved transform; name a transform.json or its folder")
    if facts.get("version") != VERSION:
        raise TransformError(
            f"{path.name}: a transform of version {str(facts.get('version'))[:20]}, and this program reads version "
            f"{VERSION}; register again"
        )
    return facts


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a number")


def _content(path: Path, largest_bytes: int) -> bytes:
    try:
        if path.stat().st_size > largest_bytes:
            raise TransformError(f"{path.name} is larger than {largest_bytes >> 20} MB, so it is not a saved transform")
        return read_regular(path, largest_bytes)
    except FileNotFoundError:
        raise TransformError(f"{path}: no such file; name a transform.json or its folder") from None
    except OSError as error:
        raise TransformError(f"{path}: cannot be read ({error.strerror}); check the path and permissions") from error
