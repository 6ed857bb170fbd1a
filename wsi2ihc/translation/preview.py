"""One picture of the whole: the slide and its virtual stain side by side."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import OutputError
from ..pyramid import read_overview as read_result
from .setup import Scene

PREVIEW_PX = 1600
"""Longest side of each half."""

GAP_PX = 8


def write_preview(preview: Path, result: Path, scene: Scene) -> None:
    """Write ``preview`` (PNG): the source on the left, the finished ``result`` on the right, at one scale.

    Both are taken from the pixels that were translated: the source is read on the working grid and reduced as the
    pyramid was, so the halves coincide pixel by pixel.
    """
    virtual = read_result(result, PREVIEW_PX)
    source = scene.read_reduced(virtual.shape[1], virtual.shape[0])
    height = max(source.shape[0], virtual.shape[0])
    both = np.full((height, source.shape[1] + GAP_PX + virtual.shape[1], 3), 255, dtype=np.uint8)
    both[: source.shape[0], : source.shape[1]] = source
    both[: virtual.shape[0], -virtual.shape[1] :] = virtual
    partial = preview.with_name(f".{preview.name}.partial")
    try:
        Image.fromarray(both).save(partial, format="PNG")
        partial.replace(preview)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OutputError(f"{preview}: the preview cannot be written ({error.strerror or error})") from error
