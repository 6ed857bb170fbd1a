"""From a scanned H&E slide to a virtual IHC slide.

>>> import wsi2ihc
>>> slide = wsi2ihc.open_slide("slide.svs")  # doctest: +SKIP
>>> wsi2ihc.translate(slide, wsi2ihc.load_generator(), "out.ome.tiff")  # doctest: +SKIP

Without a name, the generator is a demonstration on pan-cytokeratin, not HER2.

Research use only, not for diagnosis.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING

from .lazy import lazily

if TYPE_CHECKING:
    from .bands.translating import translate as translate
    from .generator.registry import load_generator as load_generator
    from .slide import open_slide as open_slide
    from .translation.options import TranslateOptions as TranslateOptions

__version__ = version("wsi2ihc")

_HOMES = {
    "open_slide": ".slide",
    "load_generator": ".generator.registry",
    "translate": ".bands.translating",
    "TranslateOptions": ".translation.options",
}
"""Public names and where they live; imported on first use, so that ``import wsi2ihc`` stays quick."""

__all__ = ["TranslateOptions", "__version__", "load_generator", "open_slide", "translate"]

__getattr__ = lazily(__name__, _HOMES)
