"""What a warped slide says of itself."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from ..pyramid import OmeImage, ome_xml
from ..slide import SlideInfo
from .files import fingerprint
from .transform import Transform
from .warp_plan import OutputFrame

NOTICE = "Resampled: a scan of a stained slide, as it lies on another one. Research use only, not for diagnosis."

_VERSIONED = ("wsi2ihc", "numpy", "opencv-python-headless", "openslide-python", "openslide-bin", "pillow", "tifffile",
              "tiffslide", "imagecodecs")  # fmt: skip


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


def describe_slide(info: SlideInfo) -> dict[str, Any]:
    """The facts of a slide, as JSON values; no paths."""
    return {
        "name": info.name,
        "quickhash": info.quickhash,
        "reader": info.reader,
        "vendor": info.vendor,
        "width": info.size.width,
        "height": info.size.height,
        "mpp": info.mpp,
        "mpp_source": info.mpp_source,
        "magnification": info.magnification,
    }


def versions() -> dict[str, str]:
    """Versions of what can change the pixels or the file; what is not installed is left out."""
    found = {"python": platform.python_version()}
    for name in _VERSIONED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
