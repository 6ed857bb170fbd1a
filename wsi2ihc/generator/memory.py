"""How much memory a network's tensors take, found by watching it run."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class _Peak(TorchFunctionMode):
    """Counts the bytes of all tensors made while it is active, and keeps the most that were alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.alive_bytes = 0
        self.peak_bytes = 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_function__(
        self, function: Any, _types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        answer = function(*args, **(kwargs or {}))
        for made in answer if isinstance(answer, list | tuple) else (answer,):
            if isinstance(made, Tensor):
                self._count(made.untyped_storage())
        return answer

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known:  # a view, or changed in place
            return
        self._known.add(storage)
        self.alive_bytes += storage.nbytes()
        self.peak_bytes = max(self.peak_bytes, self.alive_bytes)
        weakref.finalize(storage, self._free, storage.nbytes())

    def _free(self, size_bytes: int) -> None:
        self.alive_bytes -= size_bytes


def peak_bytes(run: Callable[[], object]) -> int:
    """Call ``run``; the most bytes of tensors made in it that were alive at once.

    What libraries below torch use on their own, for single layers, is not seen.
    """
    peak = _Peak()
    with torch.inference_mode(), peak:
        run()
    return peak.peak_bytes
