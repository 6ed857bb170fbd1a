"""Translate batches of windows with a torch network on one device.

`TorchTranslator` runs a `FusedResnet` where it can, else the network as it is (`UncroppedWindow`), and halves batches
that do not fit in memory. `check_response` tests a network on a synthetic image before it is used.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import logging
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..errors import DeviceMemoryError, ModelError
from ..geometry import RGBBatch, RGBImage, ceil_to
from .device import DTYPES, Precision, one_device
from .fused_resnet import FusedResnet, can_fuse, rounded, to_network, to_pixels
from .model_spec import describe_fault
from .networks import ResnetGenerator
from .receptive_field import dependency


class _Peak(TorchFunctionMode):
    """Context that records the peak bytes of tensors created while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.alive_bytes = 0
        self.peak_bytes = 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_function__(
        self, function: Any, _types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        output = function(*args, **(kwargs or {}))
        for made in output if isinstance(output, list | tuple) else (output,):
            if isinstance(made, Tensor):
                self._count(made.untyped_storage())
        return output

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known:  # a view, or an in-place result
            return
        self._known.add(storage)
        self.alive_bytes += storage.nbytes()
        self.peak_bytes = max(self.peak_bytes, self.alive_bytes)
        weakref.finalize(storage, self._free, storage.nbytes())

    def _free(self, size_bytes: int) -> None:
        self.alive_bytes -= size_bytes


def peak_bytes(run: Callable[[], object]) -> int:
    """Call ``run``, and return the peak bytes of the tensors that it creates.

    Workspaces of libraries below torch are not counted.
    """
    peak = _Peak()
    with torch.inference_mode(), peak:
        run()
    return peak.peak_bytes


_log = logging.getLogger(__name__)

_MEMORY_PHRASES = ("can't allocate memory", "out of memory")
"""Messages of the allocators for CPUs and Apple GPUs, whose errors are plain RuntimeErrors."""

_NOMINAL_SIDE_PX = 1200
_SAMPLE_SIDE_PX = 128
_LIBRARIES_BYTES = 40 << 20
"""Memory of oneDNN and the allocator beside the tensors (measured: 30 to 50 MB for all window sizes)."""


class UncroppedWindow(nn.Module):
    """Unmodified network from windows (N, H, W, 3) uint8 to cores uint8.

    ``halo_px`` is cropped from all sides of its output: 0 for blended windows, whose borders the network pads.
    """

    def __init__(self, module: nn.Module, dtype: torch.dtype, halo_px: int, stride_px: int) -> None:
        super().__init__()
        self.module = copy.deepcopy(module).eval()
        self.module.to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
        for layer in self.module.modules():
            if isinstance(layer, nn.Tanh | nn.Sigmoid | nn.Hardtanh | nn.Hardsigmoid | nn.Softsign):
                layer.register_forward_hook(_keep_overflow)
        self.dtype = dtype
        self.halo_px = halo_px
        self._sample_px = ceil_to(_SAMPLE_SIDE_PX, stride_px)

    def working_bytes(self, height: int, width: int) -> int:
        """Estimate the memory for a window of this size, beyond the weights, from that of a small one."""
        per_sample: int = self._sample_bytes
        return per_sample * height * width // self._sample_px**2

    @functools.cached_property
    def _sample_bytes(self) -> int:
        device = next(self.module.parameters()).device
        sample = torch.zeros(1, self._sample_px, self._sample_px, 3, dtype=torch.uint8, device=device)
        return peak_bytes(lambda: rounded(self._values(sample).float()))

    def forward(self, windows: Tensor) -> Tensor:
        """Translate windows; `ModelError` if the output is not finite."""
        values = self._values(windows)
        _, _, height, width = values.shape
        halo = self.halo_px
        return to_pixels(values[:, :, halo : height - halo, halo : width - halo])

    def _values(self, windows: Tensor) -> Tensor:
        values: Tensor = self.module(to_network(windows).to(self.dtype))
        return values


class TorchTranslator:
    """`Translator` for a torch network.

    With ``exact`` the network must be local. Each output pixel is then independent of the window: to the bit in fp32 on
    a CPU; with occasional differences of one gray level if kernels depend on the size (GPUs, half precision). Otherwise
    windows are translated as separate images, to be blended.

    Batches that do not fit on the device are halved, and the size that fits is kept.

    Memory bound: `bytes_per_px` times the px of the batch (of one window on a CPU), windows and outputs included.

    ``module`` maps (N, 3, H, W) in [-1, 1] to the same, and is copied; ``name`` is that of the model, for messages.
    Raises `ModelError` if ``exact`` and the network is not local, or its receptive field is unknown.
    """

    def __init__(
        self, module: nn.Module, device: str | torch.device, precision: Precision, *, exact: bool, name: str = ""
    ) -> None:
        field = dependency(module)
        if exact and not field.is_local:
            raise ModelError(
                f"the network cannot translate exactly: {field.reasons[0]}; blend overlapping windows instead, or "
                "use statistics of the slide"
            )
        self.device = one_device(device)
        self.precision = precision
        self.is_exact = exact
        self.stride_px = field.stride_px
        self.multiple_px = field.stride_px
        dtype = DTYPES[precision]
        on_cpu = self.device.type == "cpu"
        self._smallest_px = 0
        self._network: FusedResnet | UncroppedWindow
        if exact and isinstance(module, ResnetGenerator) and can_fuse(module):
            self._network = FusedResnet(module, dtype, by_strips=on_cpu)
            self._smallest_px = self._network.smallest_window_px if on_cpu else 0
        else:
            halo_px = ceil_to(field.radius_px, field.stride_px) if exact else 0
            self._network = UncroppedWindow(module, dtype, halo_px, field.stride_px)
        self.halo_px = self._network.halo_px
        self._model = f"model {name}" if name else "the model"
        self._check_weights(module)
        self._network = self._network.to(self.device)
        self._batch_limit: int | None = 1 if on_cpu else None

    @functools.cached_property
    def bytes_per_px(self) -> float:
        """Peak working memory per px of a window with a side of about 1,200 px (less for larger ones)."""
        side = ceil_to(max(_NOMINAL_SIDE_PX, 2 * self.halo_px), self.multiple_px)
        return (self._network.working_bytes(side, side) + _LIBRARIES_BYTES) / side**2

    def __call__(self, windows: RGBBatch) -> RGBBatch:
        count, height, width, _ = windows.shape
        rows, columns = height - 2 * self.halo_px, width - 2 * self.halo_px
        if min(rows, columns) < 1 or height % self.multiple_px or width % self.multiple_px:
            raise ValueError(
                f"windows of {width}×{height} px leave no core, or are not multiples of {self.multiple_px}"
            )
        windows = _pad_to(windows, self._smallest_px)
        cores = np.empty((count, rows, columns, 3), np.uint8)
        start = 0
        while start < count:
            stop = min(count, start + (self._batch_limit or count))
            output = self._translate_or_none(windows[start:stop])
            if output is None:
                self._shrink(stop - start, height, width)
            else:
                cores[start:stop] = output[:, :rows, :columns]
                start = stop
        return cores

    def _check_weights(self, module: nn.Module) -> None:
        """Refuse weights that are not finite, before or after their conversion."""
        tensors = [one for network in (module, self._network) for one in (*network.parameters(), *network.buffers())]
        if not all(bool(torch.isfinite(one).all()) for one in tensors if one.is_floating_point()):
            raise ModelError(f"{self._model} has weights or statistics that are not finite{self._advice()}")

    def _advice(self) -> str:
        if self.precision == "fp32":
            return "; they are unusable: train it again, or choose another model"
        return f" in {self.precision}; try --precision fp32, and choose another model if that fails too"

    def _translate_or_none(self, windows: RGBBatch) -> RGBBatch | None:
        """Translate windows; None if out of memory. (The traceback, which holds tensors, ends here.)"""
        try:
            with torch.inference_mode(), _kernels(self.device, self.precision):
                batch = torch.from_numpy(np.require(windows, requirements=["C", "W"])).to(self.device)
                output: RGBBatch = self._network(batch).cpu().numpy()
        except ModelError as error:
            raise ModelError(f"{self._model}: {error}{self._advice()}") from error
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            return None
        return output

    def _shrink(self, tried: int, height: int, width: int) -> None:
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        if tried == 1:
            raise DeviceMemoryError(
                f"{self.device} runs out of memory with a single window of {width}×{height} px; lower --max-memory, "
                "or use another device"
            )
        self._batch_limit = tried // 2
        _log.warning("%s runs out of memory with %d windows; continuing with %d", self.device, tried, self._batch_limit)


def _keep_overflow(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """Return NaN for infinite inputs of a saturating layer, so that overflows are detected."""
    return output + 0 * inputs[0]


def _pad_to(windows: RGBBatch, side_px: int) -> RGBBatch:
    """Pad windows to a smallest side by repeating their last rows and columns."""
    _, height, width, _ = windows.shape
    more = (max(0, side_px - height), max(0, side_px - width))
    if not any(more):
        return windows
    return np.pad(windows, ((0, 0), (0, more[0]), (0, more[1]), (0, 0)), mode="edge")


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.cuda.OutOfMemoryError) or any(phrase in str(error) for phrase in _MEMORY_PHRASES)


def _kernels(device: torch.device, precision: Precision) -> contextlib.AbstractContextManager[None]:
    """Disable TF32 (10 bits of mantissa, the default of convolutions) and kernel benchmarks in fp32 on a GPU."""
    if device.type == "cuda" and precision == "fp32":
        return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
    return contextlib.nullcontext()


_SIDE_PX = 64

_BACKGROUND, _EOSIN, _NUCLEI = (242, 240, 241), (222, 150, 190), (92, 66, 140)


def check_response(module: nn.Module, name: str) -> None:
    """Refuse a network that overflows on an ordinary image; warn about a constant or saturated output.

    The network is in evaluation mode on the CPU. The `ModelError` names the layer whose output is not finite.
    """
    side = max(_SIDE_PX, dependency(module).stride_px)
    pixels = torch.from_numpy(_synthetic_tissue(side))[None]
    hooks = [
        layer.register_forward_hook(_finite(layer_name, name))
        for layer_name, layer in module.named_modules()
        if not list(layer.children())
    ]
    try:
        with torch.inference_mode():
            output = to_pixels(module(to_network(pixels)))[0].numpy()
    finally:
        for hook in hooks:
            hook.remove()
    if fault := describe_fault(output):
        _log.warning(
            "the model %s translates a test image into %s: its weights may be damaged or untrained", name, fault
        )


def _finite(layer: str, name: str) -> Callable[[nn.Module, object, Tensor], None]:
    def check(_: nn.Module, __: object, output: Tensor) -> None:
        if not bool(torch.isfinite(output).all()):
            raise ModelError(
                f"the model {name} overflows on an ordinary image: the output of its layer {layer} is not finite; "
                "its weights are damaged, or its training has failed"
            )

    return check


def _synthetic_tissue(side: int) -> RGBImage:
    """Draw a square of background, eosin and nuclei with a fixed seed."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:side, :side]
    image = np.where((columns > side // 4)[..., None], _EOSIN, _BACKGROUND).astype(np.float64)
    for y, x in rng.uniform(0, side, (side * side // 200, 2)):
        image[(rows - y) ** 2 + (columns - x) ** 2 < 9] = _NUCLEI
    image += rng.normal(0, 6, image.shape)
    return np.clip(image, 0, 255).astype(np.uint8)
