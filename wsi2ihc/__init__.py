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

import lazy_loader

if TYPE_CHECKING:
    from .models.registry import load_model as load_model
    from .slide import open_slide as open_slide
    from .translation.options import TranslateOptions as TranslateOptions
    from .translation.translate import translate as translate

__version__ = version("wsi2ihc")

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "models.registry": ["load_model"],
        "slide": ["open_slide"],
        "translation.options": ["TranslateOptions"],
        "translation.translate": ["translate"],
    },
)
__all__ += ["__version__"]
