"""What the pixels of a translation follow from: work is gone on with, or taken for done, only if that is the same.

Devices, threads, the size of batches and how the output is encoded may change; in fp32 on a CPU the pixels are the same
to the bit, and on a GPU but for a grey level now and then.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .. import runtime
from ..errors import MaskError
from ..files import sha256_of_file
from ..generator.model import Generator
from ..slide import Slide
from .machine import resolved_precision
from .options import TranslateOptions

Identity = Mapping[str, Any]
"""JSON values by group: "source", "model", "options" by their names on the command line, "program"."""


def identity(slide: Slide, generator: Generator, options: TranslateOptions) -> Identity:
    """What the pixels of this translation follow from.

    Raises
    ------
    MaskError
        If a mask file cannot be read.
    DeviceError
        If the device is missing, or cannot work in the chosen precision.
    """
    info = slide.info
    facts = {
        "source": {
            "name": info.name,
            "quickhash": info.quickhash,
            "size": [info.size.width, info.size.height],
            "changed at": _moment(info.changed_at),
            "--mpp": info.mpp,
        },
        "model": {"name": generator.name, "version": generator.version},
        "options": {
            "--precision": resolved_precision(generator, options),
            "--region": None if options.region is None else str(options.region),
            "--tissue": _mask_identity(options.tissue),
            "--statistics": options.statistics,
            "--seed": options.seed if options.statistics == "slide" else 0,
            "--blend": options.blend,
            "--overlap": options.overlap_px,
            "--core-size": options.core_px,
            "--tile-size": options.pyramid.tile_px,
            "--icc": options.icc,
            "--on-read-error": options.on_read_error,
        },
        "program": {"wsi2ihc": runtime.versions().get("wsi2ihc", "")},
    }
    plain: Identity = json.loads(json.dumps(facts))
    return plain


def fingerprint(facts: Identity) -> str:
    """SHA-256 of an identity."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def differences(before: Identity, now: Identity) -> list[str]:
    """In what two identities differ, for people: "--icc (keep, now srgb)". Empty where they are the same."""
    found = []
    for group, facts in now.items():
        known = before.get(group, {})
        for name, value in facts.items():
            if known.get(name) != value:
                what = name if name.startswith("--") else f"{group} {name}" if name != group else name
                found.append(f"{what} ({_short(known.get(name))}, now {_short(value)})")
    return found


def _mask_identity(tissue: str | Path) -> str:
    """A mask file by its content: it may be edited between two runs."""
    if tissue in ("auto", "none"):
        return str(tissue)
    try:
        return f"sha256:{sha256_of_file(Path(tissue))}"
    except OSError as error:
        raise MaskError(f"{tissue}: the mask cannot be read ({error.strerror}); check the path") from error


def _moment(seconds: int | None) -> str:
    """Seconds since 1970 as people read them; "" of None. Damaged file systems have years that `datetime` has not."""
    return "" if seconds is None else f"{np.datetime64(seconds, 's')}Z"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 24 else f"{text[:20]}…"
