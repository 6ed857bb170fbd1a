"""A translation in bands: it can be gone on with after a kill, and several processes can work on one slide.

`translate` does all of it, and is what the command line and `batch` call. It opens a store (`open_store`) and completes
it (`complete`), which is to translate bands and to assemble them. The parts are here for tests and for whoever deals
bands out himself: `band_numbers`, `translate_band` for each of them, in any order and any process, and `assemble`.
`check_store` finds out beforehand what would be refused; `discard_store` removes what is left for an output that was
made in one pass after all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import lazily

if TYPE_CHECKING:
    from .assembling import assemble as assemble
    from .opening import check_store as check_store
    from .opening import open_store as open_store
    from .places import discard_store as discard_store
    from .running import complete as complete
    from .store import Store as Store
    from .store import band_numbers as band_numbers
    from .store import missing_bands as missing_bands
    from .translating import translate as translate
    from .working import translate_band as translate_band

_HOMES = {
    "Store": ".store",
    "assemble": ".assembling",
    "band_numbers": ".store",
    "check_store": ".opening",
    "complete": ".running",
    "discard_store": ".places",
    "missing_bands": ".store",
    "open_store": ".opening",
    "translate": ".translating",
    "translate_band": ".working",
}

__all__ = [
    "Store",
    "assemble",
    "band_numbers",
    "check_store",
    "complete",
    "discard_store",
    "missing_bands",
    "open_store",
    "translate",
    "translate_band",
]

__getattr__ = lazily(__name__, _HOMES)
