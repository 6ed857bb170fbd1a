"""What a warped slide says of itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ..pyramid import OmeImage, ome_xml
from ..runtime import versions
from ..slide import SlideInfo
from .files import fingerprint
from .transform import Transform
from .warp_plan import OutputFrame

NOTICE = "Resampled: a scan of a stained slide, as it lies on another one. Research use only, not for diagnosis."


def describe_image(
    info: SlideInfo, transform: Transform, options: Mapping[str, Any], frame: OutputFrame, name: str
) -> str:
    """The OME-XML of the output ``name``."""
    fixed = transform.fixed
    provenance = {
        "source": info.name,
        "source quickhash": info.quickhash,
        "registered onto": "" if fixed is None else fixed.name,
        "quickhash of that": "" if fixed is None else fixed.quickhash,
        "transform": f"sha256:{fingerprint(transform)}",
        "options": json.dumps(options),
        "versions": json.dumps(versions()),
        "notice": NOTICE,
    }
    magnification = None
    if info.magnification is not None and info.mpp is not None:  # coarser px are seen as through a weaker objective
        magnification = info.magnification * info.mpp[0] / frame.mpp[0]
    return ome_xml(
        OmeImage(
            name=name,
            size=frame.size,
            mpp=frame.mpp,
            magnification=magnification,
            channel="IHC (registered)",
            notice=NOTICE,
            description=f"{info.name} as it lies on {'another slide' if fixed is None else fixed.name}.",
            provenance=provenance,
        )
    )
