"""The facts in a checkpoint's header, read without torch and without the weights.

A checkpoint is one safetensors file. Its metadata holds three strings: ``format`` (always "wsi2ihc-generator"),
``version`` (of the format, a whole number) and ``spec`` (the `GeneratorSpec` as JSON).
"""

from __future__ import annotations

import hashlib
from io import BufferedReader
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ..errors import ModelError, ModelNotFoundError
from ..files import open_regular
from .spec import GeneratorSpec

FORMAT = "wsi2ihc-generator"
VERSION = 1
SUFFIX = ".safetensors"

LARGEST_HEADER_BYTES = 8 << 20
"""The safetensors library allows 100 MB; this program writes some 30 kB."""

LARGEST_BYTES = 4 << 30
"""Published generators take 45 MB, pix2pixHD's 730 MB."""

_ZIP = b"PK\x03\x04"
_PICKLE = b"\x80"


def read_spec(path: Path) -> GeneratorSpec:
    """Read what a checkpoint says of its generator.

    Raises
    ------
    ModelNotFoundError
        If there is no such file.
    ModelError
        If it is no checkpoint of this program.
    """
    with open_checkpoint(path, "numpy") as file:
        return spec_of(file, path)


def open_checkpoint(path: Path, framework: str) -> Any:
    """Open the safetensors file for reading its tensors as ``framework``'s ("numpy" or "pt"); a context manager.

    The safetensors library checks that tensors neither overlap nor leave gaps, and that all of them lie in the file, so
    that a file cannot claim more memory than its own size.
    """
    with open_model_file(path) as file:
        start = file.read(9)
    try:
        # A safetensors file starts with its header's length in 8 bytes, which can look like a pickle's, and then "{".
        if start.startswith((_ZIP, _PICKLE)) and not start.endswith(b"{"):
            raise ModelError(
                f"{path.name} is a PyTorch checkpoint (.pth); convert it with "
                f"'wsi2ihc models import {path.name} {path.stem}{SUFFIX} --mpp MPP'"
            )
        check_header(start, path)
        return safe_open(path, framework=framework)
    except SafetensorError as error:
        raise ModelError(f"{path.name} is no safetensors file, or is incomplete ({error!s:.100})") from error
    except OSError as error:
        raise ModelError(f"{path.name} cannot be read ({error.strerror or error})") from error


def check_header(start: bytes, path: Path) -> None:
    """Refuse a safetensors file with a huge header, which may list millions of tensors without a byte in them.

    Raises
    ------
    ModelError
        If the first 8 bytes say so.
    """
    length = int.from_bytes(start[:8], "little")
    if start[8:9] == b"{" and length > LARGEST_HEADER_BYTES:
        raise ModelError(f"{path.name} is damaged: its header claims {length} bytes")


def open_model_file(path: Path, largest_bytes: int = LARGEST_BYTES) -> BufferedReader:
    """Open a regular file of a possible size, and nothing that never ends or never answers.

    Raises
    ------
    ModelNotFoundError
        If there is no such file.
    ModelError
        If it is a folder, device or pipe, is larger than any model, or cannot be opened.
    """
    try:
        return open_regular(path, largest_bytes)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ModelNotFoundError(f"there is no model file {path}") from error
    except IsADirectoryError as error:
        raise ModelError(f"{path} is a folder, not a model file; name the file in it") from error
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise ModelError(f"the model file {path!s:.200} cannot be opened: {why}") from error


def file_sha256(path: Path) -> str:
    """SHA-256 of a model file's bytes, in hexadecimal."""
    with open_model_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def spec_of(file: Any, path: Path) -> GeneratorSpec:
    """Return the spec in an open checkpoint's metadata, having checked the format and its version."""
    metadata = file.metadata() or {}
    if metadata.get("format") != FORMAT or "spec" not in metadata:
        raise ModelError(
            f"{path.name} does not say which generator it holds; if its weights are those of a pix2pix generator, "
            f"convert it with 'wsi2ihc models import {path.name} NEW{SUFFIX} --mpp MPP'"
        )
    version = str(metadata.get("version", ""))
    if version != str(VERSION):
        raise ModelError(
            f"{path.name} has format version {version!r:.20}, and this program reads version {VERSION}; "
            "a newer wsi2ihc may read it"
        )
    try:
        return GeneratorSpec.from_json(metadata["spec"])
    except ModelError as error:
        raise ModelError(f"{path.name}: {error}") from error
