"""Translate scanned H&E slides to virtual IHC slides.

>>> import wsi2ihc
>>> slide = wsi2ihc.open_slide("slide.svs")  # doctest: +SKIP
>>> wsi2ihc.translate(slide, wsi2ihc.load_model(), "out.ome.tiff")  # doctest: +SKIP

The default model is a demonstration on pan-cytokeratin, not HER2.

Research use only, not for diagnosis.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING

from .lazy import lazily

if TYPE_CHECKING:
    from .models.registry import load_model as load_model
    from .slide import open_slide as open_slide
    from .translation.options import TranslateOptions as TranslateOptions
    from .translation.translate import translate as translate

__version__ = version("wsi2ihc")

_HOMES = {
    "open_slide": ".slide",
    "load_model": ".models.registry",
    "translate": ".translation.translate",
    "TranslateOptions": ".translation.options",
}
"""Public names and where they live; imported on first use, so that ``import wsi2ihc`` stays quick."""

__all__ = ["TranslateOptions", "__version__", "load_model", "open_slide", "translate"]

__getattr__ = lazily(__name__, _HOMES)
