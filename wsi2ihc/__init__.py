"""Translate scanned H&E slides to virtual IHC slides.

>>> import wsi2ihc
>>> slide = wsi2ihc.open_slide("slide.svs")  # doctest: +SKIP
>>> wsi2ihc.translate(slide, wsi2ihc.load_model(), "out.ome.tiff")  # doctest: +SKIP

The default model is a demonstration on pan-cytokeratin, not HER2.

Research use only, not for diagnosis.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .models.registry import load_model as load_model
    from .slide import open_slide as open_slide
    from .translation.options import TranslateOptions as TranslateOptions
    from .translation.translate import translate as translate

    __version__: str

__all__ = ["TranslateOptions", "__version__", "load_model", "open_slide", "translate"]

_MODULES = {
    "TranslateOptions": ".translation.options",
    "load_model": ".models.registry",
    "open_slide": ".slide",
    "translate": ".translation.translate",
}


def __getattr__(name: str) -> object:
    """Import a public name on first use.

    ``python -m wsi2ihc`` would import anything else, such as lazy_loader, from the current folder.
    """
    if name == "__version__":
        from importlib.metadata import version

        return version("wsi2ihc")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_MODULES[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
