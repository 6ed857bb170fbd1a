"""A torch network made ready for one device: a `protocol.Translator`."""

from __future__ import annotations

import contextlib
import copy
import functools
import logging

import numpy as np
import torch
from torch import Tensor, nn

from ..arrays import RGBBatch
from ..errors import DeviceMemoryError, ModelError
from ..geometry import ceil_to
from .device import DTYPES, Precision, one_device
from .lowering import LoweredResnet, can_lower
from .memory import peak_bytes
from .networks import ResnetGenerator
from .pixels import rounded, to_network, to_pixels
from .reach import dependency

log = logging.getLogger(__name__)

_MEMORY_PHRASES = ("can't allocate memory", "out of memory")
"""How torch's allocators for CPUs and for Apple GPUs say it, whose errors are plain RuntimeErrors."""

_NOMINAL_SIDE_PX = 1200
_SAMPLE_SIDE_PX = 128
_LIBRARIES_BYTES = 40 << 20
"""What oneDNN and the allocator take beside the tensors (measured: 30 to 50 MB, whatever the window's size)."""


class WholeWindow(nn.Module):
    """A network as it stands, from windows (N, H, W, 3) uint8 to cores uint8.

    ``halo_px`` is cut off on all sides of its answer: 0 for windows that are blended, whose borders the network pads in
    its own way.
    """

    def __init__(self, module: nn.Module, dtype: torch.dtype, halo_px: int, lattice_px: int) -> None:
        super().__init__()
        self.module = copy.deepcopy(module).eval()
        self.module.to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
        for layer in self.module.modules():
            if isinstance(layer, nn.Tanh | nn.Sigmoid | nn.Hardtanh | nn.Hardsigmoid | nn.Softsign):
                layer.register_forward_hook(_keep_overflow)
        self.dtype = dtype
        self.halo_px = halo_px
        self._sample_px = ceil_to(_SAMPLE_SIDE_PX, lattice_px)

    def working_bytes(self, height: int, width: int) -> int:
        """Memory beyond the weights for a window of this size: as much per px as a small one takes."""
        per_sample: int = self._sample_bytes
        return per_sample * height * width // self._sample_px**2

    @functools.cached_property
    def _sample_bytes(self) -> int:
        device = next(self.module.parameters()).device
        sample = torch.zeros(1, self._sample_px, self._sample_px, 3, dtype=torch.uint8, device=device)
        return peak_bytes(lambda: rounded(self._values(sample).float()))

    def forward(self, windows: Tensor) -> Tensor:
        """Translate; raises `ModelError` if the answer is not finite."""
        values = self._values(windows)
        _, _, height, width = values.shape
        halo = self.halo_px
        return to_pixels(values[:, :, halo : height - halo, halo : width - halo])

    def _values(self, windows: Tensor) -> Tensor:
        values: Tensor = self.module(to_network(windows).to(self.dtype))
        return values


class TorchTranslator:
    """A `Translator` over a torch network: see `protocol.Translator`.

    With ``exact`` the network must be local. Then each output pixel is the same in whatever window it lies: to the
    bit in fp32 on a CPU; within a grey level now and then where kernels differ between sizes (GPUs, half precision).
    Otherwise windows are translated as images of their own, to be blended.

    Batches that do not fit on the device are halved, and the size that did fit is kept.

    Memory bound: `bytes_per_px` times the px of the batch (of one window, on a CPU), windows and answers included.

    Parameters
    ----------
    module:
        takes and gives (N, 3, H, W) in [-1, 1]; copied, not changed
    device, precision:
        where and how to compute, as `device.parse_devices` and `device.choose_precision` settle them
    name:
        of the model, for messages
    exact:
        whether windows overlap by the network's reach only, and cores are kept as they are

    Raises
    ------
    ModelError
        If exactness is asked for and the network is not local, or if its reach is not known.
    """

    def __init__(
        self,
        module: nn.Module,
        device: str | torch.device,
        precision: Precision,
        *,
        exact: bool,
        name: str = "",
    ) -> None:
        reach = dependency(module)
        if exact and not reach.is_local:
            raise ModelError(
                f"the network cannot be translated exactly: {reach.reasons[0]}; blend overlapping windows instead, or "
                "use statistics of the slide"
            )
        self.device = one_device(device)
        self.precision = precision
        self.is_exact = exact
        self.lattice_px = reach.lattice_px
        self.multiple_px = reach.lattice_px
        dtype = DTYPES[precision]
        on_cpu = self.device.type == "cpu"
        self._smallest_px = 0
        self._network: LoweredResnet | WholeWindow
        if exact and isinstance(module, ResnetGenerator) and can_lower(module):
            self._network = LoweredResnet(module, dtype, by_strips=on_cpu)
            self._smallest_px = self._network.smallest_window_px if on_cpu else 0
        else:
            halo_px = ceil_to(reach.radius_px, reach.lattice_px) if exact else 0
            self._network = WholeWindow(module, dtype, halo_px, reach.lattice_px)
        self.halo_px = self._network.halo_px
        self._model = f"model {name}" if name else "the model"
        self._check_weights(module)
        self._network = self._network.to(self.device)
        self._batch_limit: int | None = 1 if on_cpu else None

    @functools.cached_property
    def bytes_per_px(self) -> float:
        """Peak working memory per px of a window of about 1,200 px (less in larger ones)."""
        side = ceil_to(max(_NOMINAL_SIDE_PX, 2 * self.halo_px), self.multiple_px)
        return (self._network.working_bytes(side, side) + _LIBRARIES_BYTES) / side**2

    def __call__(self, windows: RGBBatch) -> RGBBatch:
        """Translate a batch of windows into cores; see `protocol.Translator`."""
        count, height, width, _ = windows.shape
        rows, columns = height - 2 * self.halo_px, width - 2 * self.halo_px
        if min(rows, columns) < 1 or height % self.multiple_px or width % self.multiple_px:
            raise ValueError(f"windows of {width}×{height} px leave no core, or are no multiple of {self.multiple_px}")
        windows = _at_least(windows, self._smallest_px)
        cores = np.empty((count, rows, columns, 3), np.uint8)
        start = 0
        while start < count:
            stop = min(count, start + (self._batch_limit or count))
            answer = self._try(windows[start:stop])
            if answer is None:
                self._shrink(stop - start, height, width)
            else:
                cores[start:stop] = answer[:, :rows, :columns]
                start = stop
        return cores

    def _check_weights(self, module: nn.Module) -> None:
        """Refuse weights that are not finite, as they were loaded or as they are computed with."""
        tensors = [one for form in (module, self._network) for one in (*form.parameters(), *form.buffers())]
        if not all(bool(torch.isfinite(one).all()) for one in tensors if one.is_floating_point()):
            raise ModelError(f"{self._model} has weights or statistics that are not finite{self._advice()}")

    def _advice(self) -> str:
        """What to do about values that are not finite."""
        if self.precision == "fp32":
            return "; they are unusable: train it again, or choose another model"
        return f" in {self.precision}; try --precision fp32, and choose another model if that fails too"

    def _try(self, windows: RGBBatch) -> RGBBatch | None:
        """Translate; None if the memory does not suffice. (The error and what its traceback holds die in here.)"""
        try:
            with torch.inference_mode(), _kernels(self.device, self.precision):
                batch = torch.from_numpy(np.require(windows, requirements=["C", "W"])).to(self.device)
                answer: RGBBatch = self._network(batch).cpu().numpy()
        except ModelError as error:
            raise ModelError(f"{self._model}: {error}{self._advice()}") from error
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            return None
        return answer

    def _shrink(self, tried: int, height: int, width: int) -> None:
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        if tried == 1:
            raise DeviceMemoryError(
                f"{self.device} runs out of memory with a single window of {width}×{height} px; lower --max-memory, "
                "or use another device"
            )
        self._batch_limit = tried // 2
        log.warning("%s runs out of memory with %d windows; going on with %d", self.device, tried, self._batch_limit)


def _keep_overflow(_: nn.Module, inputs: tuple[Tensor, ...], answer: Tensor) -> Tensor:
    """NaN where a layer that saturates was given an infinite value: an overflow must not pass for an answer."""
    return answer + 0 * inputs[0]


def _at_least(windows: RGBBatch, side_px: int) -> RGBBatch:
    """Windows whose sides are at least so long, with their last rows and columns repeated where they are not."""
    _, height, width, _ = windows.shape
    more = (max(0, side_px - height), max(0, side_px - width))
    if not any(more):
        return windows
    return np.pad(windows, ((0, 0), (0, more[0]), (0, more[1]), (0, 0)), mode="edge")


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.cuda.OutOfMemoryError) or any(phrase in str(error) for phrase in _MEMORY_PHRASES)


def _kernels(device: torch.device, precision: Precision) -> contextlib.AbstractContextManager[None]:
    """In fp32 on a GPU: no TF32 (on for convolutions by default, and 10 bits short), and no kernels found by trial."""
    if device.type == "cuda" and precision == "fp32":
        return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
    return contextlib.nullcontext()
