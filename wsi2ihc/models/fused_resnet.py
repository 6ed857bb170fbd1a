"""Fused form of a local ResNet: the same function with less work.

Batch norms, pixel scaling and upsampling are folded into convolutions without padding, which run directly from uint8
windows to uint8 cores. On CPUs the network runs in strips of rows, whose activations fit in the cache.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..errors import ModelError
from ..geometry import ceil_to
from .networks import ResnetBlock, ResnetGenerator
from .receptive_field import dependency

_HALF_RANGE = 127.5


def to_network(pixels: Tensor) -> Tensor:
    """Convert images (N, H, W, 3) uint8 to (N, 3, H, W) float32 in [-1, 1], in channels-last memory."""
    return pixels.permute(0, 3, 1, 2).to(torch.float32).div_(_HALF_RANGE).sub_(1)


def to_centered(pixels: Tensor, center: Tensor) -> Tensor:
    """Convert images (N, H, W, C) uint8 to (N, C, H, W) of the type of ``center`` (C), which is subtracted.

    The center is an integer, so that differences are exact even in bfloat16. Convolutions with weights of `fold_pixels`
    take them as input.
    """
    return pixels.permute(0, 3, 1, 2).to(center.dtype).sub_(center[:, None, None])


def fold_pixels(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Adapt weights (C, 3, h, w) and biases (C) for `to_network` to the output of `to_centered`.

    Also returns the center (3), in integer levels from 0 to 255. The center with the smallest biases is close to the
    mean color of the training data, so that inputs and biases are small, and little is lost by rounding.
    """
    weight, bias = weight / _HALF_RANGE, bias - weight.sum((1, 2, 3))
    sums = weight.sum((2, 3)).double()
    # In float64, since in float32 the result of the solver depends on memory alignment, so that the rounded center of
    # the same model could vary. NaN, which the solver refuses, is detected later in the output.
    solved = torch.linalg.lstsq(sums.nan_to_num(), -bias.double().nan_to_num()[:, None]).solution[:, 0]
    center = solved.nan_to_num().round().clamp(0, 255)
    return weight, (bias + (sums * center).sum(1)).to(bias.dtype), center.to(bias.dtype)


def tanh_of_finite(values: Tensor) -> Tensor:
    """Return the hyperbolic tangent; NaN for infinite values, which are overflows."""
    return torch.tanh(values).add_(values, alpha=0)


def to_pixels(values: Tensor) -> Tensor:
    """Convert values (N, 3, H, W) in [-1, 1] to images (N, H, W, 3) uint8, rounded to nearest.

    Raises `ModelError` if a value is not finite.
    """
    values = values.float()
    if not bool(torch.isfinite(values.sum())):
        raise ModelError("values overflow or are not finite (NaN)")
    return rounded(values)


def rounded(values: Tensor) -> Tensor:
    """Convert values as `to_pixels` does, without checking for finite values."""
    return values.add(1).mul_(_HALF_RANGE).round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


STRIP_BYTES = 8 << 20  # target size of the largest activation of a strip, which should stay in the cache
_ATEN_SMALL = 20_480  # ATen does not use oneDNN for smaller float32 inputs, which are then summed in another order
_NARROW_BF16 = 64  # the AMX bfloat16 kernels of oneDNN sum in another order for rows narrower than 57 px (measured)

_STRIDE = 4

# How output pixels 0 and 1 of a pair depend on neighboring pixels at the lower resolution: [output][pixel][weight].
# Transposed, stride 2, padding 1: pixel i and weight k add to output 2·i - 1 + k; the pixels are i and i + 1.
_TRANSPOSED_TAPS: list[list[list[float]]] = [[[0, 1, 0], [0, 0, 0]], [[0, 0, 1], [1, 0, 0]]]
# Bilinear ×2, then a 3×3 convolution: the pixels are i - 1, i and i + 1. Pixel i lies at 2·i + 1/2 of the doubled
# image, in which each pixel takes 3/4 of the nearer and 1/4 of the farther of the two that it lies between.
_BILINEAR_TAPS: list[list[list[float]]] = [
    [[3 / 4, 1 / 4, 0], [1 / 4, 3 / 4, 3 / 4], [0, 0, 1 / 4]],
    [[1 / 4, 0, 0], [3 / 4, 3 / 4, 1 / 4], [0, 1 / 4, 3 / 4]],
]


class Margins(NamedTuple):
    """Context that convolutions without padding consume around the core, in px of the window."""

    left: int  # context before the core
    right: int  # context after the core
    halo: int  # the larger of the two, rounded up to the stride
    cut: int  # px of the output before the core


def can_fuse(module: nn.Module) -> bool:
    """Return whether `FusedResnet` supports this network, which must be local in its present mode."""
    norms = [layer for layer in module.modules() if isinstance(layer, _NormBase)]
    has_batch_norms = bool(norms) and all(isinstance(layer, nn.BatchNorm2d) for layer in norms)
    is_known = isinstance(module, ResnetGenerator) and not module.antialiasing
    return is_known and has_batch_norms and dependency(module).is_local


class FusedResnet(nn.Module):
    """ResNet from windows (N, H, W, 3) uint8 to cores (N, H - 2·halo, W - 2·halo, 3) uint8; H, W multiples of 4.

    With ``by_strips`` (for CPUs), images are processed one by one, each in strips of rows. Memory bound: the residual
    stream of one image (at a quarter of the resolution, 4·width channels), about four times `STRIP_BYTES` (less for
    small windows), and the output. Otherwise the batch is processed at once; the two largest activations bound it.
    Raises `ModelError` if the network is not local.
    """

    center: Tensor

    def __init__(self, module: ResnetGenerator, dtype: torch.dtype = torch.float32, *, by_strips: bool = True) -> None:
        super().__init__()
        reasons = dependency(module).reasons
        if reasons:
            raise ModelError(f"the network is not a local function of its input: {reasons[0]}")
        layers = list(module.model)
        blocks = [layer for layer in layers if isinstance(layer, ResnetBlock)]
        end = 10 + len(blocks)
        self.dtype = dtype
        self.by_strips = by_strips
        self.stem, center = _on_centered_pixels(_fold(layers[1], layers[2]), is_split=dtype == torch.bfloat16)
        self.register_buffer("center", center)
        self.downs = nn.ModuleList([_fold(layers[4], layers[5]), _fold(layers[7], layers[8])])
        self.body = nn.ModuleList(layer for block in blocks for layer in _folded_block(block))
        self.ups = nn.ModuleList(
            [_fold_upsampling(layers[end], layers[end + 1]), _fold_upsampling(layers[end + 3], layers[end + 4])]
        )
        self.head = _fold(layers[end + 7], None)
        self.channels = 4 * self.stem.out_channels
        self.taps = int(self.ups[0].kernel_size[0])  # type: ignore[index]
        self.margins = _margins(len(blocks), self.taps)
        self._more = ceil_to(6 * self.taps, 4) // 4  # additional input rows of the tail
        self.to(dtype=dtype, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]

    @property
    def halo_px(self) -> int:
        return self.margins.halo

    @property
    def smallest_window_px(self) -> int:
        """Smallest side of windows whose pixels are bit-equal on a CPU, whatever the window size."""
        side = math.isqrt(_ATEN_SMALL // self.channels) + 1
        if self.dtype == torch.bfloat16:
            side = max(side, _NARROW_BF16)
        return _STRIDE * side + 2 * self.halo_px

    def working_bytes(self, height: int, width: int) -> int:
        """Estimate the memory beyond the weights for a window of this size; within 15 % of measurements."""
        four_rows = 4 * width * self.stem.out_channels * self.dtype.itemsize
        if not self.by_strips:
            return 3 * four_rows * height // 4
        stream = height * width * self.channels * self.dtype.itemsize // 16
        first, after = next(_strips(height // 4, four_rows))
        # In the tail: a doubling's output, its reordered copy, its input, and values of the strip before.
        return stream + 7 * four_rows * (after - first + self._more) // 2 + 3 * height * width

    def forward(self, windows: Tensor) -> Tensor:
        _, height, width, _ = windows.shape
        before, after = self.halo_px - self.margins.left, self.halo_px - self.margins.right
        pixels = windows[:, before : height - after, before : width - after]
        cores = windows.new_empty((len(windows), height - 2 * self.halo_px, width - 2 * self.halo_px, 3))
        if self.by_strips:
            for one, core in zip(torch.split(pixels, 1), torch.split(cores, 1), strict=True):
                self._translate_by_strips(one, core)
            return cores
        cut, (rows, columns) = self.margins.cut, cores.shape[1:3]
        values = self._tail(self._body(self._front(pixels)))
        return to_pixels(values[:, :, cut : cut + rows, cut : cut + columns])

    def _front(self, pixels: Tensor) -> Tensor:
        """Reduce 4·n + 9 rows (and columns) of pixels to n at a quarter of the resolution."""
        if self.stem.in_channels == 6:
            pixels = pixels.repeat(1, 1, 1, 2)
        x: Tensor = self.stem(to_centered(pixels, self.center)).relu_()
        for down in self.downs:
            x = down(x).relu_()
        return x

    def _blocks(self) -> Iterator[tuple[nn.Module, nn.Module]]:
        layers = list(self.body)
        return zip(layers[::2], layers[1::2], strict=True)

    def _body(self, x: Tensor) -> Tensor:
        """Run all residual blocks; each removes 2 rows and columns on every side."""
        for first, second in self._blocks():
            x = second(first(x).relu_()).add_(x[:, :, 2:-2, 2:-2])
        return x

    def _tail(self, x: Tensor) -> Tensor:
        """Expand n rows (and columns) at a quarter of the resolution to 4·n - 6·taps rows of values in [-1, 1]."""
        for up in self.ups:
            x = _pixel_shuffle(up(x).relu_())
        output: Tensor = self.head(x)
        return tanh_of_finite(output.float())

    def _translate_by_strips(self, pixels: Tensor, core: Tensor) -> None:
        """Translate one window (1, H, W, 3) into ``core``, strip by strip."""
        size = self.dtype.itemsize
        height, width = (pixels.shape[1] - 9) // 4, (pixels.shape[2] - 9) // 4
        four_rows = 4 * pixels.shape[2] * self.stem.out_channels * size
        memory = torch.empty(height * width * self.channels, dtype=self.dtype, device=pixels.device)

        stream = _image(memory, height, width, self.channels)
        for start, stop in _strips(height, four_rows):
            stream[:, :, start:stop] = self._front(pixels[:, 4 * start : 4 * stop + 9])

        # The output of a block overwrites its input: its rows are shorter, and written after those were read.
        for first, second in self._blocks():
            old, height, width = stream, height - 4, width - 4
            stream = _image(memory, height, width, self.channels)
            for start, stop in _strips(height, width * self.channels * size):
                branch = second(first(old[:, :, start : stop + 4]).relu_())
                stream[:, :, start:stop] = branch.add_(old[:, :, start + 2 : stop + 2, 2:-2])

        rows, columns = core.shape[1:3]
        cut = self.margins.cut
        for start, stop in _strips(ceil_to(rows + cut, 4) // 4, four_rows):
            values = self._tail(stream[:, :, start : stop + self._more])
            top, bottom = max(4 * start - cut, 0), min(4 * stop - cut, rows)
            first_row = top + cut - 4 * start
            core[:, top:bottom] = to_pixels(values[:, :, first_row : first_row + bottom - top, cut : cut + columns])


def _margins(blocks: int, taps: int) -> Margins:
    """Compute the margins for a core that starts at px 0 and is a multiple of 4 long.

    The front makes n px at a quarter of 4·n + 9 px, from 4·q - 6 on; a block takes 2 off either end; the tail makes
    4·n - 6·taps px of n, from 4·q + 6·(taps - 2) + 3 on.
    """
    shift = 6 * (taps - 2) + 3
    start = -ceil_to(shift, _STRIDE) // _STRIDE
    cut = -(_STRIDE * start + shift)
    length = ceil_to(cut + 6 * taps, _STRIDE) // _STRIDE
    left = 6 - _STRIDE * (start - 2 * blocks)
    right = _STRIDE * (length + 4 * blocks) + 9 - left
    return Margins(left, right, ceil_to(max(left, right), _STRIDE), cut)


def _strips(rows: int, row_bytes: int) -> Iterator[tuple[int, int]]:
    """Divide rows into strips of about `STRIP_BYTES` and nearly equal height."""
    count = min(max(1, round(rows * row_bytes / STRIP_BYTES)), rows)
    return itertools.pairwise(rows * i // count for i in range(count + 1))


def _image(memory: Tensor, height: int, width: int, channels: int) -> Tensor:
    """View the start of ``memory`` as an image (1, channels, height, width) in channels-last order."""
    return memory[: height * width * channels].view(1, height, width, channels).permute(0, 3, 1, 2)


def _pixel_shuffle(x: Tensor) -> Tensor:
    """Rearrange channels (2, 2, C) of (N, 4·C, H, W) to pixels (N, C, 2·H, 2·W), in channels-last order."""
    n, channels, height, width = x.shape
    groups = x.permute(0, 2, 3, 1).reshape(n, height, width, 2, 2, channels // 4).transpose(2, 3)
    return groups.reshape(n, 2 * height, 2 * width, channels // 4).permute(0, 3, 1, 2)


def _convolution(weight: Tensor, bias: Tensor, stride: int = 1) -> nn.Conv2d:
    """Make a convolution without padding from copies of these weights, without initializing others first."""
    outputs, inputs, rows, columns = weight.shape
    layer = nn.Conv2d(inputs, outputs, (rows, columns), stride, device="meta")
    layer.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
    layer.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
    return layer


def _fold(layer: nn.Module, norm: nn.Module | None) -> nn.Conv2d:
    """Fold a convolution and the batch norm after it, if any, into one convolution without padding."""
    if not isinstance(layer, nn.Conv2d) or not isinstance(norm, nn.BatchNorm2d | None):
        raise TypeError(f"cannot fold {norm} into {layer}")
    if norm is not None:
        layer = fuse_conv_bn_eval(layer, norm)
    bias = layer.bias if layer.bias is not None else layer.weight.new_zeros(layer.out_channels)
    return _convolution(layer.weight, bias, layer.stride[0])


def _folded_block(block: ResnetBlock) -> Iterator[nn.Conv2d]:
    for layer, norm in itertools.pairwise(block.conv_block):
        if isinstance(layer, nn.Conv2d):
            yield _fold(layer, norm)


def _fold_upsampling(layer: nn.Module, norm: nn.Module) -> nn.Conv2d:
    """Fold upsampling and its batch norm into a convolution at the lower resolution, for `_pixel_shuffle`."""
    if isinstance(layer, nn.ConvTranspose2d) and isinstance(norm, nn.BatchNorm2d):
        transposed = fuse_conv_bn_eval(layer, norm, transpose=True)
        weight, bias, taps = transposed.weight.transpose(0, 1), transposed.bias, _TRANSPOSED_TAPS
    elif isinstance(layer, nn.Sequential):
        single = _fold(layer[2], norm)
        weight, bias, taps = single.weight, single.bias, _BILINEAR_TAPS
    else:
        raise TypeError(f"cannot fuse {layer} and {norm}")
    assert bias is not None  # folding a batch norm makes one
    pick = torch.tensor(taps, dtype=weight.dtype, device=weight.device)
    phases = torch.einsum("aik,bjl,ockl->abocij", pick, pick, weight.detach())
    return _convolution(phases.flatten(0, 2), bias.repeat(4))


def _on_centered_pixels(stem: nn.Conv2d, is_split: bool) -> tuple[nn.Conv2d, Tensor]:
    """Adapt the first convolution to `to_centered`, with each channel twice if split, and return the center."""
    assert stem.bias is not None
    weight, bias, center = fold_pixels(stem.weight.detach(), stem.bias.detach())
    if is_split:
        coarse = weight.bfloat16().float()
        weight, center = torch.cat([coarse, weight - coarse], 1), center.repeat(2)
    return _convolution(weight, bias), center
